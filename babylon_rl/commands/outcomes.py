"""The commands `babylon-rl outcomes …`: thin; each calls one function and prints what it gave."""

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from babylon_rl.console import DatabaseOption, JsonOption, console, errors, settings_for

app = typer.Typer(help="What the market did in each hour: prices, resolutions, where they come from.")

MOST_SHOWN = 12
NEXT = "babylon-rl outcomes sync --scores"


@app.callback()
def outcomes() -> None:
    """What the market did in each hour: prices, resolutions, where they come from."""


@app.command("sync")
def outcomes_sync(
    hours: Annotated[int, typer.Option(min=0, max=100_000, help="Closed hours before this one to look at.")] = 24,
    all_unsettled: Annotated[
        bool,
        typer.Option(help="Also older windows of ours with a question that has resolved since."),
    ] = True,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Also compute scores and groups anew where outcomes changed under them."),
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring outcomes up to date: the last closed hours, and older windows whose questions resolved since.

    The open hour is left alone. A second run writes nothing; Ctrl-C keeps what is finished. Exit code 1: a window
    could not be computed.
    """
    from babylon_rl.loop import prepare
    from babylon_rl.outcomes.sync import sync_outcomes
    from babylon_rl.staleness import stale_rows

    settings = settings_for(database)
    opened = prepare(settings)
    said = errors if as_json else console
    with said.status("reading prices") as line:
        synced = sync_outcomes(
            opened, hours, all_unsettled, progress=lambda done, all_: line.update(f"{done} of {all_} windows")
        )
    with opened.connect() as connection:
        stale = stale_rows(connection, ["scored_trajectories"])
    rescore = sorted(stale.loc[stale["why"].str.startswith("the outcomes changed"), "window_id"])
    if scores and rescore:
        _score(settings, opened, rescore, said)
        rescore = []
    if as_json:
        print(json.dumps(_told(synced, rescore)))
    else:
        _tell(synced, rescore)
    if synced.failed:
        raise typer.Exit(1)


def _score(settings: Any, opened: Any, window_ids: list[str], said: Any) -> None:
    """Compute scores and groups of the windows anew, in Dagster runs of this process, a run a range."""
    from babylon_rl.console import progress, stage
    from babylon_rl.defs.jobs import DATA_ASSETS
    from babylon_rl.materializing import Materializer, dagster_environment, environment
    from babylon_rl.outcomes.sources import MOST_WINDOWS
    from babylon_rl.windows import neighbours

    with environment(dagster_environment(settings)), progress() as stages:
        begin = (lambda title, steps: lambda: None) if said is errors else stage(stages)
        materializer = Materializer(opened, begin, DATA_ASSETS[2:])
        for first, last in neighbours(window_ids, MOST_WINDOWS):
            materializer.materialize(first, last, f"score {first} to {last}", again=True)


def _told(synced: Any, rescore: list[str]) -> dict[str, Any]:
    return {
        "windows": len(synced.windows),
        "first": synced.windows[0] if synced.windows else None,
        "last": synced.windows[-1] if synced.windows else None,
        "late": list(synced.late),
        "changed": list(synced.changed),
        "written": synced.written,
        "sources": synced.sources,
        "unsettled": synced.unsettled,
        "failed": {window_id: {"error": e.error, "detail": e.detail} for window_id, e in synced.failed.items()},
        "scores_to_compute": rescore,
        "next": NEXT if rescore else None,
    }


def _tell(synced: Any, rescore: list[str]) -> None:
    if not synced.windows:
        console.print("No window to look at: nothing settled late, and no hours were asked for.")
        return
    late = f", {len(synced.late)} of them older ones in which something settled since" if synced.late else ""
    console.print(
        f"{len(synced.windows)} windows from {synced.windows[0]} to {synced.windows[-1]}{late}.", soft_wrap=True
    )
    for source, rows in synced.sources.items():
        console.print(f"  {rows:>7} rows from {escape(source)}", soft_wrap=True)
    if not synced.sources:
        console.print("  Nothing was traded or resolved in them.")
    if synced.unsettled:
        console.print(f"  {synced.unsettled} rows are not settled: their questions have no resolution yet.")
    changed = f"{len(synced.changed)} windows changed, {synced.written} rows written"
    console.print(f"{changed}: {_few(synced.changed)}." if synced.changed else "Nothing changed.", soft_wrap=True)
    for window_id, error in list(synced.failed.items())[:MOST_SHOWN]:
        errors.print(f"{window_id}: {error.error}: {error.detail}", soft_wrap=True, markup=False)
    if rescore:
        console.print(f"Scores rest on earlier outcomes in {len(rescore)} windows: {_few(rescore)}.", soft_wrap=True)
        console.print(f"Next: {NEXT}, or job materialize_windows of these windows in the UI.", soft_wrap=True)


def _few(window_ids: Any) -> str:
    more = len(window_ids) - MOST_SHOWN
    return ", ".join(window_ids[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
