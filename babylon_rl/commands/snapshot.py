"""The commands `babylon-rl snapshot …`: thin; each calls one function and prints what it gave."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl import __version__
from babylon_rl.console import DatabaseOption, JsonOption, console, errors, print_table, settings_for

if TYPE_CHECKING:
    from babylon_rl.groups.rebuilding import Difference, Rebuilt
    from babylon_rl.groups.snapshot_listing import Listed, Shown

app = typer.Typer(help="Training sets: what each update was made of, and whether it can be made again.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The snapshot's id, or its beginning.")]
SHORT = 12  # characters of an id in a list
MOST_SHOWN = 20


@app.callback()
def snapshot() -> None:
    """Training sets: what each update was made of, and whether it can be made again."""


@app.command("list")
def snapshot_list(as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """The snapshots, the latest first."""
    from babylon_rl.groups.snapshot_listing import list_snapshots

    with _opened(database).connect() as connection:
        found = list_snapshots(connection)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
    elif found:
        print_table(_table(found))
    else:
        console.print("No snapshot yet: an update makes one. `babylon-rl train` starts a run.")


@app.command("show")
def snapshot_show(snapshot_id: IdArgument, as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """What is in a snapshot: windows, members by label and loss, tokens, and the checkpoints made of it."""
    from babylon_rl.groups.snapshot_listing import find_snapshot, show_snapshot

    with _opened(database).connect() as connection:
        found = show_snapshot(connection, find_snapshot(connection, snapshot_id))
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
    else:
        for line in _shown_lines(found):
            console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command("rebuild")
def snapshot_rebuild(snapshot_id: IdArgument, as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """Make a snapshot again from the rows it was made from, and compare. Writes nothing. Exit code 1: it differs."""
    from babylon_rl.groups.rebuilding import rebuild_snapshot
    from babylon_rl.groups.snapshot_listing import find_snapshot, list_snapshots

    with _opened(database).connect() as connection:
        whole = find_snapshot(connection, snapshot_id)
        found = rebuild_snapshot(connection, whole)
        (listed,) = list_snapshots(connection, whole)
    if as_json:
        print(json.dumps({**msgspec.to_builtins(found), "equal": found.equal}))
    else:
        for line in _rebuilt_lines(found, listed):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(0 if found.equal else 1)


def _opened(database: str | None) -> Any:
    from babylon_rl.loop import prepare

    with errors.status("opening the database"):
        return prepare(settings_for(database))


def _table(found: "list[Listed]") -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for name in ("snapshot", "run", "made", "windows", "members", "size", "checkpoints"):
        numbers = name in ("windows", "members", "size")
        table.add_column(
            name,
            justify="right" if numbers else "left",
            no_wrap=numbers or name in ("snapshot", "made"),
            overflow="fold",
        )
    for one in found:
        table.add_row(
            one.snapshot_id[:SHORT],
            one.training_run,
            f"{one.created_at:%Y-%m-%d %H:%M}",
            f"{one.windows:,}",
            "-" if one.members is None else f"{one.members:,}",
            _size(one.size),
            ", ".join(one.checkpoints) or "none",
        )
    return table


def _shown_lines(found: "Shown") -> Iterator[str]:
    listed = found.listed
    told = {
        "snapshot": listed.snapshot_id,
        "training run": listed.training_run,
        "made": f"{listed.created_at:%Y-%m-%d %H:%M} UTC by version {listed.code_version or 'unknown'}",
        "windows": f"{listed.windows:,} from {listed.first} to {listed.last}",
        "members": f"{found.members:,} with {found.decisions:,} decisions",
        "by label": _counts(found.labels),
        "by loss": _counts(found.losses),
        "tokens": f"{found.prompt_tokens:,} of prompts, {found.answer_tokens:,} of answers",
        "left out": _counts(found.left_out),
        "size": _size(listed.size),
        "seed": str(found.seed),
        "settings": json.dumps(found.settings, sort_keys=True),
        "checkpoints": ", ".join(listed.checkpoints) or "none",
        "can be rebuilt": "yes" if listed.rebuildable else "no: it was stored without what it was made from",
    }
    yield from (f"{name:<16}{value}" for name, value in told.items())


def _rebuilt_lines(found: "Rebuilt", listed: "Listed") -> Iterator[str]:
    short = found.snapshot_id[:SHORT]
    if found.equal:
        yield f"Equal: {short} of {found.groups:,} windows was made again, byte for byte."
        return
    if found.rebuilt_id == found.snapshot_id:
        yield f"What was made again is {short}, but what is stored under this id is damaged, or its rows are."
    else:
        made = "nothing" if found.rebuilt_id is None else found.rebuilt_id[:SHORT]
        yield f"It differs: {short} was stored, and {made} is made today."
    yield from (f"  {_difference(one)}" for one in found.differences[:MOST_SHOWN])
    more = len(found.differences) - MOST_SHOWN + found.more
    if more > 0:
        yield f"  and {more:,} more differences; --json shows up to 1,000"
    if listed.code_version != __version__:
        yield f"  It was made by version {listed.code_version or 'unknown'}, and this is {__version__}."


def _difference(one: "Difference") -> str:
    where = ", ".join(part for part in (one.window_id, one.trajectory_id) if part) or "the whole"
    values = "" if one.stored == one.rebuilt else f": stored {one.stored}, made again {one.rebuilt}"
    return f"{where}: {one.field}{values}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
