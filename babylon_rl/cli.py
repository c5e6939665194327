"""The command line, `babylon-rl …`: thin; each command calls one function and prints what it gave."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.exceptions import TyperException

from babylon_rl.errors import BabylonError, DatabaseError, SettingsError
from babylon_rl.settings import Settings, get_settings

app = typer.Typer(
    help="Turns recorded Babylon trajectories into better agents.", no_args_is_help=True, pretty_exceptions_enable=False
)
db_app = typer.Typer(help="The embedded PostgreSQL server and the schema.", no_args_is_help=True)
app.add_typer(db_app, name="db")
bench_app = typer.Typer(help="How well a recipe does, measured over several seeds.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
console = Console()
errors = Console(stderr=True)
INTERRUPTED = 130  # exit code after Ctrl-C

DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="PostgreSQL to use instead of the embedded server.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="smollm2-135m, tiny, or a folder. \\[default: BASE_MODEL]")
]
TablesOption = Annotated[
    bool,
    typer.Option("--with-application-tables", help="Create the application's tables in a database that has none."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_for(database: str | None, model: str | None = None) -> Settings:
    """The settings, with the database that was named (and no other) and the model, where one was."""
    changes: dict[str, Any] = {}
    if database is not None:
        changes["database_url"] = SecretStr(database)
    if model is not None:
        changes["base_model"] = model
    return get_settings().model_copy(update=changes)


# --- database --------------------------------------------------------------------------------------


@db_app.command("up")
def db_up() -> None:
    """Start the embedded server and migrate its database."""
    from babylon_rl.database.embedded import EmbeddedServer, default_home
    from babylon_rl.loop import prepare

    settings = settings_for(None).model_copy(update={"database_url": None})
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
    """Bring a database to this version's schema."""
    from babylon_rl.database.urls import redacted
    from babylon_rl.loop import prepare

    made = prepare(settings_for(database), with_application_tables or None)
    console.print(f"Schema babylon_rl is up to date in {redacted(made.url)}", soft_wrap=True)


# --- play and serve --------------------------------------------------------------------------------


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
    """Let agents play the simulated market and record their runs."""
    from babylon_rl.playing import play_command

    settings = settings_for(database, model)
    with _progress() as stages:
        summary = play_command(settings, _stage(stages), windows, agents, first, duration, seed, endpoint, checkpoint)
    console.print(summary, soft_wrap=True)


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Option(help="base, promoted, or a checkpoint's id.")] = "promoted",
    port: Annotated[int, typer.Option()] = 8100,
    model: ModelOption = None,
    database: DatabaseOption = None,
) -> None:
    """Serve a checkpoint, OpenAI-compatible, on loopback until Ctrl-C."""
    from babylon_rl.playing import served_checkpoint
    from babylon_rl.serving.process import serve as serve_until_interrupted

    settings = settings_for(database, model)
    base_folder, name, adapters = served_checkpoint(settings, checkpoint)
    asked_for = next(iter(adapters), name)
    console.print(
        f"Serving {asked_for} at http://127.0.0.1:{port}/v1 (model {asked_for!r}); Ctrl-C ends it.", soft_wrap=True
    )
    serve_until_interrupted(base_folder, name, "127.0.0.1", port, settings.device, settings.threads, adapters)


# --- the loop --------------------------------------------------------------------------------------


@app.command()
def demo(
    model: ModelOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of market, play and training. \\[default: 1]")] = None,
    database: DatabaseOption = None,
    with_application_tables: TablesOption = False,
) -> None:
    """The main job: play, train, evaluate, and promote on evidence. Goes on where an earlier call stopped."""
    _forget_the_applications_variables()
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
    with environment(dagster_environment(settings)), _progress() as stages:
        outcome = run_demo(settings, opened, seed, plan, _stage(stages))
    _tell(opened, settings, outcome.training_run)


def _forget_the_applications_variables() -> None:
    """A user of the application has these exported; simulated agents must not land in, or send to, what they name."""
    for name in ("DATABASE_URL", "BABYLON_RL_DATABASE_URL", "WANDB_API_KEY", "OPENAI_API_KEY"):
        os.environ.pop(name, None)
    get_settings.cache_clear()


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
        f"Promoted: {served['checkpoint']}, {served['effect']:+.2f} {served['interval']} over {served['base']} and "
        f"{best['effect']:+.2f} {best['interval']} over {best['policy']}, {served['windows']} test windows.",
        soft_wrap=True,
    )


@app.command()
def train(
    first: Annotated[str, typer.Option("--from", help="First window.")],
    last: Annotated[str | None, typer.Option("--to", help="Last window; the update consumes the whole range.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with each new window, under `make ui`.")] = False,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "babylon",
    seed: Annotated[int, typer.Option()] = 0,
    model: ModelOption = None,
    database: DatabaseOption = None,
) -> None:
    """Train on recorded windows: one update over a range or a run without an end, by the same assets."""
    from babylon_rl.materializing import dagster_environment, environment
    from babylon_rl.playing import train_command

    settings = settings_for(database, model)
    with environment(dagster_environment(settings)), _progress() as stages:
        message = train_command(settings, _stage(stages), first, last, follow, name, seed)
    console.print(message, soft_wrap=True)


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


# --- bench -----------------------------------------------------------------------------------------


@bench_app.command("learning")
def bench_learning(
    seeds: Annotated[str, typer.Option(metavar="SEEDS", help="Seeds to measure: 11-20, or 1,5,7, or both mixed.")],
    model: ModelOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results, table, plot and logs; by default BABYLON_RL_HOME/bench.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Also write data, document and plot of these seeds into the repository.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the demo's recipe over seeds, one demo each: a table and a plot of what each seed and all of them came to.

    A seed takes as long as a demo. Ctrl-C keeps what is finished; the same command goes on from there, and runs seeds
    that failed again. Exit code 1: a seed failed.
    """
    _forget_the_applications_variables()
    _end_like_ctrl_c()
    from babylon_rl.bench.learning import measure_learning
    from babylon_rl.bench.report import result_line, table
    from babylon_rl.bench.results import parse_seeds
    from babylon_rl.plans import plan_of

    settings, wanted = settings_for(database, model), parse_seeds(seeds)
    said = errors if as_json else console
    folder = (out or settings.home / "bench").absolute()
    said.print(f"{settings.base_model}, {len(wanted)} seeds, a demo each; logs in {folder}", soft_wrap=True)
    with said.status("starting") as line:
        measured = measure_learning(
            settings,
            plan_of(settings.base_model),
            wanted,
            folder,
            publish,
            lambda seed, last: line.update(escape(f"seed {seed}: {last}"[: said.width - 4])),
            lambda result: said.print(result_line(result), soft_wrap=True, markup=False),
        )
    if as_json:
        print(json.dumps(measured.as_json()))
    else:
        print(f"\n{table(measured.results)}")
        console.print("\n".join(map(str, measured.files)), soft_wrap=True, markup=False)
    raise typer.Exit(1 if measured.failed else 0)


@bench_app.command("overhead")
def bench_overhead(
    windows: Annotated[int, typer.Option(min=2, help="Windows a range.")] = 100,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """What Dagster adds to the domain functions: seconds of the four data assets. Exit code 1: over the limit."""
    _forget_the_applications_variables()
    from babylon_rl.bench.overhead import measure_overhead

    found = measure_overhead(settings_for(None), windows, pairs, errors.print)
    if as_json:
        print(json.dumps([each.as_json() for each in found]))
    else:
        console.print(_overhead_table(found))
    raise typer.Exit(0 if all(each.reached for each in found) else 1)


def _overhead_table(found: list[Any]) -> Table:
    table = Table(title="Seconds, medians over pairs of equal windows", box=SIMPLE, padding=0)
    for name in ("windows", "checks", "domain functions", "Dagster run", "added by Dagster", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in (pair.as_json() for pair in found):
        cells = ("" if each[name] is None else f"{each[name]:.2f}" for name in ("own", "run", "added", "limit"))
        table.add_row(str(each["windows"]), "with" if each["checks"] else "without", *cells)
    return table


@bench_app.command("sensor")
def bench_sensor(
    windows: Annotated[int, typer.Option(min=10, help="Hours that hold trajectories.")] = 50_000,
    rows: Annotated[int, typer.Option(min=10, help="Small trajectories in them.")] = 1_000_000,
    without_ids: Annotated[
        bool, typer.Option("--without-ids", help="Rows without a windowId, as another recorder writes them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a tick of the readiness sensor costs on a large table, in a database of its own on the embedded server.

    Takes some minutes and a few gigabytes of disk, which are freed. Exit code 1: the figure is missed.
    """
    from babylon_rl.bench.sensor import as_json as figures_as_json
    from babylon_rl.bench.sensor import measure_sensor, table

    figures = measure_sensor(settings_for(None), windows, rows, not without_ids, lambda line: errors.print(line))
    print(json.dumps(figures_as_json(figures)) if as_json else table(figures))
    raise typer.Exit(0 if figures.reached else 1)


def _end_like_ctrl_c() -> None:
    """A closed terminal or a plain kill ends as Ctrl-C does, so that no demo goes on without its bench."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


# --- shared ----------------------------------------------------------------------------------------


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _stage(progress: Progress) -> Callable[[str, int], Callable[[], None]]:
    if not console.is_terminal:
        return _line_stage

    def begin(title: str, steps: int) -> Callable[[], None]:
        task = progress.add_task(title, total=steps)
        return lambda: progress.advance(task)

    return begin


def _line_stage(title: str, steps: int) -> Callable[[], None]:
    """Where no bar can be drawn (a log, CI): a line when a stage is done, with its time."""
    began, left = time.monotonic(), [steps]

    def advance() -> None:
        left[0] -= 1
        if left[0] == 0:
            print(f"{title}: {steps} done in {time.monotonic() - began:.0f} s", flush=True)

    return advance


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
        errors.print(f"babylon-rl: {said} `babylon-rl --help` tells what there is.", soft_wrap=True, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
