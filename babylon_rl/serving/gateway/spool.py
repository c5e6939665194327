"""The spool: a folder of segments of events, each on disk before its `append` returns.

A segment is named by the epoch microseconds of its creation and holds one event of JSON a line. One thread writes: all
that waits goes out in one write and one fsync. A writer begins a segment of its own, so only the newest is open.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from babylon_rl.serving.gateway.events import Event, GapEvent

SEGMENT_BYTES, SEGMENT_SECONDS = 8_000_000, 60.0
PROBE_SECONDS = 0.5  # between attempts to write of a gap while nothing else is appended
STALL_SECONDS = 5.0  # after which a disk that does not answer no longer holds up a caller

log = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()


class Place(NamedTuple):
    """Where an event lies: the segment's number, first byte and length of the line without its end."""

    segment: int
    offset: int
    length: int


class Gap(NamedTuple):
    """Events that could not be written, not yet told of in the spool. Times are epoch seconds."""

    since: float
    until: float
    calls: int
    reason: str


class SpoolError(Exception):
    """An event was not written; the message is the reason. The gap is kept and written when the spool works again."""


class _Waiting(NamedTuple):
    line: bytes
    done: Callable[[Place | None, str], None]
    counts: bool


def segment_file(spool: Path, segment: int) -> Path:
    """File of the segment."""
    return spool / f"{segment:020d}.jsonl"


def segments(spool: Path) -> list[int]:
    """Numbers of the segments there, oldest first; the last one may still be written to."""
    if not spool.is_dir():
        return []
    names = (entry.name for entry in os.scandir(spool))
    return sorted(int(n[:20]) for n in names if len(n) == 26 and n[:20].isdecimal() and n.endswith(".jsonl"))


def lines(spool: Path, segment: int, offset: int = 0) -> Iterator[tuple[Place, bytes]]:
    """Whole lines of a segment from the offset on, without their ends. A torn last line was never acknowledged."""
    with open(segment_file(spool, segment), "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield Place(segment, offset, len(line) - 1), line[:-1]
            offset += len(line)


def read_at(spool: Path, place: Place) -> bytes | None:
    """The line at the place; None where its segment is gone."""
    try:
        with open(segment_file(spool, place.segment), "rb", buffering=0) as file:
            return os.pread(file.fileno(), place.length, place.offset)
    except FileNotFoundError:
        return None


class Spool:
    """An open spool. `append` returns when the event is on disk, SpoolError where it cannot be.

    `on_write(bytes, seconds)` is told of each group; it is called in the writing thread. `unrecorded`: calls that were
    not written since the start; `failing`: the reason while it fails, else None.
    """

    def __init__(
        self,
        folder: Path,
        on_write: Callable[[int, float], None] = lambda size, seconds: None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self.folder, self.on_write = folder, on_write
        self.segment_bytes, self.segment_seconds = segment_bytes, segment_seconds
        self.unrecorded, self.failing, self.groups = 0, None, 0
        self.gap: Gap | None = None
        self._writing_since: float | None = None
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._file, self._segment, self._size, self._begun = -1, 0, 0, 0.0
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def open(self) -> "Spool":
        """Begin a segment and the thread that writes. What an earlier process wrote last is brought to disk too."""
        with contextlib.suppress(OSError):
            self._settle()
        try:
            self._begin()
        except OSError as error:
            self._failed(_reason(error), 0)
        self._thread.start()
        return self

    async def append(self, event: Event) -> Place:
        """Where the event lies, when it is on disk."""
        return await self.append_line(_encoder.encode(event), counts=event.__struct_config__.tag == "call")

    async def append_line(self, line: bytes, counts: bool = True) -> Place:
        """The same of an encoded event. `counts`: as a call that is unrecorded where it fails."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Place] = loop.create_future()

        def done(place: Place | None, reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, future, place, reason)

        self._queue.put(_Waiting(line, done, counts))
        stalled = f"the disk has not answered for {STALL_SECONDS:.0f} s"
        stall = loop.call_later(STALL_SECONDS, _resolve, future, None, stalled)
        try:
            return await future
        finally:
            stall.cancel()

    @property
    def trouble(self) -> str | None:
        """Why it cannot be written now, None while it can."""
        since = self._writing_since
        if since is not None and time.perf_counter() - since > STALL_SECONDS:
            return f"the disk has not answered for {time.perf_counter() - since:.0f} s"
        return self.failing

    def put(self, event: Event) -> None:
        """Write the event without waiting, for a caller that is being ended."""
        self._queue.put(
            _Waiting(_encoder.encode(event), lambda place, reason: None, event.__struct_config__.tag == "call")
        )

    def close(self) -> None:
        """Write what waits and end."""
        self._queue.put(None)
        self._thread.join()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _run(self) -> None:
        ended = False
        while not ended:
            try:
                group = [self._queue.get(timeout=PROBE_SECONDS if self.failing else None)]
            except queue.Empty:
                self._write([])
                continue
            while True:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = None in group
            self._write([waiting for waiting in group if waiting is not None])

    def _write(self, group: list[_Waiting]) -> None:
        """One write and one fsync for the group, preceded by what is to be told of a gap."""
        told, gap = b"", self.gap
        if gap is not None:
            told = _encoder.encode(GapEvent(gap_id=uuid.uuid4().hex, **gap._asdict())) + b"\n"
        elif not group and self.failing is None:
            return
        data = told + b"".join(waiting.line + b"\n" for waiting in group)
        begun = self._writing_since = time.perf_counter()
        try:
            self._roll()
            self._write_whole(data)
            os.fdatasync(self._file)
        except Exception as error:  # whatever it is, the thread goes on and who waits is told
            self._give_up()
            self._failed(_reason(error), sum(waiting.counts for waiting in group))
            for waiting in group:
                waiting.done(None, _reason(error))
            return
        finally:
            self._writing_since = None
        self.groups += 1
        self.on_write(len(data), time.perf_counter() - begun)
        if self.failing is not None:
            log.warning("The spool works again; %s calls were answered and not recorded.", gap.calls if gap else 0)
        self.gap = self.failing = None
        offset = self._size + len(told)
        self._size += len(data)
        for waiting in group:
            waiting.done(Place(self._segment, offset, len(waiting.line)), "")
            offset += len(waiting.line) + 1

    def _write_whole(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def _failed(self, reason: str, calls: int) -> None:
        now, gap = time.time(), self.gap
        self.unrecorded += calls
        if self.failing is None:
            log.error("The spool %s cannot be written: %s. Calls pass and are not recorded.", self.folder, reason)
        self.failing = reason
        if calls:
            self.gap = Gap(gap.since if gap else now, now, (gap.calls if gap else 0) + calls, reason)

    def _give_up(self) -> None:
        """Leave the segment as it was last acknowledged; the next attempt begins another."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = -1

    def _roll(self) -> None:
        full = self._size >= self.segment_bytes or time.monotonic() - self._begun >= self.segment_seconds
        # A segment that somebody deleted takes writes and keeps none of them.
        if self._file >= 0 and not full and os.fstat(self._file).st_nlink:
            return
        # One that stood empty is old too: by its number what is written to it now would be forgotten as old.
        unused = segment_file(self.folder, self._segment) if self._file >= 0 and not self._size else None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._begin()
        if unused is not None:
            unused.unlink(missing_ok=True)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        segment = max(time.time_ns() // 1000, self._segment + 1, *(n + 1 for n in segments(self.folder)[-1:]))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(segment_file(self.folder, segment), flags, 0o600)
        self._segment, self._size, self._begun = segment, 0, time.monotonic()
        _sync(self.folder)

    def _settle(self) -> None:
        """A killed process may have written lines that were on their way to disk; from here on they are kept."""
        for segment in segments(self.folder)[-1:]:
            _sync(segment_file(self.folder, segment))


def _resolve(future: asyncio.Future[Place], place: Place | None, reason: str) -> None:
    if future.done():
        return
    if place is None:
        future.set_exception(SpoolError(reason))
    else:
        future.set_result(place)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
