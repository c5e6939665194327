"""What the gateway's spool holds: a line of JSON for each call, and for each thing said of a trajectory.

The gateway writes them (`spool`), the shipper brings them to PostgreSQL (`shipper`). Times are epoch seconds.
"""

from typing import Any

import msgspec


class CallEvent(msgspec.Struct, frozen=True, kw_only=True, tag="call"):
    """An answered call: a row of `gateway_calls`, whose columns say what the fields are."""

    call_id: str
    request_id: str
    body_sha256: str  # of the request, so that one id is not used for two
    key_id: str
    agent_id: str
    window_id: str
    trajectory_id: str | None
    step_number: int | None
    arm: str
    experiment_id: str | None
    checkpoint_id: str
    upstream: str
    model: str
    request: str
    response: str
    content_type: str
    status: int
    streamed: bool
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    sampling: dict[str, Any]
    finish_reason: str | None
    asked_at: float
    latency_ms: float
    first_byte_ms: float | None
    upstream_ms: float | None


class StartEvent(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """A trajectory has begun. `body`: what was said, in the recorder's contract."""

    trajectory_id: str
    key_id: str
    agent_id: str
    body: dict[str, Any]
    at: float


class StepEvent(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """A step was taken. `content`: JSON of a `Step` of the contract; calls that went through the gateway are added."""

    trajectory_id: str
    step_number: int
    content: str
    call_ids: list[str]  # of the calls that belong to the step, in order, where the agent named them
    at: float


class EndEvent(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """A trajectory has ended."""

    trajectory_id: str
    body: dict[str, Any]
    at: float


class AbandonEvent(msgspec.Struct, frozen=True, kw_only=True, tag="abandon"):
    """A trajectory will never end; it is kept as abandoned and reaches no training."""

    trajectory_id: str
    reason: str
    at: float


class GapEvent(msgspec.Struct, frozen=True, kw_only=True, tag="gap"):
    """Calls that were answered and not spooled: a row of `recording_gaps`."""

    gap_id: str
    since: float
    until: float
    calls: int
    reason: str


Event = CallEvent | StartEvent | StepEvent | EndEvent | AbandonEvent | GapEvent
