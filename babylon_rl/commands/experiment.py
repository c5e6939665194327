"""`babylon-rl experiment`: start one after its forecast was shown, look at it, read it, stop it, list them."""

import getpass
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, print_table, settings_for
from babylon_rl.errors import SettingsError

if TYPE_CHECKING:
    import psycopg

    from babylon_rl.evaluation.experiments import Experiment
    from babylon_rl.evaluation.looks import Look
    from babylon_rl.evaluation.planning import Planned

app = typer.Typer(help="Experiments: a candidate against what is promoted, on agents' calls.", no_args_is_help=True)

WhoOption = Annotated[str | None, typer.Option("--who", help="Who decides. \\[default: the user's name here]")]


@app.command()
def start(
    candidate: Annotated[
        str, typer.Option("--candidate", metavar="ID", help="Checkpoint, or the beginning of its id.")
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ID", help="What it is compared with. \\[default: promoted]")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="Share of agents for the candidate: 50 and 0.5 are half; 1 is 1 %.")
    ] = 50,
    design: Annotated[
        str, typer.Option("--design", help="paired-by-window, or switchback: all agents, block by block.")
    ] = "paired-by-window",
    effect: Annotated[
        float | None, typer.Option("--effect", help="Effect to find, in the metric. \\[default: what the hours find]")
    ] = None,
    hours: Annotated[
        int | None, typer.Option("--hours", help="Longest duration. \\[default: what the effect needs, or a week]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="reward, or return: P&L over capital. \\[default: reward if scored]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of who gets which arm. \\[default: its number]")] = None,
    who: WhoOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the forecast, and start nothing.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start an experiment with the next hour, after showing what it can find and in which time.

    It ends by itself: promoted on evidence, kept where there is none until its last hour, stopped for harm. One runs at
    a time. Looks are made by the sensor experiment_watch and by `babylon-rl experiment look`.
    """
    from babylon_rl.evaluation.planning import Asked, plan, share_of
    from babylon_rl.evaluation.planning import start as start_planned
    from babylon_rl.loop import prepare

    settings = settings_for(database)
    if as_json and not (dry_run or yes):
        raise SettingsError("With --json nothing is asked: say --yes to start, or --dry-run for the forecast alone.")
    if metric not in (None, "reward", "return"):
        raise SettingsError(f"There is no metric {metric!r}; there are reward and return.")
    opened = prepare(settings)
    with opened.connect() as connection:
        asked = Asked(
            candidate=_named(connection, candidate),
            baseline=None if baseline is None else _named(connection, baseline),
            share=share_of(share),
            design=design,  # type: ignore[arg-type]
            effect=effect,
            hours=hours,
            metric=metric,  # type: ignore[arg-type]
            seed=seed,
        )
        planned = plan(connection, asked, who or _user(), settings, datetime.now(UTC))
    if not as_json:
        _tell_plan(planned)
    started = None
    if not dry_run:
        if not (yes or _agreed()):
            _say("Nothing was started.")
            raise typer.Exit(1)
        with opened.connect() as connection:
            started = start_planned(connection, planned)
    _tell_start(planned, started, as_json)


def _tell_start(planned: "Planned", started: "Experiment | None", as_json: bool) -> None:
    if as_json:
        print(json.dumps({"started": started is not None, **_plain(started or planned.experiment)}))
    elif started is None:
        _say("Nothing was started (--dry-run).")
    else:
        _say(
            f"Experiment {started.experiment_id} starts at {started.first_window} UTC. Next: babylon-rl experiment show"
        )


@app.command()
def look(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Look at the experiment that runs now; where that is decided it ends, and a winner is promoted."""
    from babylon_rl.evaluation.looks import look_at_running
    from babylon_rl.loop import prepare

    with prepare(settings_for(database)).connect() as connection:
        found = look_at_running(connection)
    if as_json:
        print("null" if found is None else msgspec.json.encode(found).decode())
    elif found is None:
        _say("No experiment runs.")
    else:
        _tell_look(found)


@app.command()
def show(
    experiment: Annotated[str | None, typer.Argument(help="Its id, as e1. \\[default: the latest]")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the confidence sequence there, as a PNG.")
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an experiment: what was declared, each look, the guardrails, and what it came to."""
    from babylon_rl.evaluation.experiments import load_experiment
    from babylon_rl.evaluation.looks import looks
    from babylon_rl.evaluation.looks_plot import draw_looks
    from babylon_rl.loop import prepare

    with prepare(settings_for(database)).connect() as connection:
        found = load_experiment(connection, experiment)
        seen = looks(connection, found.experiment_id)
    if plot is not None:
        draw_looks(found, seen, plot)
    if as_json:
        print(json.dumps({**_plain(found), "looks": [msgspec.to_builtins(one) for one in seen]}))
        return
    _tell_experiment(found)
    if seen:
        print_table(_looks_table(seen))
        _tell_look(seen[-1])
    else:
        _say("Nobody has looked at it yet; `babylon-rl experiment look` does.")
    if plot is not None:
        _say(f"The confidence sequence is in {plot}")


@app.command()
def stop(
    why: Annotated[str, typer.Option("--why", help="The reason, kept with the experiment.")],
    who: WhoOption = None,
    database: DatabaseOption = None,
) -> None:
    """Stop the experiment that runs; agents keep their arm until the hour is over, and nothing is promoted."""
    from babylon_rl.evaluation.experiments import stop as stop_running
    from babylon_rl.loop import prepare

    with prepare(settings_for(database)).connect() as connection:
        ended = stop_running(connection, why, who or _user())
    _say(
        f"Experiment {ended.experiment_id} is stopped; {ended.baseline} answers all agents from {ended.end_window} on."
    )


@app.command("list")
def listed(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """List all experiments, the latest first."""
    from babylon_rl.evaluation.experiments import list_experiments
    from babylon_rl.loop import prepare

    with prepare(settings_for(database)).connect() as connection:
        found = list_experiments(connection)
    if as_json:
        print(json.dumps([_plain(one) for one in found]))
        return
    if not found:
        _say("There is no experiment yet; `babylon-rl experiment start --candidate ID` starts one.")
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("id", "candidate", "baseline", "design", "share", "first window", "state", "reason"):
        table.add_column(name, overflow="fold")
    for one in found:
        share = f"{one.share:.0%}"
        table.add_row(one.experiment_id, one.candidate, one.baseline, one.design, share, one.first_window, one.state,
                      one.reason)  # fmt: skip
    print_table(table)


def _agreed() -> bool:
    """Whether the person at the terminal says yes."""
    if not sys.stdin.isatty():
        raise SettingsError("Nothing was started: nobody can be asked here. --yes starts it without asking.")
    return typer.confirm("Start it?")


def _named(connection: "psycopg.Connection", told: str) -> str:
    """Id of the checkpoint that is meant; where there is none the error names the nearest."""
    import difflib

    from babylon_rl.errors import TrainingError
    from babylon_rl.training.retention import find_checkpoint
    from babylon_rl.training.runs import list_checkpoints

    try:
        return find_checkpoint(connection, told).checkpoint_id
    except TrainingError as error:
        known = [one.checkpoint_id for one in list_checkpoints(connection)]
        near = difflib.get_close_matches(told, known, n=1, cutoff=0.4)
        if not near or "may be" in str(error):
            raise
        raise TrainingError(f"There is no checkpoint {told!r}. Did you mean {near[0]}?") from None


def _tell_plan(planned: "Planned") -> None:
    one = planned.experiment
    _tell_experiment(one, "planned")
    if planned.forecast is None:
        _say(f"No forecast: {planned.unknown}")
    else:
        _say("Forecast, by simulation on the noise of past windows:")
        for line in str(planned.forecast).splitlines():
            _say(f"  {line}")


def _tell_experiment(one: "Experiment", state: str | None = None) -> None:
    declared = one.settings
    metric = f"reward of scorer {declared['scorer']}" if declared["metric"] == "reward" else "P&L over capital"
    _say(f"{one.experiment_id}: {one.candidate} against {one.baseline}, {state or one.state}")
    _say(f"  {one.design}, {one.share:.0%} for the candidate, seed {one.seed}, by {one.who}")
    _say(f"  {one.horizon} hours at most: from {one.first_window} to before {one.end_window}, UTC")
    _say(f"  metric: {metric}, means of blocks of {declared['block_hours']} h; candidate number {one.tried} against "
         f"this baseline, so alpha is {declared['alpha']:.4g}")  # fmt: skip
    limits = declared["guardrails"]
    _say(f"  guardrails: {limits['valid']:.1%} fewer valid actions, {limits['drawdown']:.1%} more drawdown, "
         f"{limits['latency']:g} times the latency")  # fmt: skip
    if one.state != "running":
        _say(f"  {one.reason}")


def _tell_look(found: "Look") -> None:
    _say(f"{found.decision}: {found.reason}")
    for name, one in found.guardrails.get("guards", {}).items():
        _say(f"  {name}: {one['said']}{' (breached)' if one['breached'] else ''}")
    out = found.guardrails.get("left_out")
    if out:
        _say("  agents' windows left out: " + ", ".join(f"{count} {reason}" for reason, count in out.items()))


def _looks_table(seen: "list[Look]", most: int = 30) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("last window", "windows", "blocks", "effect", "low", "high", "p of ratio", "decision"):
        table.add_column(name, justify="left" if name in ("last window", "decision") else "right")
    for one in seen[-most:]:
        table.add_row(one.last_window, str(one.windows), str(one.blocks), _number(one.effect), _number(one.low),
                      _number(one.high), _number(one.sample_ratio_p), one.decision)  # fmt: skip
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _plain(one: "Experiment") -> dict[str, Any]:
    return {**msgspec.to_builtins(one), "end_window": one.end_window}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise SettingsError("Nobody is logged in here by name; say who decides with --who.") from None


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
