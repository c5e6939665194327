"""`babylon-rl rescore`: scores of a range anew under a scorer, and what depends on them, as the UI's assets."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from babylon_rl.commands.score import ScorerOption, one_line
from babylon_rl.console import DatabaseOption, JsonOption, console, judging_told, progress, settings_for, stage
from babylon_rl.errors import EmptyWindowError, SettingsError, TrainingError

if TYPE_CHECKING:
    from babylon_rl.database.connect import Database
    from babylon_rl.materializing import Stage
    from babylon_rl.scoring.rescored import Rescored
    from babylon_rl.settings import Settings

# Windows of one Dagster run: an interruption costs no more than the run it falls into.
MOST_WINDOWS = 168
# What rests on scores, in the order in which it is computed, and what scores rest on.
SCORES = ("scored_trajectories", "judge_calibration", "art_groups")
BEFORE = ("windows", "market_outcomes")


def rescore(
    first: Annotated[str, typer.Option("--from", metavar="WINDOW", help="First window.")],
    last: Annotated[str, typer.Option("--to", metavar="WINDOW", help="Last window.")],
    scorer: ScorerOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Score recorded windows anew under a scorer, and compute their groups from that; earlier rows stay as history.

    Windows whose scores come out the same are left as they are. Exit code 1: a window could not be scored.
    """
    from babylon_rl.loop import prepare, recent_enough
    from babylon_rl.scoring.scorers import scorer_of
    from babylon_rl.windows import parse_window_id

    if parse_window_id(last) < parse_window_id(first):
        raise SettingsError(f"There is no window from {first} to {last}: --to must not be before --from.")
    recent_enough(last)
    settings = settings_for(database)
    name = scorer or settings.scorer
    opened = prepare(settings)
    scorer_of(name, settings, opened)
    changes = _rescore(settings, opened, first, last, name, as_json)
    if as_json:
        print(msgspec.json.encode({"scorer": name, "windows": changes}).decode())
    else:
        for line in lines(changes, name, settings.scorer):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if any(one.failed for one in changes):
        raise typer.Exit(1)


def _rescore(
    settings: "Settings", opened: "Database", first: str, last: str, scorer: str, silent: bool
) -> "list[Rescored]":
    from babylon_rl.materializing import dagster_environment, environment
    from babylon_rl.scoring.rescored import rescored, standing, windows_to_score

    with opened.recordings() as recordings:
        known, unknown = windows_to_score(recordings, first, last)
        before = standing(recordings.ours, known)
    window_ids = sorted([*known, *unknown])
    if not window_ids:
        raise EmptyWindowError(
            f"Nothing is recorded from {first} to {last}. `babylon-rl windows --live` lists the windows in which "
            "something is."
        )
    if window_ids[0] < settings.partitions_start:
        raise SettingsError(
            f"{window_ids[0]} is before the first window that Dagster shows, {settings.partitions_start}. Set "
            "BABYLON_RL_PARTITIONS_START to it, or begin later."
        )
    if not silent:
        late = f", {len(unknown):,} of them materialized for the first time" if unknown else ""
        console.print(f"Scored by {scorer}: {_windows(len(window_ids))}{late}.", highlight=False, soft_wrap=True)
    variables = {**dagster_environment(settings), "BABYLON_RL_SCORER": scorer}
    with environment(variables), judging_told(), progress() as stages:
        begin = (lambda title, steps: lambda: None) if silent else stage(stages)
        _materialize(opened, begin, unknown, BEFORE)
        # In their order: a judge's calibration and the agents' baselines rest on earlier windows.
        _materialize(opened, begin, window_ids, SCORES)
    with opened.connect() as connection:
        after = standing(connection, window_ids)
        failed = _failures(connection, window_ids)
    return [rescored(one, before.get(one), after.get(one), failed.get(one)) for one in window_ids]


def _materialize(opened: "Database", begin: "Stage", window_ids: Sequence[str], assets: Sequence[str]) -> None:
    """The assets of the windows, in a Dagster run a range; windows that fail by themselves are told by their rows."""
    from babylon_rl.materializing import ASSETS, Materializer
    from babylon_rl.windows import neighbours, window_range

    if not window_ids:
        return
    materializer = Materializer(opened, begin, [name for name in ASSETS if name in assets])
    for first, last in neighbours(window_ids, MOST_WINDOWS):
        try:
            materializer.materialize(first, last, f"score {first} to {last}", again=True)
        except TrainingError:
            with opened.connect() as connection:
                if set(window_range(first, last)) - set(_failures(connection, window_ids)):
                    raise


def _failures(connection: Any, window_ids: Sequence[str]) -> dict[str, str]:
    """Why windows were not computed, by the first asset that failed there."""
    from babylon_rl.database.window_rows import open_failures

    told: dict[str, str] = {}
    for row in open_failures(connection, (*BEFORE, *SCORES), window_ids).itertuples():
        told.setdefault(row.window_id, f"{row.asset}: {row.detail}")
    return told


def lines(changes: "Sequence[Rescored]", scorer: str, default: str) -> Iterator[str]:
    """What changed, as a person reads it: a window by a window, and the sum."""
    for one in changes:
        yield from _window_lines(one)
    written, unchanged = sum(one.written for one in changes), sum(one.unchanged for one in changes)
    failed = sum(one.failed is not None for one in changes)
    said = f"{written:,} rows written, {unchanged:,} unchanged in {_windows(len(changes))}"
    yield f"{said}; {_windows(failed)} failed." if failed else f"{said}."
    known = [one.rank_correlation for one in changes if one.rank_correlation is not None and one.written]
    if known:
        mean = sum(known) / len(known)
        yield f"Rank correlation with the scores before, mean of {_windows(len(known))}: {mean:+.2f}."
    if any(one.written and one.mean_before is not None for one in changes):
        yield "Rows that were replaced stay in scored_trajectories, with the scorer's name and version."
    if scorer != default:
        yield f"What is computed later is scored by {default}; BABYLON_RL_SCORER={scorer} changes that."


def _windows(count: int) -> str:
    return "1 window" if count == 1 else f"{count:,} windows"


def _window_lines(one: "Rescored") -> Iterator[str]:
    if one.failed is not None:
        yield f"{one.window_id}  not computed: {one_line(one.failed)}"
        return
    if one.mean_after is None:
        yield f"{one.window_id}  no usable run"
        return
    if one.unchanged:
        yield f"{one.window_id}  {one.unchanged} rows unchanged, {one.scorer_after}, mean reward {one.mean_after:+.5f}"
        return
    now = f"{one.scorer_after} {one.mean_after:+.5f}"
    means = now if one.mean_before is None else f"{one.scorer_before} {one.mean_before:+.5f} -> {now}"
    alike = "" if one.rank_correlation is None else f", rank correlation {one.rank_correlation:+.2f}"
    yield f"{one.window_id}  {one.written} rows written, mean reward {means}{alike}"
    if one.best is None and one.written > 1:
        yield "  no best and no worst: all rewards are equal"
    for name, run in (("best", one.best), ("worst", one.worst)):
        if run is not None:
            yield f"  {name:<5}  {one_line(run.agent_id)}: {one_line(run.reason)}"
