"""Outcomes of a range of windows, each by itself, which of them may still change, and what was known of them when."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import pandas as pd
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.database.window_rows import WindowError, WindowRows, each_window
from babylon_rl.errors import DatabaseError
from babylon_rl.outcomes.outcomes import COLUMNS, FLEETING, HISTORIES, Row, window_outcomes, with_revision
from babylon_rl.outcomes.sources import MOST_WINDOWS, facts_of, readable

# What an earlier look knew, written once the hour was over.
_REMEMBERED = """
    SELECT window_id, instrument, kind, question, open, close, change, outcome, settled, source
    FROM babylon_rl.market_outcomes
    WHERE window_id = ANY(%(window_ids)s) AND superseded_at IS NULL AND coalesce(open, close) IS NOT NULL
        AND created_at >= (window_id::timestamp + interval '1 hour') AT TIME ZONE 'UTC'
        AND source LIKE ANY(%(fleeting)s)
"""


def outcome_windows(database: Database, window_ids: Sequence[str], now: datetime | None = None) -> WindowRows:
    """Rows of `market_outcomes`; `now` as in `outcomes_of`.

    A price that only a position or a maker showed stays known when they are traded on.
    """
    remembered = _remembered(database, window_ids)
    rows: list[Row] = []
    failed: dict[str, WindowError] = {}
    with database.connect_application() as connection:
        tables = readable(connection)
        ordered = sorted(set(window_ids))
        for at in range(0, len(ordered), MOST_WINDOWS):
            part = ordered[at : at + MOST_WINDOWS]
            facts = facts_of(connection, part, tables)
            made, wrong = each_window(part, lambda w, f=facts: kept(window_outcomes(f, w, now), remembered.get(w, ())))
            rows += [row for one in made for row in one]
            failed |= wrong
    return WindowRows(pd.DataFrame(rows, columns=COLUMNS), tuple(window_ids), failed)


def _remembered(database: Database, window_ids: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    values = {"window_ids": list(window_ids), "fleeting": [f"{source}%" for source in FLEETING]}
    with database.connect() as connection:
        cursor = connection.execute(_REMEMBERED, values)
        names = [column.name for column in cursor.description or ()]
        for told in cursor:
            row = dict(zip(names, told, strict=True))
            found.setdefault(row["window_id"], []).append(row)
    return found


def kept(rows: list[Row], remembered: Iterable[Row]) -> list[Row]:
    """The window's rows, with the prices of `remembered` where they say more.

    Positions and makers tell less of an hour the later one looks: of two looks at them the earlier one stands.
    """
    before = {row["instrument"]: row for row in remembered}
    merged, changed = [], False
    for row in rows:
        earlier = before.get(row["instrument"])
        if earlier and not row["source"].startswith(HISTORIES) and _says_more(earlier, row):
            prices = ("open", "close", "change", "source", *(["outcome"] if row["kind"] == "ticker" else []))
            stood, row = row, row | {name: earlier[name] for name in prices}
            changed |= row != stood
        merged.append(row)
    return with_revision(merged) if changed else rows


def _says_more(earlier: Row, row: Row) -> bool:
    before, after = ((one["close"] is not None, one["open"] is not None) for one in (earlier, row))
    return before > after or (before == after and row["source"].startswith(FLEETING))


def provisional(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Outcomes that are not settled: window_id, instrument, kind, close, source."""
    statement = current_rows(market_outcomes, window_ids).where(market_outcomes.c.settled.is_(False))
    return read_frame(connection, statement)[["window_id", "instrument", "kind", "close", "source"]]


def outcomes_as_of(connection: psycopg.Connection, window_ids: Sequence[str], moment: datetime) -> pd.DataFrame:
    """Rows of `market_outcomes` that were current at `moment` (aware): what was known then, though more is by now."""
    if moment.tzinfo is None:
        raise DatabaseError(f"{moment!r} has no time zone. Name the moment in UTC, for example 2025-01-15T12:00+00:00.")
    columns = market_outcomes.c
    statement = (
        sa.select(*(columns[name] for name in COLUMNS), columns.created_at, columns.superseded_at)
        .where(columns.window_id == sa.any_(sa.literal(list(window_ids), ARRAY(sa.Text))))
        .where(columns.created_at <= moment)
        .where(columns.superseded_at.is_(None) | (columns.superseded_at > moment))
        .order_by(columns.window_id, columns.row_id)
    )
    return read_frame(connection, statement)
