"""Rows with their texts, a bounded piece at a time; the next piece is fetched while one is worked on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.recording.calls import CallLog, read_calls
from babylon_rl.recording.catalog import APPLICATION, OURS, Entry
from babylon_rl.recording.decoding import Refusal
from babylon_rl.recording.records import RecordedCall

PIECE_ROWS, PIECE_BYTES = 400, 8 * 2**20  # a single row may be longer

Refuse = Callable[[Entry], Refusal | None]


class Piece(NamedTuple):
    """Rows with what is recorded of them. `logged`: trajectories of which the call log tells something."""

    entries: Sequence[Entry]
    refused: dict[str, Refusal]
    texts: dict[str, bytes]
    calls: dict[str, list[RecordedCall]]
    logged: set[str]


def fetched(recordings: Recordings, log: CallLog, entries: Sequence[Entry], refuse: Refuse) -> Iterator[Piece]:
    """The rows in pieces; of those that `refuse` refuses by their columns nothing more is fetched."""
    waiting = split(entries)
    first = next(waiting, None)
    if first is None:
        return
    current, following = _fetch(recordings, log, first, refuse), next(waiting, None)
    if following is None:
        yield current
        return
    # The server works on the next piece meanwhile; a connection serves one query at a time, and others wait for it.
    with ThreadPoolExecutor(1, "recordings") as thread:
        while following is not None:
            coming = thread.submit(_fetch, recordings, log, following, refuse)
            yield current
            current, following = coming.result(), next(waiting, None)
        yield current


def split(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The rows in pieces that are bounded in rows and bytes."""
    piece: list[Entry] = []
    total = 0
    for entry in entries:
        if piece and (len(piece) >= PIECE_ROWS or total + entry.length > PIECE_BYTES):
            yield piece
            piece, total = [], 0
        piece.append(entry)
        total += entry.length
    if piece:
        yield piece


def _fetch(recordings: Recordings, log: CallLog, entries: Sequence[Entry], refuse: Refuse) -> Piece:
    refused = {entry.trajectory_id: why for entry in entries if (why := refuse(entry))}
    texts: dict[str, bytes] = {}
    for ours, table in ((False, APPLICATION), (True, OURS)):
        wanted = [e.trajectory_id for e in entries if e.ours is ours and e.trajectory_id not in refused]
        if wanted:
            texts.update(_copied(recordings.ours if ours else recordings.application, table, wanted))
    ids = list(texts)
    return Piece(entries, refused, texts, read_calls(recordings.ours, ids), log.told_of(ids))


def _copied(connection: psycopg.Connection, table: sql.Identifier, ids: list[str]) -> Iterator[tuple[str, bytes]]:
    """Texts by trajectory, as UTF-8."""
    # NULL says what JSON's null says.
    query = sql.SQL(
        """COPY (SELECT "trajectoryId", coalesce("stepsJson"::text, 'null') FROM {} WHERE "trajectoryId" = ANY({}))
           TO STDOUT (FORMAT BINARY)"""
    ).format(table, sql.Literal(ids))
    encoding = connection.info.encoding
    as_it_is = encoding in ("utf-8", "ascii")
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.set_types(["text", "bytea"])
        for trajectory_id, text in copy.rows():
            yield trajectory_id, text if as_it_is else text.decode(encoding, "replace").encode()
