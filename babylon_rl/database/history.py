"""History of the asset tables, and the only writer of them.

The rows of a window are replaced together: the same content writes nothing, other content marks the current rows
superseded and adds the new ones at the same moment of the same transaction. Nothing is deleted here.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import copy_encoded
from babylon_rl.database.kept import Kept
from babylon_rl.database.values import UnfitValue
from babylon_rl.database.wire import NULL, Pieces, all_null, fields, pieces, row_head, whole_rows
from babylon_rl.errors import DatabaseError
from babylon_rl.windows import parse_window_id

HISTORY_COLUMNS = ("row_id", "digest", "created_at", "superseded_at")
# Beyond this many, one lock on the table: the server's lock table is finite.
MOST_WINDOW_LOCKS = 200
# Rows that are encoded at a time.
BATCH_ROWS = 4_000
# Bytes of encoded rows that stay in memory.
HELD_BYTES = 64 * 2**20


class Span(NamedTuple):
    """Where a window's rows stand."""

    window_id: str
    start: int
    stop: int


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


class UnfitWindow(DatabaseError):
    """A window holds a value that its table cannot."""


@dataclass(frozen=True)
class EncodedPart:
    """Some windows' rows as COPY takes them, each window with the digest of its rows.

    `columns`: names of those of the rows; `empty`: columns that came with them and are NULL in all.
    """

    columns: tuple[str, ...]
    empty: tuple[str, ...]
    windows: Mapping[str, tuple[str, list[bytes]]]


@dataclass(frozen=True)
class EncodedWindows:
    """The rows of a run's windows, encoded; `unfit`: windows with a value that the table cannot hold, and why.

    `made`: their rows, and perhaps some of windows that were left out since; `digests`: of each window with rows.
    """

    table: sa.Table
    window_ids: tuple[str, ...]
    made: Iterable[EncodedPart]
    digests: Mapping[str, str]
    unfit: Mapping[str, str]

    @property
    def version(self) -> str:
        """SHA-256 over the windows' digests; the same for the same rows."""
        told = "\n".join(f"{window_id} {self.digests.get(window_id, '')}" for window_id in self.window_ids)
        return hashlib.sha256(told.encode()).hexdigest()

    def without(self, window_ids: Collection[str]) -> "EncodedWindows":
        """The same, and nothing of these windows."""
        return replace(self, window_ids=tuple(w for w in self.window_ids if w not in window_ids))

    @property
    def parts(self) -> Iterator[EncodedPart]:
        """The rows of the windows, part by part."""
        wanted = set(self.window_ids)
        for part in self.made:
            yield EncodedPart(part.columns, part.empty, {w: of for w, of in part.windows.items() if w in wanted})


def encode_windows(
    table: sa.Table, window_ids: Sequence[str], frames: pd.DataFrame | Iterable[pd.DataFrame]
) -> EncodedWindows:
    """The rows of `window_ids` for `replace_encoded`; frames and errors as of `replace_windows`, but for `unfit`."""
    unfit: dict[str, str] = {}
    wanted, parts = _encoded(table, window_ids, frames, unfit)
    made: Kept[EncodedPart] = Kept(HELD_BYTES)
    digests: dict[str, str] = {}
    for part in parts:
        made.add(part, sum(len(row) for _, rows in part.windows.values() for row in rows))
        digests |= {window_id: digest for window_id, (digest, _) in part.windows.items()}
    return EncodedWindows(table, tuple(w for w in wanted if w not in unfit), made, digests, unfit)


def replace_windows(
    connection: psycopg.Connection,
    table: sa.Table,
    window_ids: Sequence[str],
    frames: pd.DataFrame | Iterable[pd.DataFrame],
) -> Replaced:
    """Make the rows of `frames` the current ones of `window_ids`, within the caller's transaction.

    frames: one or several, a window's rows all in one of them; columns of `table` without the history's, `window_id`
    among them. A window of `window_ids` without rows loses its current ones. DatabaseError where a row belongs to no
    window of `window_ids`, UnfitWindow for a value that does not fit its column, WindowIdError for a bad id. Writers of
    one window wait for each other.
    """
    return _replace(connection, table, *_encoded(table, window_ids, frames, None))


def replace_encoded(connection: psycopg.Connection, encoded: EncodedWindows) -> Replaced:
    """`replace_windows` for rows that are encoded already; windows that are unfit keep what they have."""
    return _replace(connection, encoded.table, encoded.window_ids, encoded.parts)


# --- the rows --------------------------------------------------------------------------------------


def _encoded(
    table: sa.Table,
    window_ids: Sequence[str],
    frames: pd.DataFrame | Iterable[pd.DataFrame],
    unfit: dict[str, str] | None,
) -> tuple[list[str], Iterator[EncodedPart]]:
    """The windows in order, and their rows as they are encoded, part by part.

    `unfit` takes the windows whose values do not fit; where it is None they are an error.
    """
    wanted = sorted(set(window_ids))
    for window_id in wanted:
        parse_window_id(window_id)
    return wanted, _joined(_each_part(table, wanted, [frames] if isinstance(frames, pd.DataFrame) else frames, unfit))


def _each_part(
    table: sa.Table, wanted: Sequence[str], frames: Iterable[pd.DataFrame], unfit: dict[str, str] | None
) -> Iterator[EncodedPart]:
    seen: set[str] = set()
    for frame in frames:
        if frame.empty:
            continue
        ordered, spans = _by_window(_in_table(table, frame), table, wanted)
        again = sorted(seen.intersection(span.window_id for span in spans))
        if again:
            raise DatabaseError(f"{table.name}: rows of {again[0]} came in several frames; a window's come in one.")
        seen.update(span.window_id for span in spans)
        columns = tuple(table.c[name] for name in ordered.columns)
        for batch in _batches(spans):
            yield from _parts(ordered, columns, batch, unfit)


def _parts(
    frame: pd.DataFrame, columns: tuple[sa.Column, ...], batch: Sequence[Span], unfit: dict[str, str] | None
) -> Iterator[EncodedPart]:
    first = batch[0].start
    rows = frame.iloc[first : batch[-1].stop]
    try:
        encoded = [pieces(column, rows.iloc[:, i].tolist()) for i, column in enumerate(columns)]
    except UnfitValue as error:
        if len(batch) > 1:
            for one in batch:
                yield from _parts(frame, columns, [one], unfit)
        elif unfit is None:
            raise UnfitWindow(f"{batch[0].window_id}: {error}") from error
        else:
            unfit[batch[0].window_id] = str(error)
        return
    for span in batch:
        own = [[piece[span.start - first : span.stop - first] for piece in column] for column in encoded]
        yield _part(columns, span.window_id, own)


def _part(columns: Sequence[sa.Column], window_id: str, encoded: Sequence[Pieces]) -> EncodedPart:
    """A window's rows, and their SHA-256 whatever their order and that of the columns.

    A column that is NULL in all of them counts as an absent one, so that a new column leaves old digests as they are.
    """
    empty = [all_null(column) for column in encoded]
    filled = [i for i, nothing in enumerate(empty) if not nothing]
    rows = whole_rows(piece for i in filled for piece in encoded[i])
    digest = hashlib.sha256(" ".join(columns[i].name for i in filled).encode())
    digest.update(b"".join(sorted(rows)))
    named = tuple(columns[i].name for i in filled)
    empty_ones = tuple(column.name for column, nothing in zip(columns, empty, strict=True) if nothing)
    return EncodedPart(named, empty_ones, {window_id: (digest.hexdigest(), rows)})


def _joined(parts: Iterator[EncodedPart]) -> Iterator[EncodedPart]:
    """Parts of the same columns as one, up to some rows: each is a COPY of its own."""
    for _, alike in itertools.groupby(parts, lambda part: (part.columns, part.empty)):
        together: dict[str, tuple[str, list[bytes]]] = {}
        rows = 0
        for part in alike:
            together |= part.windows
            rows += sum(len(own) for _, own in part.windows.values())
            if rows >= BATCH_ROWS:
                yield EncodedPart(part.columns, part.empty, together)
                together, rows = {}, 0
        if together:
            yield EncodedPart(part.columns, part.empty, together)


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


def _by_window(frame: pd.DataFrame, table: sa.Table, wanted: Sequence[str]) -> tuple[pd.DataFrame, list[Span]]:
    """The rows with those of a window beside each other, and where each window's are.

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
        stop = start + sum(1 for _ in own)
        spans.append(Span(window_id, start, stop))
        start = stop
    return frame, spans


def _batches(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The windows in batches of some rows: each of many small parts would take pandas long."""
    batch: list[Span] = []
    for span in spans:
        batch.append(span)
        if span.stop - batch[0].start >= BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


# --- the write -------------------------------------------------------------------------------------


def _replace(
    connection: psycopg.Connection, table: sa.Table, wanted: Sequence[str], parts: Iterator[EncodedPart]
) -> Replaced:
    moment = _lock(connection, table, wanted)
    current = _current_digests(connection, table, wanted)
    unchanged: set[str] = set()
    emptied = set(wanted)
    # The server stores a part while the next one is encoded; one thread at a time has the connection.
    with ThreadPoolExecutor(1) as writer:
        writes = []
        for part in parts:
            emptied -= part.windows.keys()
            same = {w for w, (digest, rows) in part.windows.items() if current.get(w) == (digest, len(rows))}
            unchanged |= same
            changed = {window_id: found for window_id, found in part.windows.items() if window_id not in same}
            if writes:
                writes[-1].result()
            if changed:
                writes.append(
                    writer.submit(_write, connection, table, EncodedPart(part.columns, part.empty, changed), moment)
                )
        done = [write.result() for write in writes]
    gone = sorted(emptied & current.keys())
    superseded = _supersede(connection, table, gone, moment) if gone else 0
    unchanged |= emptied - current.keys()
    return Replaced(
        sum(written for _, written in done),
        superseded + sum(ended for ended, _ in done),
        tuple(window_id for window_id in wanted if window_id in unchanged),
    )


def _write(connection: psycopg.Connection, table: sa.Table, part: EncodedPart, moment: datetime) -> tuple[int, int]:
    """Supersede the windows' rows and add the others; how many of each."""
    columns = [*(table.c[name] for name in (*part.columns, *part.empty)), table.c.digest, table.c.created_at]
    head, (created,) = row_head(len(columns)), fields(table.c.created_at, [moment])

    def windows() -> Iterator[bytes]:
        for digest, rows in part.windows.values():
            (told,) = fields(table.c.digest, [digest])
            end = NULL * len(part.empty) + told + created
            yield head + (end + head).join(rows) + end

    superseded = _supersede(connection, table, list(part.windows), moment)
    return superseded, copy_encoded(connection, table, columns, windows())


def _supersede(connection: psycopg.Connection, table: sa.Table, window_ids: Sequence[str], moment: datetime) -> int:
    return connection.execute(
        sql.SQL("UPDATE {} SET superseded_at = %s WHERE window_id = ANY(%s) AND superseded_at IS NULL").format(
            _identifier(table)
        ),
        (moment, window_ids),
    ).rowcount


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
