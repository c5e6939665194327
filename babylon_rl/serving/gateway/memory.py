"""The memory of request ids: which answer belongs to an id, and which ids are being answered.

It keeps where a recorded answer lies in the spool, not the answer. A caller's id is bound by the first whole answer;
an error that may pass, or a stream that broke off, leaves it free, and the next attempt has a call id of its own.
"""

import asyncio
import contextlib
import hashlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from babylon_rl.serving.gateway.answers import BROKEN, CANCELLED
from babylon_rl.serving.gateway.spool import SEGMENT_SECONDS, Place, lines, segments

PASSING = {408, 409, 425, 429}  # and all from 500 on: asked again, they may be answered otherwise
MOST_ATTEMPTS = 10_000

_packed = struct.Struct(">QQIIB16s")


def call_id_of(key_id: str, request_id: str, attempt: int = 1) -> str:
    """Id of the call, 32 hexadecimal digits: of the key and the request's id, from the second attempt on also of it."""
    text = f"{key_id}/{request_id}" if attempt == 1 else f"{key_id}/{request_id}/{attempt}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def binds(status: int, finish_reason: str | None) -> bool:
    """Whether an answer is the one that its request id gets from then on."""
    return status < 500 and status not in PASSING and finish_reason not in (CANCELLED, BROKEN)


class Answered(NamedTuple):
    """The id has its answer; `same_body`: it was asked with this body."""

    place: Place
    same_body: bool


class Waiting(NamedTuple):
    """The id is being answered; `done` ends when it is, with the answer or with None where there is none to share."""

    done: asyncio.Future
    same_body: bool


class Attempt(NamedTuple):
    """The id is the caller's to be answered; `call_id`: of this attempt. `release` must follow."""

    base: bytes
    call_id: str
    number: int
    digest: bytes


class _Told(msgspec.Struct, frozen=True):
    """What the memory reads of a spooled call."""

    type: str = ""
    call_id: str = ""
    request_id: str = ""
    body_sha256: str = ""
    key_id: str = ""
    status: int = 0
    finish_reason: str | None = None


class Memory:
    """Which requests were answered, for as long as `minutes`, at most `most` of them."""

    def __init__(self, minutes: float, most: int, clock: Callable[[], float] = time.time) -> None:
        self.seconds, self.most, self.clock = 60 * minutes, most, clock
        self._entries: dict[bytes, bytes] = {}
        self._open: dict[bytes, tuple[bytes, asyncio.Future]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def rebuild(self, spool: Path) -> None:
        """Remember what the retained segments hold."""
        decoder = msgspec.json.Decoder(_Told)
        oldest = self._oldest()
        for segment in segments(spool):
            if segment < oldest:
                continue
            with contextlib.suppress(FileNotFoundError):  # shipped and deleted meanwhile
                for place, line in lines(spool, segment):
                    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                        self._recall(place, decoder.decode(line))

    def _recall(self, place: Place, told: _Told) -> None:
        if told.type != "call":
            return
        base, number = bytes.fromhex(call_id_of(told.key_id, told.request_id)), 1
        while number < MOST_ATTEMPTS and call_id_of(told.key_id, told.request_id, number) != told.call_id:
            number += 1
        known = self._entries.get(base)
        if known is None or number >= _packed.unpack(known)[3]:
            digest = bytes.fromhex(told.body_sha256)[:16]
            self._put(base, place, number, binds(told.status, told.finish_reason), digest)

    def claim(self, key_id: str, request_id: str, body_sha256: str) -> Answered | Waiting | Attempt:
        """What is known of the id; an `Attempt` is the caller's from here on."""
        call_id = call_id_of(key_id, request_id)
        base, digest = bytes.fromhex(call_id), bytes.fromhex(body_sha256)[:16]
        running = self._open.get(base)
        if running is not None:
            return Waiting(running[1], running[0] == digest)
        number, known = 1, self._entries.get(base)
        if known is not None:
            segment, offset, length, last, bound, seen = _packed.unpack(known)
            if bound:
                return Answered(Place(segment, offset, length), seen == digest)
            number = last + 1
            call_id = call_id_of(key_id, request_id, number)
        self._open[base] = digest, asyncio.get_running_loop().create_future()
        return Attempt(base, call_id, number, digest)

    def remember(self, attempt: Attempt, place: Place | None, binds: bool) -> None:
        """The attempt was answered and lies at the place; None: it is not recorded, and binds nothing."""
        bound = binds and place is not None
        self._put(attempt.base, place or Place(self._now(), 0, 0), attempt.number, bound, attempt.digest)

    def release(self, attempt: Attempt, answer: object = None) -> None:
        """The attempt is over; those who wait for it get the answer, or look again where it is None."""
        _, done = self._open.pop(attempt.base)
        if not done.done():
            done.set_result(answer)

    def forget(self, key_id: str, request_id: str) -> None:
        """The id's answer is gone from the spool."""
        self._entries.pop(bytes.fromhex(call_id_of(key_id, request_id)), None)

    def _put(self, base: bytes, place: Place, number: int, bound: bool, digest: bytes) -> None:
        entries = self._entries
        entries.pop(base, None)  # to the end, among the latest
        entries[base] = _packed.pack(*place, number, bound, digest)
        oldest = self._oldest()
        while entries:
            first = next(iter(entries))
            if len(entries) <= self.most and _packed.unpack(entries[first])[0] >= oldest:
                break
            del entries[first]

    def _now(self) -> int:
        return int(self.clock() * 1e6)

    def _oldest(self) -> int:
        """Number of the oldest segment that may hold an event of the remembered time."""
        return int((self.clock() - self.seconds - SEGMENT_SECONDS) * 1e6)
