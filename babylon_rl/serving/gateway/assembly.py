"""From what was said of a trajectory over HTTP, and the gateway's calls in it, to a recorded trajectory.

What is put together is a line of the recorder's contract, checked and written as an imported one is: to our schema,
where no agent need be known to the application and no right to write its tables is needed. The gateway's calls are
filled in to the letter. A call belongs to a step by the headers that it was asked with, or because the step names it;
it must be of the trajectory's agent. A call that is answered after the end stays in `gateway_calls` alone.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import psycopg

from babylon_rl.errors import RecordingError
from babylon_rl.recording.checking import check_line
from babylon_rl.recording.contract import VERSION, Time
from babylon_rl.recording.imported_rows import imported_rows
from babylon_rl.recording.importing import write_rows
from babylon_rl.recording.problems import moment
from babylon_rl.recording.verbatim import verbatim_json
from babylon_rl.serving.gateway.events import EndEvent
from babylon_rl.serving.gateway.said import is_named, whole_step
from babylon_rl.serving.gateway.verbatim_calls import BROKEN_OFF, GatewayCall, contract_call
from babylon_rl.windows import window_of

ACTION, OTHER = "action", "other"
_CALLS = """SELECT call_id, agent_id, trajectory_id, step_number, checkpoint_id, model, request, response, status,
    streamed, prompt_token_ids, token_ids, logprobs, sampling, finish_reason, asked_at, latency_ms
    FROM babylon_rl.gateway_calls WHERE (trajectory_id = %s OR call_id = ANY(%s)) AND agent_id = %s AND status = 200
    ORDER BY asked_at, call_id"""
_STEPS = """SELECT step_number, content, taken_at FROM babylon_rl.gateway_steps WHERE trajectory_id = %s
    ORDER BY step_number"""


class Started(NamedTuple):
    """A trajectory that was started: what was said then. `created_at`: when, where it did not say."""

    trajectory_id: str
    agent_id: str
    body: dict[str, Any]
    created_at: datetime


class StoredStep(NamedTuple):
    """A step: its JSON as it was sent, and when."""

    number: int
    body: dict[str, Any]
    taken_at: datetime


class Assembled(NamedTuple):
    """A line of the contract. `missing`: calls that steps name and the gateway has no answered record of."""

    line: dict[str, Any]
    missing: list[str]


def record(connection: psycopg.Connection, started: Started, end: EndEvent) -> list[str]:
    """Write the ended trajectory to the recordings in the caller's transaction; ids of the calls that it lacks.

    RecordingError, or ValueError of a call's texts, where it cannot be recorded.
    """
    steps = [
        StoredStep(number, json.loads(content), taken_at)  # Python's own: it reads half a surrogate pair
        for number, content, taken_at in connection.execute(_STEPS, (started.trajectory_id,))
    ]
    named = sorted({name for step in steps for name in named_calls(step.body)})
    with connection.cursor(binary=True) as cursor:
        cursor.execute(_CALLS, (started.trajectory_id, named, started.agent_id))
        fields = GatewayCall.__struct_fields__
        calls = [GatewayCall(**dict(zip(fields, values, strict=True))) for values in cursor]
    # A stream that broke off, or that its caller left, was no answer, unless the step says that it was.
    calls = [call for call in calls if call.finish_reason not in BROKEN_OFF or call.call_id in named]
    assembled = assemble(started, steps, calls, end)
    checked = check_line(verbatim_json(assembled.line).encode())
    if checked.problems:
        raise RecordingError("; ".join(map(str, checked.problems)))
    rows = imported_rows(checked, datetime.now(UTC))
    if not write_rows(connection, [rows]):
        raise RecordingError(f"a trajectory {started.trajectory_id!r} is recorded already, and an id is recorded once")
    return assembled.missing


def assemble(started: Started, steps: Sequence[StoredStep], calls: Sequence[GatewayCall], end: EndEvent) -> Assembled:
    """The trajectory as a line of the contract. ValueError where a call's texts cannot be read."""
    said = {**started.body, **end.body}
    by_id = {call.call_id: call for call in calls}
    missing: list[str] = []
    lines = []
    for step in steps:
        whole = whole_step(step.body, _ms(step.taken_at))
        whole["llmCalls"] = step_calls(step, calls, by_id, missing)
        lines.append(whole)
    end_time = said.get("endTime") if said.get("endTime") is not None else round(end.at * 1000)
    succeeded = all(isinstance(one.get("action"), dict) and one["action"].get("success") for one in lines)
    line = {
        "version": VERSION,
        "windowId": window_of(moment(msgspec.convert(end_time, Time))),
        "finalStatus": "completed" if succeeded else "completed_with_errors",
        **{name: value for name, value in said.items() if value is not None},
        "trajectoryId": started.trajectory_id,
        "agentId": started.agent_id,
        "startTime": said["startTime"] if said.get("startTime") is not None else _ms(started.created_at),
        "endTime": end_time,
        "steps": lines,
    }
    return Assembled(line, missing)


def named_calls(step: Mapping[str, Any]) -> list[str]:
    """Ids of the calls that a step names, in order."""
    named = [call["callId"] for call in step.get("llmCalls") or [] if isinstance(call, dict) and call.get("callId")]
    return list(dict.fromkeys([*(step.get("callIds") or []), *named]))


def step_calls(
    step: StoredStep, calls: Sequence[GatewayCall], by_id: Mapping[str, GatewayCall], missing: list[str]
) -> list[dict[str, Any]]:
    """The step's calls in the contract's JSON: those that it tells, and the gateway's.

    A call that the step tells in full and that went through the gateway (by its id, or by its very texts) is the
    gateway's, with the purpose that the step says. Where nobody says which answer is the action, it is the last one's,
    unless a call that the step names is missing: then nothing is known of it.
    """
    told = [call for call in step.body.get("llmCalls") or [] if isinstance(call, dict)]
    ids = named_calls(step.body)
    lost = [name for name in ids if name not in by_id and _by_id_alone(name, step.body)]
    missing += lost
    asked = [c for c in calls if c.call_id not in ids and c.trajectory_id is not None and c.step_number == step.number]
    mine = [*(by_id[name] for name in ids if name in by_id), *asked]
    filled: list[dict[str, Any]] = []
    for call in mine:
        own = next((one for one in told if one.get("callId") == call.call_id), None)
        verbatim = contract_call(call, "", own or {})
        if own is None:
            own = next((one for one in told if not is_named(one) and _same_texts(one, verbatim)), None)
        if own is not None:
            told.remove(own)
            told_of = {name: own[name] for name in ("actionType", "reasoning") if own.get(name) is not None}
            verbatim |= told_of | {"purpose": own.get("purpose") or ""}
        filled.append(verbatim)
    full = [one for one in told if not is_named(one)]
    everything = [*full, *filled]
    if not lost and not any(one["purpose"] == ACTION for one in everything) and filled and not filled[-1]["purpose"]:
        filled[-1]["purpose"] = ACTION
    for one in filled:
        one["purpose"] = one["purpose"] or OTHER
    return everything


def _by_id_alone(name: str, step: Mapping[str, Any]) -> bool:
    """Whether nothing but its id is told of the call."""
    return not any(
        isinstance(one, dict) and one.get("callId") == name and not is_named(one) for one in step.get("llmCalls") or []
    )


def _same_texts(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in ("systemPrompt", "userPrompt", "response"))


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
