"""The reader: the application's rows of a window, decoded; each row is used, counted, or rejected with a reason.

The database is taken as it is: JSON in TEXT is decoded here and never in SQL, where one bad escape would fail a query.
A row belongs to the window in which it ended; a `windowId` that says otherwise is told, not believed.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd
import psycopg
import sqlalchemy as sa

from babylon_rl.database.application_tables import llm_call_logs, trajectories
from babylon_rl.database.bulk import compiled, encode_json, read_frame, stream_rows
from babylon_rl.database.connect import Recordings
from babylon_rl.database.tables import recorded_calls
from babylon_rl.errors import RecordingError
from babylon_rl.recording.records import LLMCall, RecordedCall, Step
from babylon_rl.recording.window import (
    RecordedWindow,
    Rejected,
    UsableTrajectory,
    provenance_of,
    trajectory_digest,
    window_revision,
)
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, window_of

FINISHED = {"completed", "completed_with_errors"}
# The application's engine records its own decisions under this id, without balance or P&L.
ENGINE = "market-decision-engine"

CHUNK = 500  # windows that one scan looks for
HOUR = 'YYYY-MM-DD"T"HH24:00'  # window id of a time, in PostgreSQL

_steps = msgspec.json.Decoder(list[Step])
_COLUMNS = (
    "trajectoryId agentId startTime endTime windowId batchId stepsJson finalStatus finalBalance finalPnL "
    "isTrainingData isEvaluation"
).split()
_CALL_COLUMNS = [recorded_calls.c[name] for name in RecordedCall.__struct_fields__]


class _Refusal(Exception):
    """A row cannot be used: name of the reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class RangeReader:
    """Reads windows of a range one by one; rows that do not name their window are looked for once a chunk of them.

    The application has no index on its times, so each look is a scan of its table.
    """

    def __init__(self, recordings: Recordings, window_ids: Sequence[str]) -> None:
        self.recordings = recordings
        wanted = sorted(set(window_ids))
        for window_id in wanted:
            parse_window_id(window_id)
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        self._chunks = {window_id: chunk for chunk in chunks for window_id in chunk}
        self._misnamed: dict[str, list[str]] = {}

    def read(self, window_id: str) -> RecordedWindow:
        """As `read_window`, for a window of the range."""
        return _window(self.recordings, window_id, self.misnamed(window_id))

    def misnamed(self, window_id: str) -> list[str]:
        """Trajectories that ended in the window and name another or none."""
        if window_id not in self._misnamed:
            chunk = self._chunks[window_id]
            # What an earlier chunk found is done with; a range may be years long.
            self._misnamed = {one: [] for one in chunk}
            for trajectory_id, ended in self.recordings.application.execute(*compiled(_misnamed(chunk))):
                if (own := window_of(ended)) in self._misnamed:
                    self._misnamed[own].append(trajectory_id)
        return self._misnamed[window_id]


def read_window(recordings: Recordings, window_id: str, misnamed: Sequence[str] | None = None) -> RecordedWindow:
    """Everything recorded in a window, ordered by trajectory id. WindowIdError for a text that is no window id.

    `misnamed`: ids of the trajectories that ended in it and name another window or none, from a caller who knows them;
    otherwise the whole table is searched for them.
    """
    if misnamed is not None:
        return _window(recordings, window_id, misnamed)
    return RangeReader(recordings, [window_id]).read(window_id)


def read_windows(recordings: Recordings, window_ids: Sequence[str]) -> Iterator[RecordedWindow]:
    """The windows, one after the other in the order given; one window's recordings are in memory at a time."""
    return map(RangeReader(recordings, window_ids).read, window_ids)


def _window(recordings: Recordings, window_id: str, misnamed: Sequence[str]) -> RecordedWindow:
    start = parse_window_id(window_id)
    rejected: list[Rejected] = []
    finished: list[tuple[dict[str, Any], list[Step]]] = []
    for row in _rows(recordings.application, window_id, misnamed):
        try:
            finished.append((row, _usable_steps(row, window_id)))
        except _Refusal as refusal:
            rejected.append(Rejected(row["trajectoryId"], row["agentId"], refusal.reason, refusal.detail))
    finished, usable = _with_logged_texts(recordings.application, finished), []
    calls = read_calls(recordings.ours, [row["trajectoryId"] for row, _ in finished])
    for row, steps in finished:
        try:
            usable.append(_trajectory(row, steps, calls.get(row["trajectoryId"], []), window_id, start))
        except _Refusal as refusal:
            rejected.append(Rejected(row["trajectoryId"], row["agentId"], refusal.reason, refusal.detail))
    usable.sort(key=lambda t: t.trajectory_id)
    rejected.sort(key=lambda r: r.trajectory_id)
    return RecordedWindow(window_id, usable, rejected, window_revision(usable))


def read_calls(connection: psycopg.Connection, trajectory_ids: Sequence[str]) -> dict[str, list[RecordedCall]]:
    """Recorded calls by trajectory, ordered by step and call."""
    if not trajectory_ids:
        return {}
    statement = (
        sa.select(*_CALL_COLUMNS)
        .where(recorded_calls.c.trajectory_id == sa.any_(sa.literal(list(trajectory_ids), sa.ARRAY(sa.Text))))
        .order_by(recorded_calls.c.trajectory_id, recorded_calls.c.step_number, recorded_calls.c.call_id)
    )
    found: dict[str, list[RecordedCall]] = defaultdict(list)
    with connection.cursor(binary=True) as cursor:
        for values in cursor.execute(*compiled(statement)):
            call = RecordedCall(**dict(zip(RecordedCall.__struct_fields__, values, strict=True)))
            found[call.trajectory_id].append(call)
    return dict(found)


def list_windows(connection: psycopg.Connection) -> pd.DataFrame:
    """Windows with recordings: window_id, recorded (rows for training), agents, evaluation (rows), by window id."""
    hour = sa.func.to_char(trajectories.c.endTime, HOUR).label("window_id")
    training = trajectories.c.isEvaluation.is_(False)
    statement = (
        sa.select(
            hour,
            sa.func.count().filter(training).label("recorded"),
            sa.func.count(trajectories.c.agentId.distinct()).filter(training).label("agents"),
            sa.func.count().filter(~training).label("evaluation"),
        )
        .group_by(hour)
        .order_by(hour)
    )
    return read_frame(connection, statement)


def read_evaluation(connection: psycopg.Connection, window_ids: Sequence[str], split: str) -> pd.DataFrame:
    """Runs recorded for an evaluation: window_id, arm, agent_id, pnl and capital (dollars), valid, by those three.

    `valid`: every action of the run was one. RecordingError where a run cannot be read: a comparison with a hole in
    it would not be paired.
    """
    columns = ("window_id", "arm", "agent_id", "pnl", "capital", "valid")
    statement = (
        sa.select(*(trajectories.c[name] for name in ("windowId", "batchId", "agentId", "finalPnL", "stepsJson")))
        .where(
            trajectories.c.windowId == sa.any_(sa.literal(list(window_ids), sa.ARRAY(sa.Text))),
            trajectories.c.isEvaluation,
            sa.func.split_part(trajectories.c.batchId, ":", 1) == split,
        )
        .order_by(trajectories.c.windowId, trajectories.c.batchId, trajectories.c.agentId)
    )
    rows = []
    for window_id, batch_id, agent_id, pnl, text in stream_rows(connection, statement):
        try:
            steps = _decode(text)
        except _Refusal as refusal:
            raise RecordingError(
                f"{agent_id}'s run of {batch_id} in {window_id} cannot be read ({refusal.detail}). "
                "Delete that row from trajectories and play the evaluation again."
            ) from None
        capital = _number(steps[0].environment_state.get("agentBalance")) if steps else None
        valid = bool(steps) and all(step.action.success for step in steps)
        rows.append((window_id, batch_id.split(":", 1)[1], agent_id, pnl, capital, valid))
    return pd.DataFrame(rows, columns=columns)


def whole_windows(
    connection: psycopg.Connection, window_ids: Sequence[str], agents: int, batch_id: str | None = None
) -> set[str]:
    """Windows that hold runs of at least `agents` agents: of the evaluation `batch_id`, or else for training."""
    mine = (
        trajectories.c.isEvaluation.is_(False)
        if batch_id is None
        else sa.and_(trajectories.c.isEvaluation, trajectories.c.batchId == batch_id)
    )
    statement = (
        sa.select(trajectories.c.windowId)
        .where(trajectories.c.windowId == sa.any_(sa.literal(list(window_ids), sa.ARRAY(sa.Text))), mine)
        .group_by(trajectories.c.windowId)
        .having(sa.func.count(trajectories.c.agentId.distinct()) >= agents)
    )
    return {window_id for (window_id,) in connection.execute(*compiled(statement))}


def _rows(connection: psycopg.Connection, window_id: str, misnamed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows that name the window, through its index, then those of `misnamed`, which ended in it."""
    conditions = [trajectories.c.windowId == window_id]
    if misnamed:
        # A row that was given this name since it was looked for is among those that name it.
        named_otherwise = trajectories.c.windowId.is_distinct_from(window_id)
        wanted = trajectories.c.trajectoryId == sa.any_(sa.literal(list(misnamed), sa.ARRAY(sa.Text)))
        conditions.append(sa.and_(wanted, *_within(window_id, window_id), named_otherwise))
    for condition in conditions:
        statement = sa.select(*(trajectories.c[name] for name in _COLUMNS)).where(condition)
        for values in stream_rows(connection, statement):
            yield dict(zip(_COLUMNS, values, strict=True))


def _misnamed(window_ids: Sequence[str]) -> sa.Select:
    """Rows that ended between the first and the last of these windows and do not name the hour in which they did."""
    hour = sa.func.to_char(trajectories.c.endTime, HOUR)
    return sa.select(trajectories.c.trajectoryId, trajectories.c.endTime).where(
        *_within(min(window_ids), max(window_ids)), trajectories.c.windowId.is_distinct_from(hour)
    )


def _within(first: str, last: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """That a row ended in the windows from `first` to `last`."""
    start, end = (parse_window_id(window_id).replace(tzinfo=None) for window_id in (first, last))
    return trajectories.c.endTime >= start, trajectories.c.endTime < end + WINDOW_LENGTH


def _usable_steps(row: dict[str, Any], window_id: str) -> list[Step]:
    """Decoded steps of a row that may be used. _Refusal otherwise."""
    ended_in = window_of(row["endTime"])
    if ended_in != window_id:
        raise _Refusal(
            "window_mismatch",
            f"it names {window_id} but ended at {row['endTime']:%Y-%m-%d %H:%M:%S}: read in {ended_in}",
        )
    if row["agentId"] == ENGINE:
        raise _Refusal("not_an_agent", f"{ENGINE} records the engine's decisions, not an agent's")
    if row["isEvaluation"]:
        raise _Refusal("evaluation", "isEvaluation is true: it is compared, never trained on")
    if not row["isTrainingData"]:
        raise _Refusal("not_training_data", "isTrainingData is false")
    if row["finalStatus"] not in FINISHED:
        raise _Refusal("unfinished", f"finalStatus is {row['finalStatus']!r}")
    steps = _decode(row["stepsJson"])
    if not steps:
        raise _Refusal("empty_steps", "stepsJson holds no step")
    pending = [step.step_number for step in steps if step.action.action_type == "pending"]
    if pending:
        raise _Refusal("unfinished", f"step {pending[0]} never came to an action")
    return steps


def _decode(text: str) -> list[Step]:
    try:
        return _decode_once(text)
    except msgspec.ValidationError as error:
        raise _Refusal("invalid_steps", str(error)) from None
    except msgspec.DecodeError as error:
        raise _Refusal("invalid_json", str(error)) from None


def _decode_once(text: str) -> list[Step]:
    try:
        return _steps.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        # JavaScript writes half a surrogate pair as an escape, which strict JSON refuses; it is replaced then.
        try:
            mended = encode_json(text)
        except ValueError:
            raise error from None
        return _steps.decode(mended)


def _with_logged_texts(
    connection: psycopg.Connection, finished: list[tuple[dict[str, Any], list[Step]]]
) -> list[tuple[dict[str, Any], list[Step]]]:
    """Steps without calls get those of `llm_call_logs`, where there are any."""
    bare = [row["trajectoryId"] for row, steps in finished if any(not step.llm_calls for step in steps)]
    if not bare:
        return finished
    logged = _logged_calls(connection, bare)
    return [
        (
            row,
            [
                step if step.llm_calls else msgspec.structs.replace(step, llm_calls=found)
                for step in steps
                for found in [logged.get((row["trajectoryId"], step.step_number), [])]
            ],
        )
        for row, steps in finished
    ]


def _logged_calls(connection: psycopg.Connection, trajectory_ids: list[str]) -> dict[tuple[str, int], list[LLMCall]]:
    """Calls of `llm_call_logs` by trajectory and step number, which its stepId ends with."""
    logs = llm_call_logs.c
    statement = (
        sa.select(
            logs.trajectoryId, logs.stepId, logs.model, logs.systemPrompt, logs.userPrompt, logs.response,
            logs.temperature, logs.maxTokens, logs.purpose, logs.reasoning, logs.latencyMs, logs.actionType,
        )
        .where(logs.trajectoryId == sa.any_(sa.literal(trajectory_ids, sa.ARRAY(sa.Text))))
        .order_by(logs.trajectoryId, logs.timestamp, logs.callId)
    )  # fmt: skip
    found: dict[tuple[str, int], list[LLMCall]] = defaultdict(list)
    for (
        trajectory_id,
        step,
        model,
        system,
        user,
        response,
        temperature,
        most,
        purpose,
        reasoning,
        ms,
        action,
    ) in connection.execute(*compiled(statement)):
        number = step.rpartition("-")[2]
        if not number.isdecimal():
            continue
        call = LLMCall(
            model=model, system_prompt=system, user_prompt=user, response=response, temperature=temperature,
            max_tokens=most, purpose=purpose, reasoning=reasoning, latency_ms=ms, action_type=action,
        )  # fmt: skip
        found[trajectory_id, int(number)].append(call)
    return found


def _trajectory(
    row: dict[str, Any], steps: list[Step], calls: list[RecordedCall], window_id: str, start: datetime
) -> UsableTrajectory:
    known = _known_pnls(row, steps, start)
    if len(known) < 2:
        raise _Refusal("no_pnl", f"{len(known)} P&L known in the window; it takes a first and a last")
    first, last = known[0], known[-1]
    end_time = row["endTime"].replace(tzinfo=UTC)
    balance = _number(row["finalBalance"])
    return UsableTrajectory(
        trajectory_id=row["trajectoryId"],
        agent_id=row["agentId"],
        window_id=window_id,
        start_time=row["startTime"].replace(tzinfo=UTC),
        end_time=end_time,
        steps=steps,
        first_pnl=first,
        last_pnl=last,
        window_pnl=last - first,
        final_balance=balance,
        calls=calls,
        provenance=provenance_of(steps, calls),
        digest=trajectory_digest(row["trajectoryId"], row["agentId"], end_time, (first, last), balance, steps, calls),
    )


def _known_pnls(row: dict[str, Any], steps: list[Step], start: datetime) -> list[float]:
    """P&L known in the window, oldest first: before each step, then at the end. Zero is known, absent is not.

    A step of an earlier hour does not count: its P&L belongs to that hour. A step without a time (0) does.
    """
    begin = start.timestamp() * 1000
    told = [
        _number(step.environment_state.get("agentPnL"))
        for step in steps
        if step.timestamp >= begin or step.timestamp == 0
    ]
    return [pnl for pnl in (*told, _number(row["finalPnL"])) if pnl is not None]


def _number(value: Any) -> float | None:
    """A finite number, else nothing; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
