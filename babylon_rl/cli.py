"""The command line, `babylon-rl …`: thin; each command calls one function and prints what it gave."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from typer.exceptions import TyperException

from babylon_rl.bench.commands import app as bench_app
from babylon_rl.commands.checkpoints import app as checkpoints_app
from babylon_rl.commands.evaluate import evaluate
from babylon_rl.commands.experiment import app as experiment_app
from babylon_rl.commands.forget import forget
from babylon_rl.commands.history import history
from babylon_rl.commands.jobs import app as jobs_app
from babylon_rl.commands.keys import app as keys_app
from babylon_rl.commands.lineage import lineage
from babylon_rl.commands.outcomes import app as outcomes_app
from babylon_rl.commands.promote import promote
from babylon_rl.commands.publish import publish
from babylon_rl.commands.recording import app as recording_app
from babylon_rl.commands.rescore import rescore
from babylon_rl.commands.rollback import rollback
from babylon_rl.commands.score import score
from babylon_rl.commands.serve import serve
from babylon_rl.commands.settings import app as settings_app
from babylon_rl.commands.snapshot import app as snapshot_app
from babylon_rl.commands.train import train
from babylon_rl.commands.verify import verify
from babylon_rl.commands.windows import windows as windows_command
from babylon_rl.console import (
    DatabaseOption,
    JsonOption,
    ModelOption,
    TablesOption,
    console,
    errors,
    forget_the_applications_variables,
    progress,
    settings_for,
    stage,
)
from babylon_rl.errors import BabylonError, DatabaseError, SettingsError
from babylon_rl.settings import Settings, get_settings
from babylon_rl.settings.names import SETTINGS_FILE

app = typer.Typer(
    help="Turns recorded Babylon trajectories into better agents.", no_args_is_help=True, pretty_exceptions_enable=False
)
db_app = typer.Typer(help="The embedded PostgreSQL server and the schema.", no_args_is_help=True)
app.add_typer(db_app, name="db")
app.add_typer(bench_app, name="bench")
app.add_typer(checkpoints_app, name="checkpoints")
app.command("evaluate")(evaluate)
app.add_typer(experiment_app, name="experiment")
app.command("forget")(forget)
app.add_typer(keys_app, name="keys")
app.command("lineage")(lineage)
app.command("history")(history)
app.add_typer(jobs_app, name="jobs")
app.add_typer(outcomes_app, name="outcomes")
app.command("promote")(promote)
app.command("publish")(publish)
app.add_typer(recording_app, name="recording")
app.command("rescore")(rescore)
app.command("rollback")(rollback)
app.command("score")(score)
app.command("serve")(serve)
app.add_typer(settings_app, name="settings")
app.add_typer(snapshot_app, name="snapshot")
app.command("train")(train)
app.command("verify")(verify)
app.command("windows")(windows_command)

INTERRUPTED = 130  # exit code after Ctrl-C


@app.callback()
def options(
    settings_file: Annotated[
        Path | None, typer.Option("--settings", metavar="FILE", help="Settings in the form of env.template.")
    ] = None,
) -> None:
    """Turns recorded Babylon trajectories into better agents."""
    if settings_file is not None:
        # By the environment, so that the processes that a command starts read it too.
        os.environ[SETTINGS_FILE] = str(settings_file.absolute())
        get_settings.cache_clear()


# --- database --------------------------------------------------------------------------------------


@db_app.command("up")
def db_up() -> None:
    """Start the embedded server and migrate its database."""
    from babylon_rl.database.embedded import EmbeddedServer, default_home
    from babylon_rl.loop import prepare

    settings = settings_for(None).model_copy(update={"database_url": None, "application_url": None})
    prepare(settings)
    server = EmbeddedServer(default_home(settings))
    console.print(f"PostgreSQL is up; its data are in {server.home}", soft_wrap=True)


@db_app.command("down")
def db_down() -> None:
    """Stop the embedded server; its data stay."""
    from babylon_rl.database.embedded import EmbeddedServer, default_home

    server = EmbeddedServer(default_home(settings_for(None)))
    server.down()
    console.print(f"PostgreSQL is down; its data stay in {server.home}", soft_wrap=True)


@db_app.command("url")
def db_url() -> None:
    """Print the embedded server's URL, for psql and the like."""
    from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer, default_home

    server = EmbeddedServer(default_home(settings_for(None)))
    print(server.url(APPLICATION_DATABASE))
    if not server.running():
        errors.print("It is down; `babylon-rl db up` starts it.")


@db_app.command("migrate")
def db_migrate(database: DatabaseOption = None, with_application_tables: TablesOption = False) -> None:
    """Bring a database to this version's schema, and with the embedded server Dagster's storage as well."""
    from babylon_rl.database.urls import redacted
    from babylon_rl.loop import prepare
    from babylon_rl.materializing import migrate_dagster

    settings = settings_for(database)
    made = prepare(settings, with_application_tables or None)
    console.print(f"Schema babylon_rl is up to date in {redacted(made.url)}", soft_wrap=True)
    if made.embedded:
        migrate_dagster(settings)
        console.print("Dagster's storage is up to date beside it.")


# --- play ------------------------------------------------------------------------------------------


@app.command()
def play(
    windows: Annotated[int, typer.Option(min=1, help="Windows of the past to play.")] = 10,
    agents: Annotated[int, typer.Option(min=3, max=64)] = 8,
    first: Annotated[str | None, typer.Option(help="First window. \\[default: the first free day]")] = None,
    duration: Annotated[float | None, typer.Option(help="Play the open hour live for so many minutes.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible base URL ending in /v1. \\[default: an own endpoint]")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Model to ask for: base, promoted, or a checkpoint's id.")] = "base",
    model: ModelOption = None,
    database: DatabaseOption = None,
) -> None:
    """Let agents play the simulated market and record their runs; DATABASE_URL, the application's, is left alone."""
    from babylon_rl.playing import play_command

    settings = settings_for(database, model).model_copy(update={"application_url": None})
    with progress() as stages:
        summary = play_command(settings, stage(stages), windows, agents, first, duration, seed, endpoint, checkpoint)
    console.print(summary, soft_wrap=True)


# --- the loop --------------------------------------------------------------------------------------


@app.command()
def demo(
    model: ModelOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of market, play and training. \\[default: 1]")] = None,
    database: DatabaseOption = None,
    with_application_tables: TablesOption = False,
) -> None:
    """The main job: play, train, evaluate, and promote on evidence. Goes on where an earlier call stopped."""
    forget_the_applications_variables()
    from babylon_rl.loop import prepare, run_demo
    from babylon_rl.materializing import dagster_environment, environment
    from babylon_rl.plans import plan_of

    settings = settings_for(database, model)
    opened = prepare(settings, with_application_tables or None)
    plan = plan_of(settings.base_model)
    seed = plan.seed if seed is None else seed
    console.print(
        f"{settings.base_model}, seed {seed}: {plan.rounds} rounds of {plan.recipe.windows_per_update} windows with "
        f"{plan.agents} agents, then {plan.validation} validation, {plan.test} test, {plan.unseen} unseen-news windows."
    )
    with environment(dagster_environment(settings)), progress() as stages:
        outcome = run_demo(settings, opened, seed, plan, stage(stages))
    _tell(opened, settings, outcome.training_run)


def _tell(database: Any, settings: Settings, training_run: str) -> None:
    """The demo's end: table of rounds, curve, unseen news, the decision, the next command."""
    from babylon_rl.evaluation.measured import how_sure, measured_for
    from babylon_rl.evaluation.promotion import evidence_of
    from babylon_rl.evaluation.schedule import schedule_of
    from babylon_rl.plans import plan_behind, plan_digest
    from babylon_rl.reporting import alarm_lines, draw_curve, evaluation_rows, rounds, runs_alike
    from babylon_rl.training.runs import base_checkpoint, load_run

    with database.connect() as connection:
        run = load_run(connection, training_run)
        assert run is not None
        schedule = schedule_of(run)
        assert schedule is not None
        played = rounds(connection, run)
        alarms = alarm_lines(connection, run)
        evidence = evidence_of(evaluation_rows(connection, schedule), base_checkpoint(training_run))
        png = draw_curve(connection, run, settings.home / "plots" / f"{training_run}.png")
        ended, improved = runs_alike(connection, run)
    plan = plan_behind(run)
    assert evidence is not None and plan is not None
    sure = how_sure(measured_for(run.base_model, plan_digest(plan)), run.base_model, ended, improved)
    console.print(_rounds_table(played))
    for line in alarms:
        console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"Test: {evidence['candidate']} {_money(evidence['candidate_pnl'])} an agent and window, "
        f"start {_money(evidence['base_pnl'])}, on {evidence['windows']} later windows.",
        soft_wrap=True,
    )
    unseen = evidence["unseen"]
    if unseen:
        note = " (this model knows only words it was trained on: expect nothing)" if run.base_model == "tiny" else ""
        console.print(
            f"Unseen news{note}: {_money(unseen['candidate_pnl'])}, start {_money(unseen['base_pnl'])}, effect "
            f"{unseen['effect']:+.2f} [{unseen['interval'][0]:+.2f}, {unseen['interval'][1]:+.2f}].",
            soft_wrap=True,
        )
    console.print(evidence["reason"], soft_wrap=True)
    console.print(sure, soft_wrap=True)
    console.print(f"Learning curve: {png}", soft_wrap=True)
    if run.base_model == "tiny":
        console.print("The tiny model was freshly initialised: this shows the machinery, in distribution only.")
    following = "make ui" if evidence["decision"] == "promote" else f"make demo SEED={run.seed + 1}, or make ui"
    console.print(f"Next: {following}")


def _money(dollars: float) -> str:
    return f"{'-' if dollars < 0 else ''}${abs(dollars):.2f}"


def _rounds_table(played: list[Any]) -> Table:
    table = Table(title="Rounds: P&L in dollars an agent and window, before the round's update", box=SIMPLE, padding=0)
    for name in ("round", "windows", "trajectories", "P&L [95 %]", "valid", "entropy", "left out"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in played:
        entropy = "-" if r.entropy is None else f"{r.entropy:.2f}"
        table.add_row(
            str(r.number),
            str(r.windows),
            str(r.trajectories),
            f"{r.pnl:+.2f} [{r.low:+.2f}, {r.high:+.2f}]",
            f"{r.valid:.0%}",
            entropy,
            str(r.left_out),
        )
    table.caption = "left out: groups that could not be trained on"
    return table


@app.command()
def status(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """What is recorded, trained and promoted."""
    from babylon_rl.loop import prepare
    from babylon_rl.reporting import status as read_status

    found = read_status(prepare(settings_for(database)))
    if as_json:
        print(json.dumps(found))
        return
    windows, served = found["windows"], found["promoted"]
    console.print(f"Windows: {windows['recorded']} recorded, {windows['ready']} ready, {windows['trained']} trained.")
    console.print(f"Checkpoints: {found['checkpoints']}. Database: {found['database']}.")
    if served is None:
        console.print("Nothing is promoted. `make demo` trains and evaluates a model.")
        return
    best = served["over_best_fixed"]
    if best is None:
        console.print(f"Promoted: {served['checkpoint']} by {served['who']}, without an evaluation: {served['why']}")
        return
    console.print(
        f"Promoted: {served['checkpoint']}, {_effect(served)} over {served['base']} and {_effect(best)} over "
        f"{best['policy']}, in dollars an agent and window on {served['windows']} test windows.",
        soft_wrap=True,
    )


def _effect(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['effect']:+.2f} [{low:+.2f}, {high:+.2f}]"


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="\\[default: the first free one from 3000]")] = None,
    sensors: Annotated[bool, typer.Option(help="Whether sensors and schedules run from the start.")] = True,
    database: DatabaseOption = None,
) -> None:
    """Open Dagster on the database: webserver and daemon on loopback, until Ctrl-C."""
    from babylon_rl.desk import desk_environment, open_desk
    from babylon_rl.loop import prepare

    settings = settings_for(database)
    prepare(settings)
    environment = desk_environment(settings, sensors)
    open_desk(environment, settings.home / "desk", port, lambda line: console.print(line, soft_wrap=True, markup=False))


# --- entry ----------------------------------------------------------------------------------------


def main() -> None:
    """Entry point: errors that carry their remedy are printed without a stack trace."""
    try:
        # Typer hands back the code of an Exit instead of raising it, and makes one of Ctrl-C.
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("\nInterrupted. What was finished is kept; the same command goes on from there.")
        sys.exit(INTERRUPTED)
    except BabylonError as error:
        errors.print(f"babylon-rl: {error}", soft_wrap=True, markup=False)
        sys.exit(2 if isinstance(error, SettingsError | DatabaseError) else 1)
    except TyperException as error:
        said = getattr(error, "format_message", error.__str__)()
        if not said:  # a group of commands without one of them has printed its help
            sys.exit(2)
        context = getattr(error, "ctx", None)
        called = "" if context is None else context.command_path.removeprefix(context.find_root().command_path)
        stop = "" if said.endswith((".", "?", "!")) else "."
        errors.print(
            f"babylon-rl: {said}{stop} `babylon-rl{called} --help` tells what there is.", soft_wrap=True, markup=False
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
