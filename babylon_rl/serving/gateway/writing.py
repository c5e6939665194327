"""Events of the spool to rows, in the caller's transaction. Written any number of times, each is there once.

An event that contradicts what is there, or that PostgreSQL cannot hold, is not written: `write_events` says why.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert

from babylon_rl.database.bulk import DIALECT
from babylon_rl.database.metadata import Json
from babylon_rl.database.serving_tables import gateway_calls, gateway_steps, gateway_trajectories, recording_gaps
from babylon_rl.database.values import UnfitValue, clean_text, encode_json
from babylon_rl.errors import RecordingError
from babylon_rl.serving.gateway.assembly import Started, record
from babylon_rl.serving.gateway.events import AbandonEvent, CallEvent, EndEvent, Event, GapEvent, StartEvent, StepEvent

# Of PostgreSQL, by the first letters of the code: a value that cannot be, a constraint, something too large.
OF_THE_EVENT = ("22", "23", "54")


class NotWritten(NamedTuple):
    """An event that was not written: its place among those given, and why."""

    place: int
    reason: str


class _Row(NamedTuple):
    """What is there of a trajectory."""

    agent_id: str
    state: str
    started: dict[str, Any]
    ended: dict[str, Any] | None
    created_at: datetime


def write_events(connection: psycopg.Connection, events: Sequence[Event]) -> list[NotWritten]:
    """Write events in their order; those that cannot be. An error that is none of an event's is raised."""
    try:
        with connection.transaction():
            return _write(connection, events)
    except Exception as error:
        if not of_the_event(error):
            raise
    refused = []
    for place, event in enumerate(events):
        try:
            with connection.transaction():
                refused += [NotWritten(place, one.reason) for one in _write(connection, [event])]
        except Exception as error:
            if not of_the_event(error):
                raise
            refused.append(NotWritten(place, said(error)))
    return refused


def of_the_event(error: Exception) -> bool:
    """Whether the same event would fail again, whatever is done about the server."""
    if isinstance(error, psycopg.Error):
        return (error.sqlstate or "").startswith(OF_THE_EVENT) or isinstance(error, psycopg.DataError)
    known = (UnfitValue, RecordingError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
    return isinstance(error, (*known, AttributeError, msgspec.MsgspecError))


def said(error: BaseException) -> str:
    """The error in one line; no secret is in what PostgreSQL says of a value."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no detail'])[0]}"[:500]


def _write(connection: psycopg.Connection, events: Sequence[Event]) -> list[NotWritten]:
    names = {event.trajectory_id for event in events if not isinstance(event, CallEvent | GapEvent)}
    there = _trajectories(connection, sorted(names))
    steps = _steps(connection, [event for event in events if isinstance(event, StepEvent)])
    refused: list[NotWritten] = []
    waiting = _Waiting(connection)
    for place, event in enumerate(events):
        try:
            match event:
                case CallEvent():
                    waiting.add(gateway_calls, _call_row(event))
                case GapEvent():
                    waiting.add(recording_gaps, {**msgspec.structs.asdict(event), **_times(event, "since", "until")})
                case StartEvent():
                    _start(there, event, waiting)
                case StepEvent():
                    _step(there, steps, event, waiting)
                case EndEvent():
                    waiting.write()
                    _end(connection, there, event)
                case AbandonEvent():
                    waiting.write()
                    _abandon(connection, there, event)
        except RecordingError as error:
            refused.append(NotWritten(place, str(error)))
    waiting.write()
    return refused


class _Waiting:
    """Rows by table, written together; a row that is there stays as it is."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection, self.rows = connection, {}

    def add(self, table: sa.Table, row: dict[str, Any]) -> None:
        self.rows.setdefault(table, []).append({name: _value(table.c[name], value) for name, value in row.items()})

    def write(self) -> None:
        for table, rows in self.rows.items():
            statement = insert(table).on_conflict_do_nothing()
            text = str(statement.compile(dialect=DIALECT, column_keys=list(rows[0])))
            with self.connection.cursor() as cursor:
                cursor.executemany(text, rows)
        self.rows = {}


def _value(column: sa.Column, value: Any) -> Any:
    """As PostgreSQL can hold it: NUL and halves of surrogate pairs as in all recordings."""
    if value is None:
        return None
    if isinstance(column.type, type(Json)):
        return encode_json(value)
    if isinstance(column.type, ARRAY):
        return value
    return clean_text(value) if isinstance(value, str) else value


def _call_row(event: CallEvent) -> dict[str, Any]:
    row = {name: getattr(event, name) for name in event.__struct_fields__ if name in gateway_calls.c}
    return {**row, **_times(event, "asked_at")}


def _times(event: Event, *names: str) -> dict[str, datetime]:
    return {name: datetime.fromtimestamp(getattr(event, name), UTC) for name in names}


def _trajectories(connection: psycopg.Connection, names: Sequence[str]) -> dict[str, _Row]:
    if not names:
        return {}
    query = """SELECT trajectory_id, agent_id, state, started, ended, created_at FROM babylon_rl.gateway_trajectories
        WHERE trajectory_id = ANY(%s)"""
    return {name: _Row(*rest) for name, *rest in connection.execute(query, (list(names),))}


def _start(there: dict[str, _Row], event: StartEvent, waiting: _Waiting) -> None:
    body = json.loads(encode_json(event.body))
    known = there.get(event.trajectory_id)
    if known is not None:
        if (known.agent_id, known.started) != (event.agent_id, body):
            raise RecordingError(f"the trajectory {event.trajectory_id!r} was started before, otherwise")
        return
    at = datetime.fromtimestamp(event.at, UTC)
    row = {"trajectory_id": event.trajectory_id, "key_id": event.key_id, "agent_id": event.agent_id, "state": "open",
           "started": event.body, "created_at": at}  # fmt: skip
    waiting.add(gateway_trajectories, row)
    there[event.trajectory_id] = _Row(event.agent_id, "open", body, None, at)


def _steps(connection: psycopg.Connection, events: Sequence[StepEvent]) -> dict[tuple[str, int], str]:
    """What is there of the steps, by trajectory and number."""
    if not events:
        return {}
    query = """SELECT s.trajectory_id, s.step_number, s.content FROM babylon_rl.gateway_steps s
        JOIN unnest(%s::text[], %s::bigint[]) AS wanted (name, number)
        ON s.trajectory_id = wanted.name AND s.step_number = wanted.number"""
    wanted = ([event.trajectory_id for event in events], [event.step_number for event in events])
    return {(name, number): content for name, number, content in connection.execute(query, wanted)}


def _step(there: Mapping[str, _Row], steps: dict[tuple[str, int], str], event: StepEvent, waiting: _Waiting) -> None:
    row = _started(there, event.trajectory_id)
    place, content = (event.trajectory_id, event.step_number), clean_text(event.content)
    if place in steps:
        if steps[place] != content:
            raise RecordingError(f"step {event.step_number} of {event.trajectory_id!r} was sent before, otherwise")
        return
    if row.state != "open":
        raise RecordingError(f"the trajectory {event.trajectory_id!r} is {row.state}: it takes no more steps")
    values = {"trajectory_id": event.trajectory_id, "step_number": event.step_number, "content": content}
    waiting.add(gateway_steps, {**values, "taken_at": datetime.fromtimestamp(event.at, UTC)})
    steps[place] = content


def _end(connection: psycopg.Connection, there: dict[str, _Row], event: EndEvent) -> None:
    row = _started(there, event.trajectory_id)
    said_now = {"said": json.loads(encode_json(event.body))}
    if row.state != "open":
        if row.state == "abandoned" or (row.ended or {}).get("said") != said_now["said"]:
            raise RecordingError(f"the trajectory {event.trajectory_id!r} is {row.state} already")
        return
    started = Started(event.trajectory_id, row.agent_id, row.started, row.created_at)
    try:
        with connection.transaction():
            missing = record(connection, started, event)
    except Exception as error:
        if not of_the_event(error):
            raise
        reason = str(error) if isinstance(error, RecordingError) else said(error)
        _close(connection, there, event.trajectory_id, "refused", {**said_now, "reason": reason[:2000]}, event.at)
        return
    ended = {**said_now, **({"missing_calls": missing} if missing else {})}
    _close(connection, there, event.trajectory_id, "ended", ended, event.at)


def _abandon(connection: psycopg.Connection, there: dict[str, _Row], event: AbandonEvent) -> None:
    row = _started(there, event.trajectory_id)
    if row.state == "open":
        _close(connection, there, event.trajectory_id, "abandoned", {"reason": event.reason}, event.at)
    elif row.state != "abandoned" or (row.ended or {}).get("reason") != clean_text(event.reason):
        raise RecordingError(f"the trajectory {event.trajectory_id!r} is {row.state} already")


def _started(there: Mapping[str, _Row], trajectory_id: str) -> _Row:
    row = there.get(trajectory_id)
    if row is None:
        raise RecordingError(f"no start of the trajectory {trajectory_id!r} was written")
    return row


def _close(
    connection: psycopg.Connection, there: dict[str, _Row], name: str, state: str, ended: dict[str, Any], at: float
) -> None:
    text = encode_json(ended)
    connection.execute(
        "UPDATE babylon_rl.gateway_trajectories SET state = %s, ended = %s::jsonb, closed_at = %s "
        "WHERE trajectory_id = %s",
        (state, text, datetime.fromtimestamp(at, UTC), name),
    )
    there[name] = there[name]._replace(state=state, ended=json.loads(text))
