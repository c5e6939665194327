"""`babylon-rl windows`: which windows are ready to be trained on, and why the others are not."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.commands.counting import counting
from babylon_rl.console import DatabaseOption, JsonOption, console, print_table, settings_for
from babylon_rl.settings import Settings

if TYPE_CHECKING:
    from babylon_rl.recording.listing import ListedWindow


def windows(
    ready: Annotated[bool, typer.Option("--ready", help="Only windows that are ready.")] = False,
    min_agents: Annotated[
        int | None, typer.Option(min=1, help="Agents a ready window has. \\[default: MIN_AGENTS_PER_WINDOW]")
    ] = None,
    lookback_hours: Annotated[float | None, typer.Option(min=0, help="Only the last so many hours.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Look at the recordings themselves, not at what was materialized.")
    ] = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """List windows: agents, rows by what they can be used for, and whether they are ready."""
    settings = settings_for(database)
    least = settings.min_agents_per_window if min_agents is None else min_agents
    look = _live if live else _materialized
    found = look(settings, least, datetime.now(UTC), lookback_hours)
    shown = [one for one in found if one.ready or not ready]
    if as_json:
        print(msgspec.json.encode(shown).decode())
        return
    _tell(shown, found, live, lookback_hours)


def _materialized(
    settings: Settings, min_agents: int, now: datetime, lookback_hours: float | None
) -> "list[ListedWindow]":
    from babylon_rl.database.connect import open_materialized
    from babylon_rl.recording.listing import materialized_windows

    with open_materialized(settings).connect() as connection:
        return materialized_windows(connection, min_agents, now, lookback_hours)


def _live(settings: Settings, min_agents: int, now: datetime, lookback_hours: float | None) -> "list[ListedWindow]":
    from babylon_rl.database.connect import open_application
    from babylon_rl.recording.listing import first_window, live_windows
    from babylon_rl.recording.survey import survey

    with open_application(settings).recordings_found() as recordings, counting() as progress:
        rows = survey(recordings, first=first_window(now, lookback_hours))
        return live_windows(rows, min_agents, now, progress)


def _tell(shown: "list[ListedWindow]", found: "list[ListedWindow]", live: bool, looked_back: float | None) -> None:
    quiet = [one for one in shown if one.recorded == 0]
    if len(shown) > len(quiet):
        print_table(_table(one for one in shown if one.recorded))
    named = [one for one in found if one.window_id is not None]
    rows = sum(one.recorded for one in found)
    said = f"{len(named):,} windows, {sum(one.ready for one in named):,} ready; {rows:,} rows: "
    said += f"{sum(one.scorable for one in found):,} scorable, {sum(one.trainable for one in found):,} trainable, "
    said += f"{sum(sum(one.rejected.values()) for one in found):,} rejected."
    if quiet:
        said += f" {len(quiet):,} hours in which nothing was recorded are not shown."
    console.print(said, soft_wrap=True, highlight=False)
    console.print(f"Next: {_next(found, live, looked_back)}", soft_wrap=True, highlight=False, markup=False)


def _table(windows) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("window", "agents", "rows", "scorable", "trainable"):
        table.add_column(name, justify="left" if name == "window" else "right", no_wrap=True)
    table.add_column("ready", no_wrap=True)
    table.add_column("reason; rows that are rejected, or scored and not trained on", overflow="fold")
    for one in windows:
        counts = (f"{number:,}" for number in (one.agents, one.recorded, one.scorable, one.trainable))
        refused = ", ".join(
            f"{reason} {number:,}" for reason, number in (*one.rejected.items(), *one.not_trainable.items())
        )
        table.add_row(
            one.window_id or "(none)",
            *counts,
            "yes" if one.ready else "no",
            "; ".join(filter(None, (one.reason, refused))),
        )
    return table


def _next(found: "list[ListedWindow]", live: bool, looked_back: float | None = None) -> str:
    ready = sorted(one.window_id for one in found if one.ready and one.window_id)
    if not found and looked_back is not None:
        return f"`babylon-rl windows{' --live' if live else ''}` lists older ones too, without --lookback-hours."
    if not found and not live:
        return "`babylon-rl windows --live` looks at the recordings themselves; `make ui` materializes them."
    if not found:
        return "`babylon-rl verify` says what is missing."
    trainable = [one.window_id for one in found if one.ready and one.trainable >= 2 and one.window_id]
    if trainable:
        return f"babylon-rl train --from {min(trainable)} --to {max(trainable)}"
    return (
        "`babylon-rl verify` says what is missing." if ready or live else "`babylon-rl windows --live`, or `make ui`."
    )
