"""Which trajectories were said over HTTP, by digests: what makes a request that comes twice the same request.

Rebuilt from the spool when a gateway starts. Before the shipper deletes segments it keeps what they said of
trajectories in `trajectories.json`, so a trajectory outlives the spool's memory. Bounded: see `Known`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from babylon_rl.recording.verbatim import verbatim_json
from babylon_rl.serving.gateway.events import AbandonEvent, CallEvent, EndEvent, Event, GapEvent, StartEvent, StepEvent
from babylon_rl.serving.gateway.files import SPOOL, write_file
from babylon_rl.serving.gateway.spool import lines, segments

KEPT = "trajectories.json"
MOST_OPEN = 10_000  # trajectories that are open at a time
MOST_STEPS = 10_000  # of one trajectory
MOST_CLOSED, MOST_CLOSED_STEPS = 10_000, 500_000  # closed ones that are remembered, and their steps together
IDLE_SECONDS = 24 * 3600.0  # after which an open one may be forgotten where there are too many

_decoder = msgspec.json.Decoder(Event)
# Calls and gaps are most of a spool and say nothing here; the encoder writes the tag first.
_PASSED_OVER = tuple(f'{{"type":"{kind.__struct_config__.tag}"'.encode() for kind in (CallEvent, GapEvent))

Closing = Literal["ended", "abandoned"]


class KnownTrajectory(msgspec.Struct, kw_only=True):
    """What is known of one. `started`, `steps`, `closing`: digests of what was said; `at`: of the latest event."""

    key_id: str
    agent_id: str
    started: str
    start_time: Any  # as it was said, or epoch milliseconds
    at: float
    steps: dict[int, str] = {}
    closed: Closing | None = None
    closing: str | None = None


class Known:
    """The trajectories known here, the latest closed ones and all open ones, up to the bounds."""

    def __init__(self, trajectories: dict[str, KnownTrajectory] | None = None) -> None:
        self._open: dict[str, KnownTrajectory] = {}
        self._closed: dict[str, KnownTrajectory] = {}
        self._closed_steps = 0
        for name, one in (trajectories or {}).items():
            self._put(name, one)

    def get(self, trajectory_id: str) -> KnownTrajectory | None:
        """The trajectory, None where it is not known."""
        return self._open.get(trajectory_id) or self._closed.get(trajectory_id)

    def all(self) -> dict[str, KnownTrajectory]:
        """Those that are kept, by id: closed ones as they were closed, then open ones."""
        return {**self._closed, **self._open}

    @property
    def open_count(self) -> int:
        """Number of open trajectories."""
        return len(self._open)

    def has_room(self, now: float) -> bool:
        """Whether one more may be opened; those that nothing was heard of for a day make room where there is none."""
        if len(self._open) < MOST_OPEN:
            return True
        idle = [name for name, one in self._open.items() if now - one.at > IDLE_SECONDS]
        for name in idle:
            del self._open[name]
        return bool(idle)

    def apply(self, event: Event) -> None:
        """Know what the event says. An event that was known before changes nothing."""
        match event:
            case StartEvent():
                if self.get(event.trajectory_id) is None:
                    self._open[event.trajectory_id] = KnownTrajectory(
                        key_id=event.key_id,
                        agent_id=event.agent_id,
                        started=body_digest(event.body),
                        start_time=event.body.get("startTime") or round(event.at * 1000),
                        at=event.at,
                    )
            case StepEvent():
                if (one := self.get(event.trajectory_id)) is not None:
                    one.steps.setdefault(event.step_number, text_digest(event.content))
                    one.at = max(one.at, event.at)
            case EndEvent():
                self._close(event.trajectory_id, "ended", body_digest(event.body), event.at)
            case AbandonEvent():
                self._close(event.trajectory_id, "abandoned", body_digest({"reason": event.reason}), event.at)

    def _close(self, name: str, how: Closing, digest: str, at: float) -> None:
        if (one := self._open.pop(name, None)) is not None:
            one.closed, one.closing, one.at = how, digest, at
            self._put(name, one)

    def _put(self, name: str, one: KnownTrajectory) -> None:
        if one.closed is None:
            self._open[name] = one
            return
        self._closed[name] = one
        self._closed_steps += len(one.steps)
        while len(self._closed) > MOST_CLOSED or self._closed_steps > MOST_CLOSED_STEPS:
            oldest = next(iter(self._closed))
            self._closed_steps -= len(self._closed.pop(oldest).steps)


def body_digest(body: dict[str, Any]) -> str:
    """Digest of what a body says, whatever the order of its keys."""
    return text_digest(verbatim_json(body))


def text_digest(text: str) -> str:
    """Digest of JSON as `verbatim_json` writes it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]


def decode_event(line: bytes) -> Event:
    """The event of a line. msgspec.DecodeError or ValueError where it is none."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        try:
            return msgspec.convert(json.loads(line), Event)  # half a surrogate pair, as an escape
        except (ValueError, RecursionError):
            raise error from None


def load_known(folder: Path) -> Known:
    """What the gateway's folder says of trajectories: what is kept of deleted segments, then the segments there."""
    spool = folder / SPOOL
    while True:
        there = segments(spool)  # before what is kept is read: what is deleted in between is missed below
        known = Known(_kept(folder))
        try:
            for segment in there:
                for event in _said(spool, segment):
                    known.apply(event)
        except FileNotFoundError:  # shipped and deleted meanwhile: it is in what is kept now
            continue
        return known


def keep_known(folder: Path, leaving: list[int]) -> None:
    """Keep what the segments say of trajectories, before they are deleted."""
    said = [event for segment in leaving for event in _said(folder / SPOOL, segment)]
    if not said:
        return
    known = Known(_kept(folder))
    for event in said:
        known.apply(event)
    write_file(folder / KEPT, msgspec.json.encode(known.all()))


def _kept(folder: Path) -> dict[str, KnownTrajectory]:
    try:
        return msgspec.json.decode((folder / KEPT).read_bytes(), type=dict[str, KnownTrajectory])
    except FileNotFoundError:
        return {}


def _said(spool: Path, segment: int) -> Iterator[Event]:
    for _, line in lines(spool, segment):
        if not line.startswith(_PASSED_OVER):
            try:
                yield decode_event(line)
            except (msgspec.DecodeError, ValueError):
                continue  # put aside by the shipper, who says so
