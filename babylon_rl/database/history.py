"""History of the asset tables, and the only writer of them.

The rows of a window are replaced together: the same content writes nothing, other content marks the current rows
superseded and adds the new ones at the same moment of the same transaction. Nothing is deleted here.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import copy_encoded
from babylon_rl.database.values import UnfitValue
from babylon_rl.database.wire import NULL, fields, row_head, whole_rows
from babylon_rl.errors import DatabaseError
from babylon_rl.windows import parse_window_id

HISTORY_COLUMNS = ("row_id", "digest", "created_at", "superseded_at")
# Beyond this many, one lock on the table: the server's lock table is finite.
MOST_WINDOW_LOCKS = 200
# Rows that are encoded at a time.
BATCH_ROWS = 2_000


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


@dataclass(frozen=True)
class EncodedWindows:
    """Rows of a run's windows as COPY takes them, with the digest of each window that has any.

    `columns`: those of the rows, by name. A window of `window_ids` that is not in `rows` has none.
    """

    table: sa.Table
    window_ids: tuple[str, ...]
    columns: tuple[sa.Column, ...]
    rows: Mapping[str, list[bytes]]
    digests: Mapping[str, str]

    @property
    def version(self) -> str:
        """SHA-256 over the windows' digests; the same for the same rows."""
        told = "\n".join(f"{window_id} {self.digests.get(window_id, '')}" for window_id in self.window_ids)
        return hashlib.sha256(told.encode()).hexdigest()


class UnfitWindow(DatabaseError):
    """A window holds a value that its table cannot."""

    def __init__(self, message: str, window_id: str) -> None:
        super().__init__(message)
        self.window_id = window_id


def encode_windows(table: sa.Table, window_ids: Sequence[str], frame: pd.DataFrame) -> EncodedWindows:
    """`frame` as the rows of `window_ids`.

    frame: columns of `table` without the history's, `window_id` among them. DatabaseError where a row belongs to no
    window of `window_ids`, UnfitWindow for the first window with a value that does not fit its column, WindowIdError
    for a bad id.
    """
    wanted = sorted(set(window_ids))
    for window_id in wanted:
        parse_window_id(window_id)
    if frame.empty:
        return EncodedWindows(table, tuple(wanted), (), {}, {})
    frame, spans = _by_window(_in_table(table, frame), table, wanted)
    columns = tuple(table.c[name] for name in frame.columns)
    rows: dict[str, list[bytes]] = {}
    digests: dict[str, str] = {}
    for batch in _batches(spans):
        first = batch[0][1]
        part = frame.iloc[first : batch[-1][2]]
        try:
            encoded = [fields(column, part.iloc[:, i].tolist()) for i, column in enumerate(columns)]
        except UnfitValue as error:
            owner = next(window_id for window_id, start, stop in batch if start <= first + error.row < stop)
            raise UnfitWindow(str(error), owner) from error
        for window_id, start, stop in batch:
            own = [column[start - first : stop - first] for column in encoded]
            rows[window_id], digests[window_id] = _rows_and_digest(columns, own)
    return EncodedWindows(table, tuple(wanted), columns, rows, digests)


def replace_windows(
    connection: psycopg.Connection, table: sa.Table, window_ids: Sequence[str], frame: pd.DataFrame
) -> Replaced:
    """Make `frame` the current rows of `window_ids`, within the caller's transaction; errors as `encode_windows`.

    A window of `window_ids` without rows loses its current ones. Writers of one window wait for each other.
    """
    return replace_encoded(connection, encode_windows(table, window_ids, frame))


def replace_encoded(connection: psycopg.Connection, encoded: EncodedWindows) -> Replaced:
    """`replace_windows` for rows that are encoded already."""
    table, rows, digests = encoded.table, encoded.rows, encoded.digests
    moment = _lock(connection, table, encoded.window_ids)
    current = _current_digests(connection, table, encoded.window_ids)
    stands = {w: current.get(w) == ((digests[w], len(rows[w])) if w in rows else None) for w in encoded.window_ids}
    unchanged = tuple(window_id for window_id, same in stands.items() if same)
    changed = [window_id for window_id, same in stands.items() if not same]
    if not changed:
        return Replaced(0, 0, unchanged)
    superseded = connection.execute(
        sql.SQL("UPDATE {} SET superseded_at = %s WHERE window_id = ANY(%s) AND superseded_at IS NULL").format(
            _identifier(table)
        ),
        (moment, changed),
    ).rowcount
    columns = [*encoded.columns, table.c.digest, table.c.created_at]
    head, (created,) = row_head(len(columns)), fields(table.c.created_at, [moment])

    def parts() -> Iterator[bytes]:
        for window_id in changed:
            if window_id in rows:
                (digest,) = fields(table.c.digest, [digests[window_id]])
                end = digest + created
                yield head + (end + head).join(rows[window_id]) + end

    written = copy_encoded(connection, table, columns, parts()) if any(w in rows for w in changed) else 0
    return Replaced(written, superseded, unchanged)


def content_version(table: sa.Table, window_ids: Sequence[str], frame: pd.DataFrame) -> str:
    """SHA-256 over the digests under which `replace_windows` would store the windows; the same for the same rows."""
    return encode_windows(table, window_ids, frame).version


def _in_table(table: sa.Table, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its columns in the order of their names. DatabaseError where they are not the table's."""
    names = [str(name) for name in frame.columns]
    wrong = [name for name in names if name not in table.c or name in HISTORY_COLUMNS]
    if wrong or "window_id" not in names:
        raise DatabaseError(
            f"Rows for {table.name} need window_id and columns of the table, without those that keep its history. "
            f"Not among them: {', '.join(wrong) or 'window_id'}."
        )
    return frame[sorted(names)]


def _by_window(
    frame: pd.DataFrame, table: sa.Table, wanted: Sequence[str]
) -> tuple[pd.DataFrame, list[tuple[str, int, int]]]:
    """The rows with those of a window beside each other, and where each window's begin and end.

    DatabaseError where a row belongs to none of the wanted windows.
    """
    owners = frame["window_id"].tolist()
    foreign = sorted(str(window_id) for window_id in set(owners) - set(wanted))
    if foreign:
        raise DatabaseError(
            f"{table.name}: rows of {', '.join(foreign[:5])} came with a write of other windows "
            f"({', '.join(wanted[:5])}). A run writes its own windows only."
        )
    if any(a > b for a, b in itertools.pairwise(owners)):
        frame = frame.iloc[sorted(range(len(owners)), key=owners.__getitem__)]
        owners.sort()
    spans, start = [], 0
    for window_id, own in itertools.groupby(owners):
        stop = start + len(list(own))
        spans.append((window_id, start, stop))
        start = stop
    return frame, spans


def _batches(spans: Sequence[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    """The windows in batches of some rows: pandas takes long for each of many small parts."""
    batch: list[tuple[str, int, int]] = []
    for span in spans:
        batch.append(span)
        if span[2] - batch[0][1] >= BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows_and_digest(columns: Sequence[sa.Column], encoded: list[list[bytes]]) -> tuple[list[bytes], str]:
    """A window's rows, and their SHA-256 whatever their order and that of the columns.

    A column that is NULL in all of them counts as an absent one, so that a new column leaves old digests as they are.
    """
    rows = whole_rows(encoded)
    filled = [i for i, column in enumerate(encoded) if column.count(NULL) < len(column)]
    told = rows if len(filled) == len(encoded) else whole_rows([encoded[i] for i in filled])
    digest = hashlib.sha256(" ".join(columns[i].name for i in filled).encode())
    digest.update(b"".join(sorted(told)))
    return rows, digest.hexdigest()


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
