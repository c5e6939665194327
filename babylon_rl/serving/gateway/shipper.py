"""The shipper: brings the gateway's spool to PostgreSQL, each event once, and goes on wherever it was stopped.

`python -m babylon_rl.serving.gateway.shipper --folder F` does so until it is ended. Events are written and committed
first, then the place in the spool moves on; what was written twice over that is there once, by its key. Segments that
are shipped, and older than what the gateway remembers of requests, are deleted.
"""

import argparse
import base64
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec
import psycopg

from babylon_rl.database.connect import Database, open_materialized
from babylon_rl.errors import BabylonError, DatabaseError
from babylon_rl.serving.gateway.events import Event
from babylon_rl.serving.gateway.files import SHIPPED, SPOOL, write_file
from babylon_rl.serving.gateway.known import decode_event, keep_known
from babylon_rl.serving.gateway.spool import lines, segment_file, segments
from babylon_rl.serving.gateway.writing import said, write_events
from babylon_rl.serving.lifetime import alone, watch_parent
from babylon_rl.settings import Settings, get_settings

STATUS, REFUSED, LOCK = "shipper.json", "refused.jsonl", "shipper.lock"
BATCH_EVENTS, BATCH_BYTES = 500, 4_000_000
POLL_SECONDS, STATUS_SECONDS, CLEAN_SECONDS = 0.1, 1.0, 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # after an error, doubled each time
PATIENCE_SECONDS = 5.0  # with another shipper, which may still be ending

log = logging.getLogger(__name__)


class ShippedTo(msgspec.Struct, frozen=True):
    """How far the spool is shipped: events before `offset` of `segment`, and all of the segments before it."""

    segment: int = 0
    offset: int = 0


class Shipped(NamedTuple):
    """What one pass came to. `events`: brought to PostgreSQL; `refused`: put aside, see `refused.jsonl`."""

    events: int
    refused: int
    waiting_bytes: int


class ShipperStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`shipper.json`. `shipped`, `refused`: events, since the folder was made; `at`: epoch seconds of this status.

    `error`: why nothing can be shipped now, since `failing_since`; None where all is well.
    """

    shipped: int = 0
    refused: int = 0
    waiting_bytes: int = 0
    error: str | None = None
    failing_since: float | None = None
    at: float = 0.0


class _Line(NamedTuple):
    segment: int
    offset: int
    text: bytes


def read_status(folder: Path) -> ShipperStatus | None:
    """What the folder's shipper says of itself, None where there was none. Its `at` tells whether one is running."""
    try:
        return msgspec.json.decode((folder / STATUS).read_bytes(), type=ShipperStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def ship(database: Database, folder: Path) -> Shipped:
    """Ship all that is there now. DatabaseError or psycopg.Error where PostgreSQL cannot take it; nothing is lost."""
    events = refused = 0
    for shipped, put_aside in _passes(database, folder):
        events += shipped
        refused += put_aside
    return Shipped(events, refused, waiting_bytes(folder))


def waiting_bytes(folder: Path) -> int:
    """Bytes of the spool that are not shipped yet."""
    place, size = _place(folder), 0
    for segment in segments(folder / SPOOL):
        if segment >= place.segment:
            with contextlib.suppress(FileNotFoundError):
                there = segment_file(folder / SPOOL, segment).stat().st_size
                size += max(0, there - (place.offset if segment == place.segment else 0))
    return size


def delete_shipped(folder: Path, memory_minutes: float, now: float) -> int:
    """Delete segments that are shipped and hold nothing that the gateway still answers from; their number.

    A segment is as old as the next one's beginning. What it says of trajectories is kept first.
    """
    place, there = _place(folder), segments(folder / SPOOL)
    before = (now - memory_minutes * 60) * 1e6
    leaving = [one for one, after in zip(there, there[1:], strict=False) if one < place.segment and after <= before]
    if leaving:
        keep_known(folder, leaving)
    for segment in leaving:
        segment_file(folder / SPOOL, segment).unlink(missing_ok=True)
    return len(leaving)


# --- a pass -----------------------------------------------------------------------------------------


def _passes(database: Database, folder: Path) -> Iterator[tuple[int, int]]:
    """Ship batch after batch until nothing is left; events written and put aside of each."""
    place = _place(folder)
    while True:
        batch, ahead = _next_batch(folder / SPOOL, place)
        written = aside = 0
        if batch:
            written, aside = _ship_batch(database, folder, batch)
        if ahead != place:
            write_file(folder / SHIPPED, msgspec.json.encode(ahead))
            place = ahead
        if not batch:
            return
        yield written, aside


def _next_batch(spool: Path, place: ShippedTo) -> tuple[list[_Line], ShippedTo]:
    """Lines from the place on, and the place after them. A torn end of a segment that is closed is passed over."""
    batch: list[_Line] = []
    size = 0
    # Listed before it is read: what has a successor was closed by then.
    there = [segment for segment in segments(spool) if segment >= place.segment]
    for number, segment in enumerate(there):
        offset = place.offset if segment == place.segment else 0
        place = ShippedTo(segment, offset)
        try:
            for _, text in lines(spool, segment, offset):
                batch.append(_Line(segment, place.offset, text))
                place = ShippedTo(segment, place.offset + len(text) + 1)
                size += len(text)
                if len(batch) >= BATCH_EVENTS or size >= BATCH_BYTES:
                    return batch, place
        except FileNotFoundError:
            continue  # deleted by hand
        if number + 1 < len(there):
            place = ShippedTo(there[number + 1], 0)
    return batch, place


def _ship_batch(database: Database, folder: Path, batch: list[_Line]) -> tuple[int, int]:
    events: list[Event] = []
    of_event: list[_Line] = []
    aside: list[tuple[_Line, str]] = []
    for line in batch:
        try:
            events.append(decode_event(line.text))
            of_event.append(line)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            aside.append((line, f"no event: {error}"))
    if events:
        with database.connect() as connection:
            aside += [(of_event[one.place], one.reason) for one in write_events(connection, events)]
    if aside:
        _put_aside(folder, aside)
    return len(batch) - len(aside), len(aside)


def _put_aside(folder: Path, aside: list[tuple[_Line, str]]) -> None:
    """Keep what cannot be written, each line once, with why."""
    known = {(one.get("segment"), one.get("offset")) for one in refused_lines(folder)}
    with open(os.open(folder / REFUSED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        for line, reason in aside:
            if (line.segment, line.offset) in known:
                continue
            log.warning("Line at %s of segment %s cannot be written: %s", line.offset, line.segment, reason)
            try:
                text = {"line": line.text.decode()}
            except UnicodeDecodeError:
                text = {"base64": base64.b64encode(line.text).decode()}
            told = {"segment": line.segment, "offset": line.offset, "reason": reason, "at": time.time(), **text}
            file.write(msgspec.json.encode(told) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def refused_lines(folder: Path) -> list[dict]:
    """What was put aside: segment, offset, reason, when, and the line."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in (folder / REFUSED).read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # torn by a kill; its line is put aside again
                found.append(msgspec.json.decode(text, type=dict))
    return found


def _place(folder: Path) -> ShippedTo:
    """Where shipping goes on; from the beginning where that is not known, for what is there is there once."""
    try:
        return msgspec.json.decode((folder / SHIPPED).read_bytes(), type=ShippedTo)
    except (FileNotFoundError, msgspec.DecodeError):
        return ShippedTo()


# --- the process ------------------------------------------------------------------------------------


class _Status:
    """Keeps `shipper.json`; says once when nothing can be shipped, and once when it can again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = msgspec.structs.replace(read_status(folder) or ShipperStatus(), error=None, failing_since=None)
        self._written = 0.0
        self._refused = (-1, 0)  # size of the file, and lines in it

    def shipped(self, events: int) -> None:
        self.now = msgspec.structs.replace(self.now, shipped=self.now.shipped + events)

    def failed(self, error: Exception) -> None:
        what = said(error)
        if self.now.error is None:
            log.error("The gateway's events cannot be written: %s. They wait in %s.", what, self.folder / SPOOL)
        since = self.now.failing_since or time.time()
        self.now = msgspec.structs.replace(self.now, error=what, failing_since=since)
        self.write()

    def well(self) -> None:
        if self.now.error is not None:
            log.warning("The gateway's events are written again.")
            self.now = msgspec.structs.replace(self.now, error=None, failing_since=None)
            self.write()
        elif time.monotonic() - self._written > STATUS_SECONDS:
            self.write()

    def write(self) -> None:
        """Not to the disk at once: the gateway's own events are."""
        self._written = time.monotonic()
        self.now = msgspec.structs.replace(
            self.now, at=time.time(), waiting_bytes=waiting_bytes(self.folder), refused=self._count_refused()
        )
        beside = self.folder / f".{STATUS}.{os.getpid()}"
        with contextlib.suppress(OSError):
            beside.write_bytes(msgspec.json.encode(self.now))
            os.replace(beside, self.folder / STATUS)

    def _count_refused(self) -> int:
        file = self.folder / REFUSED
        size = file.stat().st_size if file.exists() else 0
        if size != self._refused[0]:
            self._refused = (size, len(refused_lines(self.folder)))
        return self._refused[1]


def ship_until(ended: threading.Event, database: Database, folder: Path, memory_minutes: float) -> None:
    """Ship what comes until `ended` is set; where PostgreSQL is away, wait for it. ServingError: another one ships."""
    refusal = f"Another shipper ships from {folder}; one is enough. Stop it first."
    with alone(folder / LOCK, PATIENCE_SECONDS, refusal):
        status, pause, cleaned = _Status(folder), FIRST_PAUSE, 0.0
        status.write()
        while not ended.is_set():
            try:
                for events, _ in _passes(database, folder):
                    status.shipped(events)
                    status.well()
                    if ended.is_set():
                        break
                status.well()
                if time.monotonic() - cleaned > CLEAN_SECONDS:
                    delete_shipped(folder, memory_minutes, time.time())
                    cleaned = time.monotonic()
            except (DatabaseError, psycopg.Error, OSError) as error:
                status.failed(error)
                ended.wait(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
            else:
                pause = FIRST_PAUSE
                ended.wait(POLL_SECONDS)
        status.write()


def main() -> None:
    """Entry point of the shipper's process."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl.serving.gateway.shipper", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the gateway's: the spool is in it")
    parser.add_argument("--parent-pipe", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if options.parent_pipe:
        watch_parent(ended.set)
    try:
        settings = get_settings()
        database = _database(settings, ended)
        if database is not None:
            ship_until(ended, database, options.folder, settings.request_memory_minutes)
    except BabylonError as error:
        sys.exit(str(error))


def _database(settings: Settings, ended: threading.Event) -> Database | None:
    """The database that the settings name, once it is there where that has to be asked; None: ended before."""
    pause, told = FIRST_PAUSE, False
    while not ended.is_set():
        try:
            return open_materialized(settings)
        except DatabaseError as error:
            if not told:
                log.error("%s The shipper waits for it.", error)
            told = True
            ended.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
    return None


if __name__ == "__main__":
    main()
