"""The command `babylon-rl evaluate`: evaluates a checkpoint and says how it stands against what it must beat."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, log_told, print_table, progress, settings_for, stage
from babylon_rl.errors import SettingsError, TrainingError

if TYPE_CHECKING:
    import psycopg

    from babylon_rl.database.connect import Database
    from babylon_rl.evaluation.summary import Standing
    from babylon_rl.materializing import Stage
    from babylon_rl.settings import Settings

LOG = "babylon_rl.evaluation"
MOST_WINDOWS = 168  # of one Dagster run


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's id; `babylon-rl checkpoints` shows them.")],
    market: Annotated[
        bool, typer.Option("--market", help="Let it play the simulated market, beside what it must beat; minutes.")
    ] = False,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST..LAST", help="Ask it again what agents were asked in these windows, later than its training."
        ),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Take up what was recorded of it in the windows that it answered in.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint, and say how it stands against its base, its parent, what is promoted and fixed policies.

    Without an option it says what is stored and runs nothing. Evaluations are assets: `make ui` shows each with plots,
    under the window of the update (--market) or the window itself. The same is not asked twice.
    """
    from babylon_rl.evaluation.summary import standing
    from babylon_rl.loop import prepare
    from babylon_rl.materializing import dagster_environment, environment

    settings = settings_for(database)
    opened = prepare(settings)
    with opened.connect() as connection:
        wanted = _wanted(connection, settings, checkpoint, market, replay, online)
    if wanted:
        with environment(dagster_environment(settings)), log_told(LOG), progress() as stages:
            begin = _silent if as_json else stage(stages)
            for job, window_ids in wanted.items():
                _materialize(opened, begin, job, window_ids, checkpoint)
    with opened.connect() as connection:
        found = standing(connection, checkpoint)
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "standing": [one._asdict() for one in found]}))
        return
    if found:
        print_table(_table(found))
    console.print(_said(checkpoint, found, ran=bool(wanted)), soft_wrap=True, markup=False, highlight=False)


def _wanted(
    connection: "psycopg.Connection",
    settings: "Settings",
    checkpoint: str,
    market: bool,
    replay: str | None,
    online: bool,
) -> dict[str, list[str]]:
    """The windows that each job is to run over. TrainingError, SettingsError where there are none to run over."""
    from babylon_rl.loop import recent_enough
    from babylon_rl.training.runs import load_checkpoint

    found = load_checkpoint(connection, checkpoint)
    wanted: dict[str, list[str]] = {}
    if market:
        rows = connection.execute(
            """SELECT window_id FROM babylon_rl.trained_checkpoints
               WHERE checkpoint_id = %s AND updated AND superseded_at IS NULL ORDER BY window_id DESC LIMIT 1""",
            (checkpoint,),
        ).fetchall()
        if not rows:
            why = "it is a base model" if found.step == 0 else "no window has the update that made it"
            raise TrainingError(
                f"{checkpoint} has no place among the market's evaluations: {why}. A base model is a baseline of each "
                "checkpoint that was trained on it; `babylon-rl checkpoints` shows those."
            )
        wanted["evaluate_in_market"] = [rows[0][0]]
    if replay is not None:
        wanted["evaluate_by_replay"] = _later(connection, checkpoint, replay)
    if online:
        rows = connection.execute(
            """SELECT DISTINCT window_id FROM babylon_rl.scored_trajectories
               WHERE checkpoint = %s AND superseded_at IS NULL ORDER BY 1""",
            (checkpoint,),
        ).fetchall()
        if not rows and len(wanted) == 0:
            raise TrainingError(
                f"No scored window has a run that {checkpoint} answered. Agents must have played with it, and the "
                "windows be materialized; `babylon-rl windows` shows them."
            )
        wanted["evaluate_online"] = [window_id for (window_id,) in rows]
    for window_ids in filter(None, wanted.values()):
        recent_enough(window_ids[-1])
        if window_ids[0] < settings.partitions_start:
            raise SettingsError(
                f"{window_ids[0]} is before the first window that Dagster shows, {settings.partitions_start}. Set "
                "BABYLON_RL_PARTITIONS_START to it."
            )
    return {job: window_ids for job, window_ids in wanted.items() if window_ids}


def _later(connection: "psycopg.Connection", checkpoint: str, text: str) -> list[str]:
    """The materialized windows of a range. SettingsError where it is none, TrainingError where it is too early."""
    from babylon_rl.evaluation.replay import refuse_seen
    from babylon_rl.windows import parse_window_id

    first, dots, last = text.partition("..")
    last = last if dots else first
    for window_id in (first, last):
        parse_window_id(window_id)
    if last < first:
        raise SettingsError(f"There is no window in {text}: the first must not be later than the last.")
    refuse_seen(connection, checkpoint, first)
    rows = connection.execute(
        """SELECT window_id FROM babylon_rl.windows
           WHERE superseded_at IS NULL AND usable > 0 AND window_id BETWEEN %s AND %s ORDER BY 1""",
        (first, last),
    ).fetchall()
    if not rows:
        raise SettingsError(
            f"No materialized window from {first} to {last} has a usable run. `babylon-rl windows` shows those that "
            "have; `babylon-rl train` and `make ui` materialize others."
        )
    return [window_id for (window_id,) in rows]


def _materialize(opened: "Database", begin: "Stage", job: str, window_ids: list[str], checkpoint: str) -> None:
    from babylon_rl.materializing import Materializer
    from babylon_rl.windows import neighbours

    config = {"replay_evaluations": {"checkpoints": [checkpoint]}} if job == "evaluate_by_replay" else None
    materializer = Materializer(opened, begin, job=job, config=config)
    for first, last in neighbours(window_ids, MOST_WINDOWS):
        span = first if first == last else f"{first} to {last}"
        materializer.materialize(first, last, f"{job} {span}", again=True)


def _silent(title: str, steps: int):
    print(f"{title} …", file=sys.stderr)
    return lambda: None


def _table(found: "list[Standing]") -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("source", "against", "effect", "95 % interval", "windows", "unit", "valid"):
        table.add_column(name, justify="right" if name in ("effect", "windows", "valid") else "left", overflow="fold")
    for one in found:
        digits = 2 if one.unit.startswith("dollars") else 5
        interval = "-" if one.low is None or one.high is None else f"{one.low:+.{digits}f} to {one.high:+.{digits}f}"
        table.add_row(
            one.source,
            one.baseline,
            "-" if one.effect is None else f"{one.effect:+.{digits}f}",
            interval,
            str(one.windows),
            one.unit,
            "-" if one.valid is None else f"{one.valid:.0%}",
        )
    return table


def _said(checkpoint: str, found: "list[Standing]", ran: bool) -> str:
    if not found:
        more = "Nothing could be compared." if ran else "Say --market, --replay FIRST..LAST or --online."
        return f"Nothing is stored of {checkpoint}. {more}"
    clear = [f"{one.baseline} ({one.source})" for one in found if one.low is not None and one.low > 0]
    worse = [f"{one.baseline} ({one.source})" for one in found if one.high is not None and one.high < 0]
    said = f"{checkpoint} is clearly better than {', '.join(clear) or 'none'}"
    said += f", clearly worse than {', '.join(worse)}." if worse else "."
    return said + " An interval that holds zero is no evidence either way."
