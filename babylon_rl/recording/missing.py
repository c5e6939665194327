"""What stands between a database and training, as the shortest list with remedies; and what is good to know of it.

What follows from something that is missing already is not told again.
"""

from collections.abc import Iterable, Mapping

from babylon_rl.database.catalogue import PURPOSE, REQUIRED, Catalogue, Server, TableFound
from babylon_rl.recording.findings import MarketFound, Missing, RowsFound, WindowsFound

RECORDING = "docs/recording.md"
MOST_REASONS = 3  # that a sentence names


def missing_of(
    server: Server,
    catalogue: Catalogue,
    rows: RowsFound | None,
    windows: WindowsFound | None,
    failure: str | None,
) -> list[Missing]:
    """The list; empty where the database is ready. `failure`: why the rows could not be looked at, though allowed."""
    for name in REQUIRED:
        if missing := _of_table(server, catalogue.table(name)):
            return [missing]
    if failure is not None:
        return [
            Missing("The recorded rows cannot be read.", f"PostgreSQL says: {failure}. Mend that, and verify again.")
        ]
    if rows is None or windows is None:
        return []
    if not rows.recorded and catalogue.table("trajectories").row_security:
        return [
            Missing(
                f"Role {server.role} sees no row of trajectories, whose row security may hide them.",
                f"Have its owner run: {policy(server.schema or 'public', ['trajectories'], server.role)}",
            )
        ]
    if not rows.recorded:
        return [
            Missing(
                "Nothing is recorded: trajectories has no row.",
                "Let the application record its agents (RECORD_AGENT_TRAJECTORIES=true), or import recordings: "
                f"{RECORDING}.",
            )
        ]
    if not rows.scorable:
        return [
            Missing(
                f"None of {_rows(rows.recorded)} can be used ({_told(rows.rejected)}).",
                f"What a usable row holds is in {RECORDING}; `babylon-rl windows --live` counts the reasons by window.",
            )
        ]
    found = (_of_text(rows), _of_agents(windows))
    missing = [one for one in found if one is not None]
    if not missing and not windows.to_train_on:
        missing.append(
            Missing(
                f"No window with {windows.min_agents} agents has two runs with text and log-probabilities.",
                f"Record the LLM calls of all agents that play in one hour: {RECORDING}.",
            )
        )
    return missing


def _of_table(server: Server, table: TableFound) -> Missing | None:
    name = table.table
    if not table.present:
        return _absent(server, table)
    if not table.readable:
        return Missing(
            f"Role {server.role} may not read {name}.",
            f"Have its owner run: {grant(server.schema or 'public', [name], server.role)}",
        )
    if table.missing:
        return Missing(
            f"{name} has no column {_columns(table.missing)}.",
            "Let the application bring its schema up to date (`prisma migrate deploy`).",
        )
    if table.differs:
        told = "; ".join(f'"{one.column}" is {one.found} and not {one.expected}' for one in table.differs)
        return Missing(
            f"Columns of {name} have other types than the application gives them: {told}.",
            f"Name a database or a view of {name} with the application's types.",
        )
    return None


def _absent(server: Server, table: TableFound) -> Missing:
    name, path = table.table, [part.strip().strip('"') for part in server.search_path.split(",")]
    closed = next((schema for schema in table.elsewhere if schema in path), None)
    if closed is not None:
        return Missing(
            f"Role {server.role} may not use schema {closed}, which holds {name}.",
            f"Have its owner run: {grant(closed, [name], server.role)}",
        )
    if table.elsewhere:
        schema = table.elsewhere[0]
        return Missing(
            f"{name} is in schema {schema}, and {', '.join(path)} is looked in.",
            f"Add ?schema={schema} to the database's URL, as Prisma spells it.",
        )
    return Missing(
        f"There is no table {name} in {server.database} ({', '.join(path)}).",
        "Name the application's own database in DATABASE_URL, with ?schema=... where its tables are not in public. "
        "To see training on a simulated market first: `make demo`.",
    )


def grant(schema: str, tables: Iterable[str], role: str) -> str:
    """The statement that lets a role read the tables."""
    named = ", ".join(f"{_quoted(schema)}.{_quoted(table)}" for table in tables)
    return f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {_quoted(role)}; GRANT SELECT ON {named} TO {_quoted(role)};"


def policy(schema: str, tables: Iterable[str], role: str) -> str:
    """The statements that let a role see every row of tables with row security."""
    named = f"FOR SELECT TO {_quoted(role)} USING (true);"
    return " ".join(f"CREATE POLICY babylon_rl ON {_quoted(schema)}.{_quoted(table)} {named}" for table in tables)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _of_text(rows: RowsFound) -> Missing | None:
    if not rows.with_text:
        return Missing(
            f"No prompt or answer is recorded (llmCalls is empty in all {_rows(rows.scorable)} that can be scored).",
            f"The agents' LLM calls must be recorded: {RECORDING}. Until then windows can be scored and not trained.",
        )
    if not rows.trainable:
        return Missing(
            f"The text of no row can be trained on ({_told(rows.not_trainable)}).",
            f"What the recorded calls must hold is in {RECORDING}.",
        )
    if not rows.with_logprobs:
        return Missing(
            f"No log-probabilities are recorded ({_rows(rows.with_text)} have text without them): the loss weighs each "
            "answer by the probability with which it was sampled.",
            "Let the agents play with a model that `babylon-rl serve` answers for, and record its token ids and "
            f"log-probabilities: {RECORDING}. Until then windows can be scored and not trained.",
        )
    return None


def _of_agents(windows: WindowsFound) -> Missing | None:
    if windows.ready:
        return None
    return Missing(
        f"No hour that is over has {windows.min_agents} agents with a usable row (the most in one is "
        f"{windows.most_agents}; {windows.count} windows).",
        f"Let {windows.min_agents} agents play in the same hour, or set MIN_AGENTS_PER_WINDOW.",
    )


def notes_of(
    server: Server,
    catalogue: Catalogue,
    windows: WindowsFound | None,
    market: MarketFound | None,
    groups_per_update: int,
) -> list[str]:
    """What is good to know and keeps nobody from training."""
    others = [table for table in catalogue.tables if table.table not in REQUIRED]
    notes = [f"{table.table} ({PURPOSE[table.table]}): {told}." for table in others if (told := _told_of(table))]
    closed = [table.table for table in others if table.present and not table.readable]
    if closed:
        notes.append(f"To have them read: {grant(server.schema or 'public', closed, server.role)}")
    if hidden := [table.table for table in catalogue.tables if table.row_security]:
        told = policy(server.schema or "public", hidden, server.role)
        notes.append(f"Row security may hide rows of {', '.join(hidden)}. To have all read: {told}")
    if market is not None and {market.prices, market.probabilities, market.recorded_outcomes} == {False}:
        notes.append(
            "No price of the recorded hours is there: rewards are P&L without the market's own move taken off."
        )
    if windows is not None and 0 < windows.to_train_on < groups_per_update:
        notes.append(
            f"{windows.to_train_on} windows can be trained on; an update of `babylon-rl train --follow` takes "
            f"{groups_per_update} (BABYLON_RL_GROUPS_PER_UPDATE), `babylon-rl train --from WINDOW --to WINDOW` any."
        )
    if windows is not None and windows.without_window:
        notes.append(f"Without a window: {_rows(windows.without_window)}; `babylon-rl windows --live` says why.")
    return notes


def _told_of(table: TableFound) -> str | None:
    """What is wrong with a table that is not required."""
    if not table.present:
        where = f"; schema {table.elsewhere[0]} has one" if table.elsewhere else ""
        return f"not there{where}"
    if not table.readable:
        return "may not be read"
    if table.missing:
        return f"has no column {_columns(table.missing)}"
    if table.differs:
        return ", ".join(f'"{one.column}" is {one.found} and not {one.expected}' for one in table.differs)
    return None


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _told(counts: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{reason} {number:,}" for reason, number in ordered[:MOST_REASONS])
    return told + (f", {len(ordered) - MOST_REASONS} more reasons" if len(ordered) > MOST_REASONS else "")
