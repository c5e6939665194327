"""From catalogued rows to trajectories: the order in which reasons are looked for, and the P&L of a window."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any, NamedTuple

from babylon_rl.database.catalogue import catalogue_of
from babylon_rl.database.connect import Recordings
from babylon_rl.recording.attribution import Attribution
from babylon_rl.recording.calls import CallLog
from babylon_rl.recording.catalog import Entry, known_agents
from babylon_rl.recording.decoding import Decoded, Refusal, decode_steps
from babylon_rl.recording.pieces import Piece, fetched
from babylon_rl.recording.reasons import TEXTS, Reason
from babylon_rl.recording.records import ReadStep, RecordedCall
from babylon_rl.recording.window import Rejected, UsableTrajectory, provenance_of, trainability, trajectory_digest
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

FINISHED = {"completed", "completed_with_errors"}
# The application's engine records its own decisions under this id, without balance or P&L.
ENGINE = "market-decision-engine"

LONGEST_STEPS = 32 * 2**20  # bytes of stepsJson that are fetched at all
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
LARGEST_PNL = 1e100  # dollars; sums and squares of what is larger leave the range of a double


class Examined(NamedTuple):
    """A row, the window that is its own, what was found of it, and its steps where they could be decoded."""

    entry: Entry
    window_id: str | None
    found: UsableTrajectory | Rejected
    steps: list[ReadStep]
    has_tokens: bool


class RowReader:
    """Reads rows of one snapshot. `used`: rows that training used are read as if it had not.

    `texts` False: calls' texts are left unread where the call log tells nothing of them, and whether a run may be
    trained on is not looked at, which its texts tell.
    """

    def __init__(self, recordings: Recordings, *, used: bool = False) -> None:
        self.recordings, self._used = recordings, used
        catalogue = catalogue_of(recordings.application)
        self._log = CallLog(recordings, of_application=catalogue.table("llm_call_logs").usable)
        # An agent that row security hides is not unknown.
        agents = catalogue.table("User")
        self._agents_told = agents.usable and not agents.row_security

    def read(
        self, window_id: str, entries: Sequence[Entry], *, texts: bool = True
    ) -> Iterator[UsableTrajectory | Rejected]:
        """Each of the rows, all of them of the window, in any order."""
        for examined in self.examine(entries, window_id, texts=texts):
            yield examined.found

    def examine(
        self, entries: Sequence[Entry], window_id: str | None = None, *, texts: bool = True
    ) -> Iterator[Examined]:
        """Each of the rows in its own window, in any order; `window_id`: the window that all of them are in.

        Rows that the call log tells of come last in their piece; all others are let go one by one.
        """
        named = (entry.agent_id for entry in entries)
        agents = known_agents(self.recordings, named) if self._agents_told else None

        def refuse(entry: Entry) -> Refusal | None:
            return (_without_window(entry) if window_id is None else None) or refused_by_columns(entry, agents)

        for piece in fetched(self.recordings, self._log, entries, refuse):
            logged: list[tuple[Entry, Decoded]] = []
            for entry in piece.entries:
                name = entry.trajectory_id
                decoded = _decoded(piece, name, texts or name in piece.logged)
                if decoded is None:
                    continue  # deleted since it was catalogued, where the reader has no snapshot
                if isinstance(decoded, Decoded) and entry.trajectory_id in piece.logged:
                    logged.append((entry, decoded))
                    continue
                yield self._examined(entry, decoded, piece.calls.get(entry.trajectory_id, []), window_id, texts)
            for entry, decoded in self._log.added(logged):
                yield self._examined(entry, decoded, piece.calls.get(entry.trajectory_id, []), window_id, texts)

    def _examined(
        self, entry: Entry, decoded: Decoded | Refusal, calls: list[RecordedCall], window_id: str | None, texts: bool
    ) -> Examined:
        known = window_id is not None and entry.named in (None, window_id)
        own = Attribution(window_id) if known else entry.attribution
        if isinstance(decoded, Refusal):
            return Examined(entry, own.window_id, _rejected(entry, decoded, own.misnamed), [], bool(calls))
        found: UsableTrajectory | Rejected
        try:
            found = _trajectory(entry, decoded, calls, own, texts)
        except Refusal as refusal:
            found = _rejected(entry, refusal, own.misnamed)
        else:
            if entry.used and not self._used:
                found = _as_used(found)
        return Examined(entry, own.window_id, found, decoded.steps, bool(calls))


def _decoded(piece: Piece, trajectory_id: str, texts: bool) -> Decoded | Refusal | None:
    """The row's steps or why there are none; its text is let go. None where it is gone."""
    text = piece.texts.pop(trajectory_id, None)
    if text is None:
        return piece.refused.get(trajectory_id)
    try:
        return decode_steps(text, texts=texts)
    except Refusal as refusal:
        return refusal


def _without_window(entry: Entry) -> Refusal | None:
    reason = entry.attribution.reason
    return None if reason is None else Refusal(Reason(reason))


def refused_by_columns(entry: Entry, agents: set[str] | None) -> Refusal | None:
    """Why a row is refused before its text is looked at; None where the text decides."""
    if entry.agent_id == ENGINE:
        return Refusal(Reason.PSEUDO_AGENT, f"{ENGINE} records the engine's decisions, not an agent's")
    if entry.agent_id is None:
        return Refusal(Reason.UNKNOWN_AGENT, "it names no agent")
    if agents is not None and not entry.ours and entry.agent_id not in agents:
        return Refusal(Reason.UNKNOWN_AGENT)
    if entry.is_evaluation:
        return Refusal(Reason.EVALUATION)
    if not entry.is_training:
        return Refusal(Reason.NOT_TRAINING_DATA)
    if entry.status not in FINISHED:
        return Refusal(Reason.UNFINISHED, f"finalStatus is {entry.status!r}")
    if entry.length > LONGEST_STEPS:
        return Refusal(Reason.TOO_LONG, f"stepsJson has {entry.length} bytes, at most {LONGEST_STEPS} are read")
    return None


def _rejected(entry: Entry, refusal: Refusal, misnamed: bool) -> Rejected:
    # What else is wrong with a row that was trained on comes after that.
    first = entry.used and refusal.reason not in _BEFORE_USED
    reason, detail = (Reason.USED_IN_TRAINING.value, TEXTS[Reason.USED_IN_TRAINING]) if first else ("", "")
    return Rejected(entry.trajectory_id, entry.agent_id, reason or refusal.reason, detail or refusal.detail, misnamed)


_BEFORE_USED = {reason.value for reason in list(Reason)[: list(Reason).index(Reason.USED_IN_TRAINING)]}


def _as_used(found: UsableTrajectory) -> Rejected:
    reason = Reason.USED_IN_TRAINING
    return Rejected(found.trajectory_id, found.agent_id, reason.value, TEXTS[reason], found.misnamed, found.digest)


def _trajectory(
    entry: Entry, decoded: Decoded, calls: list[RecordedCall], own: Attribution, texts: bool
) -> UsableTrajectory:
    window_id = own.window_id
    assert window_id is not None and entry.ended is not None
    _refuse_not_finite(entry)
    steps = decoded.steps
    known = known_pnls(steps, entry.final_pnl, _milliseconds(window_id))
    if not known:
        raise Refusal(Reason.NO_PNL)
    first, last = known[0], known[-1]
    if max(abs(first), abs(last)) > LARGEST_PNL:
        raise Refusal(Reason.NON_FINITE_NUMBER, f"its P&L runs from {first} to {last}")
    if decoded.conflict is not None:
        raise decoded.conflict
    reason, detail = (trainability(steps, decoded.mended) if texts else None) or (None, "")
    end_time = entry.ended.replace(tzinfo=UTC)
    balance = finite(entry.final_balance)
    return UsableTrajectory(
        trajectory_id=entry.trajectory_id,
        agent_id=entry.agent_id,
        window_id=window_id,
        # A start that no calendar holds is not known; the end is the nearest that is.
        start_time=end_time if entry.started is None else entry.started.replace(tzinfo=UTC),
        end_time=end_time,
        steps=steps,
        first_pnl=first,
        last_pnl=last,
        window_pnl=last - first,
        final_balance=balance,
        calls=calls,
        provenance=provenance_of(steps, calls),
        digest=trajectory_digest(
            entry.trajectory_id, entry.agent_id, end_time, (first, last), balance, decoded.said, calls
        ),
        not_trainable=None if reason is None else reason.value,
        detail=detail,
        misnamed=own.misnamed,
    )


def _refuse_not_finite(entry: Entry) -> None:
    for value, name in (
        (entry.final_pnl, "finalPnL"),
        (entry.final_balance, "finalBalance"),
        (entry.total_reward, "totalReward"),
    ):
        if value is not None and not math.isfinite(value):
            raise Refusal(Reason.NON_FINITE_NUMBER, f"{name} is {value}")


def known_pnls(steps: Sequence[ReadStep], final_pnl: float | None, hour: tuple[int, int]) -> list[float]:
    """P&L known in the hour (its first and last millisecond's successor), oldest first. Zero is known, absent is not.

    Of each step what its state says, then what its action says of before and after itself; at last what the row says.
    A step of another hour does not count: its P&L belongs to that hour. A step without a time (0) does.
    """
    begin, end = hour
    told: list[Any] = []
    for step in steps:
        at, action = step.timestamp, step.action
        if at and not begin <= at < end:
            continue
        told.append(step.environment_state.agentPnL)
        for source in (action.parameters, action.result):
            if type(source) is dict and ("finalPnL" in source or "initialPnL" in source):
                told += (source.get("initialPnL"), source.get("finalPnL"))
    told.append(final_pnl)
    return [pnl for pnl in map(finite, told) if pnl is not None]


def finite(value: Any) -> float | None:
    """A finite number, else nothing; true and false are no numbers, and a text is one that spells a decimal.

    The application keeps money in DECIMAL columns, whose values Prisma writes to JSON as texts.
    """
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        number = float(value) if _DECIMAL.fullmatch(value) else math.nan
        return number if math.isfinite(number) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


@functools.lru_cache(maxsize=512)
def _milliseconds(window_id: str) -> tuple[int, int]:
    start = round(parse_window_id(window_id).timestamp() * 1000)
    return start, start + round(WINDOW_LENGTH.total_seconds() * 1000)
