"""From catalogued rows to trajectories: the order in which reasons are looked for, and the P&L of a window."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from typing import Any

import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.recording.calls import CallLog, read_calls, with_logged
from babylon_rl.recording.catalog import APPLICATION, OURS, Entry, known_agents
from babylon_rl.recording.decoding import Decoded, Refusal, decode_steps
from babylon_rl.recording.reasons import TEXTS, Reason
from babylon_rl.recording.records import RecordedCall, Step
from babylon_rl.recording.window import (
    Rejected,
    UsableTrajectory,
    provenance_of,
    trainability,
    trajectory_digest,
)
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

FINISHED = {"completed", "completed_with_errors"}
# The application's engine records its own decisions under this id, without balance or P&L.
ENGINE = "market-decision-engine"

LONGEST_STEPS = 32 * 2**20  # bytes of stepsJson that are fetched at all
LARGEST_PNL = 1e100  # dollars; sums and squares of what is larger leave the range of a double
PIECE_ROWS, PIECE_BYTES = 200, 16 * 2**20  # what is in memory at a time


class RowReader:
    """Reads rows of one snapshot. `used`: rows that training used are read as if it had not."""

    def __init__(self, recordings: Recordings, *, used: bool = False) -> None:
        self.recordings, self._used, self._log = recordings, used, CallLog(recordings)

    def read(self, window_id: str, entries: Sequence[Entry]) -> Iterator[UsableTrajectory | Rejected]:
        """Each of the rows, all of them of the window, in their order."""
        agents = known_agents(self.recordings, (entry.agent_id for entry in entries))
        hour = _milliseconds(window_id)
        for piece in pieces(entries):
            for entry, decoded, calls in self.decoded(piece, agents):
                misnamed = entry.named not in (None, window_id) and entry.attribution.misnamed
                if isinstance(decoded, Refusal):
                    yield _rejected(entry, decoded, misnamed)
                    continue
                try:
                    found = _trajectory(entry, decoded, calls, window_id, hour, misnamed)
                except Refusal as refusal:
                    yield _rejected(entry, refusal, misnamed)
                    continue
                yield _as_used(found) if entry.used and not self._used else found

    def decoded(
        self, piece: Sequence[Entry], agents: set[str] | None
    ) -> Iterator[tuple[Entry, Decoded | Refusal, list[RecordedCall]]]:
        """Each row of the piece with its steps, to which the log's calls are added, or with why it has none."""
        refused = {entry.trajectory_id: why for entry in piece if (why := refused_by_columns(entry, agents))}
        found: dict[str, Decoded | Refusal] = dict(refused)
        for trajectory_id, text in self._texts([entry for entry in piece if entry.trajectory_id not in refused]):
            try:
                found[trajectory_id] = decode_steps(text)
            except Refusal as refusal:
                found[trajectory_id] = refusal
        steps = {name: one.steps for name, one in found.items() if isinstance(one, Decoded)}
        calls = read_calls(self.recordings.ours, list(steps))
        bare = [name for name, own in steps.items() if not all(step.llm_calls for step in own)]
        logged = self._log.read(bare, [name for name in steps if name not in set(bare)]) if steps else {}
        for entry in piece:
            one = found.get(entry.trajectory_id)
            if one is None:
                continue  # deleted since it was catalogued, where the reader has no snapshot
            yield entry, self._with_log(entry, one, logged), calls.get(entry.trajectory_id, [])

    def _with_log(self, entry: Entry, one: Decoded | Refusal, logged: dict[str, list[Any]]) -> Decoded | Refusal:
        rows = logged.get(entry.trajectory_id)
        if not rows or isinstance(one, Refusal):
            return one
        try:
            return Decoded(with_logged(entry.trajectory_id, one.steps, rows), one.mended)
        except Refusal as refusal:
            return Decoded(one.steps, one.mended, refusal)

    def _texts(self, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
        for ours, table in ((False, APPLICATION), (True, OURS)):
            connection = self.recordings.ours if ours else self.recordings.application
            ids = [entry.trajectory_id for entry in entries if entry.ours is ours]
            if ids:
                yield from _copied(connection, table, ids)


def _copied(connection: psycopg.Connection, table: sql.Identifier, ids: list[str]) -> Iterator[tuple[str, bytes]]:
    """Texts by trajectory. COPY: the server prepares the next row while this one is decoded."""
    query = sql.SQL(
        'COPY (SELECT "trajectoryId", "stepsJson" FROM {} WHERE "trajectoryId" = ANY({})) TO STDOUT (FORMAT BINARY)'
    ).format(table, sql.Literal(ids))
    encoding = connection.info.encoding
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.set_types(["text", "bytea"])
        for trajectory_id, text in copy.rows():
            yield trajectory_id, text if encoding in ("utf-8", "ascii") else text.decode(encoding, "replace").encode()


def pieces(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The rows in pieces that are bounded in rows and bytes; a single row may be longer."""
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


def refused_by_columns(entry: Entry, agents: set[str] | None) -> Refusal | None:
    """Why a row is refused before its text is looked at; None where the text decides."""
    if entry.agent_id == ENGINE:
        return Refusal(Reason.PSEUDO_AGENT, f"{ENGINE} records the engine's decisions, not an agent's")
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
    entry: Entry, decoded: Decoded, calls: list[RecordedCall], window_id: str, hour: tuple[int, int], misnamed: bool
) -> UsableTrajectory:
    _refuse_not_finite(entry)
    steps = decoded.steps
    known = known_pnls(steps, entry.final_pnl, hour)
    if not known:
        raise Refusal(Reason.NO_PNL)
    first, last = known[0], known[-1]
    if max(abs(first), abs(last)) > LARGEST_PNL:
        raise Refusal(Reason.NON_FINITE_NUMBER, f"its P&L runs from {first} to {last}")
    if decoded.conflict is not None:
        raise decoded.conflict
    reason, detail = trainability(steps, decoded.mended) or (None, "")
    assert entry.ended is not None
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
        digest=trajectory_digest(entry.trajectory_id, entry.agent_id, end_time, (first, last), balance, steps, calls),
        not_trainable=None if reason is None else reason.value,
        detail=detail,
        misnamed=misnamed,
    )


def _refuse_not_finite(entry: Entry) -> None:
    columns = {"finalPnL": entry.final_pnl, "finalBalance": entry.final_balance, "totalReward": entry.total_reward}
    for name, value in columns.items():
        if value is not None and not math.isfinite(value):
            raise Refusal(Reason.NON_FINITE_NUMBER, f"{name} is {value}")


def known_pnls(steps: Sequence[Step], final_pnl: float | None, hour: tuple[int, int]) -> list[float]:
    """P&L known in the hour (its first and last millisecond's successor), oldest first. Zero is known, absent is not.

    Of each step what its state says, then what its action says of before and after itself; at last what the row says.
    A step of another hour does not count: its P&L belongs to that hour. A step without a time (0) does.
    """
    begin, end = hour
    known: list[float] = []
    for step in steps:
        if step.timestamp and not begin <= step.timestamp < end:
            continue
        values = [step.environment_state.get("agentPnL")]
        for source in (step.action.parameters, step.action.result):
            if isinstance(source, dict) and ("finalPnL" in source or "initialPnL" in source):
                values += (source.get("initialPnL"), source.get("finalPnL"))
        known += [pnl for value in values if (pnl := finite(value)) is not None]
    if (pnl := finite(final_pnl)) is not None:
        known.append(pnl)
    return known


def finite(value: Any) -> float | None:
    """A finite number, else nothing; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _milliseconds(window_id: str) -> tuple[int, int]:
    start = round(parse_window_id(window_id).timestamp() * 1000)
    return start, start + round(WINDOW_LENGTH.total_seconds() * 1000)
