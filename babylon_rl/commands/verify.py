"""`babylon-rl verify`: the first command on one's own database. What is found in it, and what is missing to train."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from babylon_rl.commands.counting import counting
from babylon_rl.console import DatabaseOption, JsonOption, console, settings_for

if TYPE_CHECKING:
    from babylon_rl.database.catalogue import TableFound
    from babylon_rl.recording.findings import MarketFound, RowsFound, Verification, WindowsFound

MOST_WINDOWS = 5  # that are told one by one


def verify(
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, help="Only the newest N rows, in whole windows. \\[default: all]"),
    ] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Say whether a database is ready for training, and what is missing. Writes nothing. Exit code 1: not ready."""
    from babylon_rl.recording.verification import verify as look

    with counting() as progress:
        found = look(settings_for(database), datetime.now(UTC), sample, progress)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for line in lines(found):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(0 if found.ready else 1)


def lines(found: "Verification") -> Iterator[str]:
    """The verification as a person reads it."""
    if found.server is not None:
        yield from _database_lines(found)
    if found.catalogue is not None:
        yield from _titled("Tables", map(_table_line, found.catalogue.tables))
        if found.catalogue.first_system:
            yield f"  tables of the first system, which nothing reads: {', '.join(found.catalogue.first_system)}"
    if found.rows is not None:
        yield from _titled("Rows", _row_lines(found.rows))
    if found.windows is not None and found.windows.listed:
        yield from _titled("Windows", _window_lines(found.windows))
    if found.market is not None:
        yield from _titled("Market in the recorded hours", _market_lines(found.market))
    if found.notes:
        yield from _titled("Good to know", (f"- {note}" for note in found.notes))
    yield ""
    yield found.verdict
    for number, missing in enumerate(found.missing, start=1):
        yield f"  {number}. {missing.what}"
        yield f"     {missing.remedy}"
    if found.ready and found.windows is not None:
        yield "  Next: babylon-rl windows --live --ready"


def _titled(title: str, told: Iterator[str] | map) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in told)


def _database_lines(found: "Verification") -> Iterator[str]:
    server, ours = found.server, found.our_tables
    assert server is not None and ours is not None
    yield f"Database {found.url}"
    named = f"database {server.database}, role {server.role}, schema {server.schema or '-'}"
    yield f"  PostgreSQL {server.version}, {named}"
    states = {
        "there": "they are there",
        "absent": "`babylon-rl db migrate` makes them",
        "unreadable": "this role may not read them, or they are older: `babylon-rl db migrate`",
        "unreachable": "it is not reached, so what we keep of calls is not counted",
    }
    yield f"  our own tables (schema babylon_rl): {ours.where}; {states[ours.state]}"
    if found.catalogue is not None:
        may = {True: "may", False: "may not"}
        insert, make = may[found.catalogue.table("trajectories").insertable], may[server.may_create_schema]
        yield f"  this role {insert} insert trajectories and {make} make schemas; verify does neither"
        yield f"  migrated by Prisma: {'yes' if found.catalogue.prisma else 'no sign of it'}"


def _table_line(table: "TableFound") -> str:
    from babylon_rl.database.catalogue import PURPOSE

    told = []
    if not table.present:
        told.append("missing" + (f" (schema {', '.join(table.elsewhere)} has one)" if table.elsewhere else ""))
    elif not table.readable:
        told.append("SELECT is not granted")
    if table.missing:
        told.append(f"without {', '.join(table.missing)}")
    told += [f"{one.column} is {one.found}, not {one.expected}" for one in table.differs]
    if table.snake_case:
        told.append(f"ok; add-on columns that nothing reads: {', '.join(table.snake_case)}")
    return f"{table.table:<24}{PURPOSE[table.table]:<40}{'; '.join(told) or 'ok'}"


def _row_lines(rows: "RowsFound") -> Iterator[str]:
    among = "" if rows.newest is None else f" (the newest {rows.newest:,}, in whole windows)"
    told = {
        "recorded": f"{rows.recorded:,}{among}",
        "by producer": _counts(rows.by_producer),
        "rejected": _counts(rows.rejected),
        "scorable": f"{rows.scorable:,}",
        "not trainable": _counts(rows.not_trainable),
        "trainable": f"{rows.trainable:,}",
        "with text": f"{_share(rows.text_share)} of the scorable",
        "with log-probabilities": f"{_share(rows.logprobs_share)} of the scorable",
    }
    yield from (f"{name:<24}{value}" for name, value in told.items())


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"


def _window_lines(windows: "WindowsFound") -> Iterator[str]:
    if windows.count:
        yield f"{windows.count:,} from {windows.first} to {windows.last}"
        most = f"the most in one is {windows.most_agents}"
        yield f"{windows.ready:,} ready: over, with at least {windows.min_agents} agents ({most})"
        yield f"{windows.to_train_on:,} of them with runs that have text and log-probabilities"
    named = [one for one in windows.listed if one.window_id is not None]
    for one in named[-MOST_WINDOWS:]:
        counts = f"{one.recorded:,} rows, {one.scorable:,} scorable, {one.trainable:,} trainable"
        yield f"{one.window_id}: {counts}; {'ready, ' if one.ready else ''}{one.reason}"
    if windows.without_window:
        yield f"without a window: {windows.without_window:,}"


def _market_lines(market: "MarketFound") -> Iterator[str]:
    told = {True: "yes", False: "none", None: "cannot be read"}
    yield f"prices of tickers {told[market.prices]}, probabilities of questions {told[market.probabilities]}"
    yield f"resolved questions {told[market.resolved_questions]}, recorded outcomes {told[market.recorded_outcomes]}"
