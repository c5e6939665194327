"""History of the asset tables, and the only writer of them.

The rows of a window are replaced together: the same content writes nothing, other content marks the current rows
superseded and adds the new ones at the same moment of the same transaction. Nothing is deleted here.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import converted_rows, copy_converted
from babylon_rl.errors import DatabaseError
from babylon_rl.windows import parse_window_id

HISTORY_COLUMNS = ("row_id", "digest", "created_at", "superseded_at")
# Beyond this many, one lock on the table: the server's lock table is finite.
MOST_WINDOW_LOCKS = 200


@dataclass(frozen=True)
class Replaced:
    """What a write did: rows written and superseded, and the windows whose content was there already."""

    written: int
    superseded: int
    unchanged: tuple[str, ...]


def current_rows(table: sa.Table, window_ids: Sequence[str] | None = None) -> sa.Select:
    """SELECT of the rows that are not superseded, of the given windows or of all: data columns, window and digest."""
    shown = [column for column in table.columns if column.name not in HISTORY_COLUMNS or column.name == "digest"]
    statement = sa.select(*shown).where(table.c.superseded_at.is_(None))
    if window_ids is not None:
        wanted = sa.literal(list(window_ids), ARRAY(sa.Text))
        statement = statement.where(table.c.window_id == sa.any_(wanted))
    return statement.order_by(table.c.window_id, table.c.row_id)


def replace_windows(
    connection: psycopg.Connection, table: sa.Table, window_ids: Sequence[str], frame: pd.DataFrame
) -> Replaced:
    """Make `frame` the current rows of `window_ids`, within the caller's transaction.

    frame: columns of `table` without the history's, `window_id` among them; a window of `window_ids` without rows
    loses its current ones. DatabaseError where a row belongs to no window of `window_ids`, WindowIdError for a bad
    id. Writers of one window wait for each other.
    """
    wanted = sorted(set(window_ids))
    for window_id in wanted:
        parse_window_id(window_id)
    columns, rows = _rows_by_window(table, wanted, frame)
    digests = {window_id: _digest(columns, rows[window_id]) for window_id in rows}
    moment = _lock(connection, table, wanted)
    current = _current_digests(connection, table, wanted)
    unchanged = tuple(w for w in wanted if current.get(w) == ((digests[w], len(rows[w])) if w in rows else None))
    changed = [w for w in wanted if w not in set(unchanged)]
    if not changed:
        return Replaced(0, 0, unchanged)
    superseded = connection.execute(
        sql.SQL("UPDATE {} SET superseded_at = %s WHERE window_id = ANY(%s) AND superseded_at IS NULL").format(
            _identifier(table)
        ),
        (moment, changed),
    ).rowcount
    history = [table.c.digest, table.c.created_at]
    written = copy_converted(
        connection,
        table,
        [*columns, *history],
        ((*row, digests[w], moment) for w in changed for row in rows.get(w, ())),
    )
    return Replaced(written, superseded, unchanged)


def content_version(table: sa.Table, window_ids: Sequence[str], frame: pd.DataFrame) -> str:
    """SHA-256 over the digests under which `replace_windows` would store the windows; the same for the same rows."""
    wanted = sorted(set(window_ids))
    columns, rows = _rows_by_window(table, wanted, frame)
    told = "\n".join(f"{w} {_digest(columns, rows[w]) if w in rows else ''}" for w in wanted)
    return hashlib.sha256(told.encode()).hexdigest()


def _rows_by_window(
    table: sa.Table, wanted: Sequence[str], frame: pd.DataFrame
) -> tuple[list[sa.Column], dict[str, list[tuple[Any, ...]]]]:
    """The table's columns that the frame has, and its rows as COPY writes them, by window."""
    if frame.empty:
        return [], {}
    names = [str(name) for name in frame.columns]
    wrong = [name for name in names if name not in table.c or name in HISTORY_COLUMNS]
    if wrong or "window_id" not in names:
        raise DatabaseError(
            f"Rows for {table.name} need window_id and columns of the table, without those that keep its history. "
            f"Not among them: {', '.join(wrong) or 'window_id'}."
        )
    columns = [table.c[name] for name in names]
    at = names.index("window_id")
    rows: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in converted_rows(columns, frame):
        rows[row[at]].append(row)
    foreign = sorted(str(window_id) for window_id in rows.keys() - set(wanted))
    if foreign:
        raise DatabaseError(
            f"{table.name}: rows of {', '.join(foreign[:5])} came with a write of other windows "
            f"({', '.join(wanted[:5])}). A run writes its own windows only."
        )
    return columns, dict(rows)


def _digest(columns: Sequence[sa.Column], rows: Sequence[Sequence[Any]]) -> str:
    """SHA-256 of the rows, whatever their order and that of the columns; NULL and an absent column are alike."""
    # JSON is canonical already: `encode_json` sorts keys.
    order = sorted(range(len(columns)), key=lambda i: columns[i].name)
    named = [(i, str(columns[i].name)) for i in order]
    documents = [
        msgspec.json.encode([(name, _exact(row[i])) for i, name in named if row[i] is not None]) for row in rows
    ]
    return hashlib.sha256(b"\n".join(sorted(documents))).hexdigest()


def _exact(value: Any) -> Any:
    """msgspec writes infinity as null, which would make two infinities alike."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _lock(connection: psycopg.Connection, table: sa.Table, window_ids: Sequence[str]) -> datetime:
    """Keep other writers of these windows out until the transaction ends; the moment from which we are alone."""
    many = len(window_ids) > MOST_WINDOW_LOCKS
    take_table = "pg_advisory_xact_lock" if many else "pg_advisory_xact_lock_shared"
    connection.execute(
        sql.SQL("SELECT {}(hashtextextended(%s, 0))").format(sql.Identifier(take_table)), (table.fullname,)
    )
    if not many:
        keys = [f"{table.fullname}:{window_id}" for window_id in window_ids]
        # One order for all writers, so that none waits in a circle.
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(key, 0)) FROM unnest(%s::text[]) key", (keys,)
        )
    # Not now(), the start of the transaction: a writer that was waited for may have written after that.
    (moment,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert moment is not None
    return moment


def _current_digests(
    connection: psycopg.Connection, table: sa.Table, window_ids: Sequence[str]
) -> dict[str, tuple[str, int]]:
    found = connection.execute(
        sql.SQL(
            "SELECT window_id, min(digest), count(*) FROM {} "
            "WHERE window_id = ANY(%s) AND superseded_at IS NULL GROUP BY window_id"
        ).format(_identifier(table)),
        (list(window_ids),),
    )
    return {window_id: (digest, count) for window_id, digest, count in found}


def _identifier(table: sa.Table) -> sql.Identifier:
    return sql.Identifier(*([table.schema] if table.schema else []), table.name)
