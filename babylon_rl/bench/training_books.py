"""What a training service knows: its models, its jobs with their events in time, and what it would refuse."""

import hashlib
import math
import random
from typing import Any

import msgspec

from babylon_rl.bench.training_faults import Fault

TRAINING_CONFIG = {
    *("advantage_balance", "epsilon", "epsilon_high", "importance_sampling_level", "kimi_k2_tau", "learning_rate"),
    *("mask_prob_ratio", "max_negative_advantage_importance_sampling_weight", "ppo", "precalculate_logprobs"),
    "scale_rewards",
}


class Timeline(msgspec.Struct, frozen=True):
    """Seconds of the clock from acceptance to training_started, between gradient steps, and to training_ended."""

    start: float = 2.0
    gradient_step: float = 1.0
    end: float = 2.0


class RemoteModel(msgspec.Struct):
    """A model and its checkpoints that were deleted; the others follow from its jobs."""

    id: str
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str
    deleted: bool = False
    deleted_steps: set[int] = msgspec.field(default_factory=set)


class Event(msgspec.Struct, frozen=True):
    """One event of a job, and the second of the clock from which it can be read."""

    at: float
    id: str
    type: str
    data: dict[str, Any]


class Job(msgspec.Struct, frozen=True):
    """An accepted submission. Everything that happens to it is fixed then; the clock says how much of it has.

    `ends_at`: when training ended or failed, None where it hangs. `advances_at`: when the step advances, None: never.
    """

    id: str
    model_id: str
    key: str
    fault: Fault
    sequences: int
    accepted_at: float
    events: list[Event]
    ends_at: float | None
    advances_at: float | None

    def state_at(self, now: float) -> str:
        """accepted, running, ended or failed."""
        if now < self.accepted_at:
            return "accepted"
        if self.ends_at is None or now < self.ends_at:
            return "running"
        return "failed" if self.fault.failed else "ended"


class Books(msgspec.Struct, frozen=True):
    """What the service did until now, for tests.

    `accepted`: job ids by `submission_key`; more than one is a job that was trained twice. `steps`: of each model id.
    `jobs`: by id, with model_id, key, fault, state, accepted_at, ends_at and advances_at. `requests`: by kind.
    `overlapping`: jobs that were accepted while another one of the same model was not at its end.
    """

    now: float
    accepted: dict[str, list[str]]
    steps: dict[str, int]
    models: dict[str, dict[str, Any]]
    jobs: dict[str, dict[str, Any]]
    requests: dict[str, int]
    overlapping: int

    def twice(self) -> dict[str, list[str]]:
        """Submissions that became more than one job."""
        return {key: ids for key, ids in self.accepted.items() if len(ids) > 1}


def submission_key(model_id: str, trajectory_groups: list[dict[str, Any]]) -> str:
    """Key of a submission: the model and a SHA-256 of the groups as JSON with sorted keys."""
    return f"{model_id}:{hashlib.sha256(msgspec.json.encode(trajectory_groups, order='sorted')).hexdigest()}"


def make_job(job_id: str, model_id: str, key: str, sequences: int, fault: Fault, timeline: Timeline, now: float) -> Job:
    """The job of a submission that is accepted now."""
    accepted_at = now + fault.accepted_after
    started = accepted_at + timeline.start
    told = [(started, "training_started", {"num_sequences": sequences})]
    if not fault.hangs:
        told += [
            (started + (i + 1) * timeline.gradient_step, "gradient_step", _metrics(job_id, i)) for i in range(sequences)
        ]
    ends_at = None if fault.hangs else told[-1][0] + timeline.end
    if ends_at is not None:
        message = {"error_message": fault.failed}
        told.append((ends_at, "training_failed", message) if fault.failed else (ends_at, "training_ended", {}))
    events = [Event(at, f"{job_id}-event-{place}", kind, data) for place, (at, kind, data) in enumerate(told)]
    moves = ends_at is not None and not fault.failed and fault.step_after is not None
    advances_at = ends_at + (fault.step_after or 0.0) if moves else None
    delivered = _delivered(events, fault)
    return Job(job_id, model_id, key, fault, sequences, accepted_at, delivered, ends_at, advances_at)


def _metrics(job_id: str, step: int) -> dict[str, float]:
    stream = random.Random(f"{job_id}-{step}")
    return {"loss": stream.gauss(0, 1), "grad_norm": stream.random(), "entropy": stream.random()}


def _delivered(events: list[Event], fault: Fault) -> list[Event]:
    """The events as the endpoint hands them out."""
    match fault.events:
        case "none":
            return []
        case "without_end":
            return [event for event in events if event.type not in ("training_ended", "training_failed")]
        case "some":
            return [event for place, event in enumerate(events) if place % 2 or event is events[-1]]
        case "twice":
            return [event for event in events for _ in range(2)]
        case "reordered":
            return random.Random(events[0].id).sample(events, len(events))
    return events


def refusal(body: Any) -> str | None:
    """Why a submission cannot be trained on, or None. Trained are members of unequal reward with logged token ids."""
    if not isinstance(body, dict) or set(body) != {"model_id", "trajectory_groups", "experimental_config"}:
        return "the body has model_id, trajectory_groups and experimental_config"
    config = body["experimental_config"] or {}
    if unknown := set(config) - TRAINING_CONFIG:
        return f"experimental_config knows no {', '.join(sorted(unknown))}"
    rate = config.get("learning_rate")
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
        return "learning_rate is a finite number above 0"
    try:
        for group in body["trajectory_groups"]:
            for trajectory in group["trajectories"]:
                for choice in _choices(trajectory):
                    if wrong := _wrong_choice(choice):
                        return wrong
        if not sequences_of(body):
            return "nothing to train on: no group has members of unequal reward with logged tokens"
    except (KeyError, TypeError, ValueError) as error:
        return f"trajectory_groups are not as the client sends them: {type(error).__name__} {error}"
    return None


def sequences_of(body: dict[str, Any]) -> int:
    """Trajectories that are trained on: with logged tokens, in a group whose rewards are not all equal."""
    count = 0
    for group in body["trajectory_groups"]:
        members = [trajectory for trajectory in group["trajectories"] if any(True for _ in _choices(trajectory))]
        rewards = {float(member["reward"]) for member in members}
        count += len(members) if len(rewards) > 1 else 0
    return count


def _choices(trajectory: dict[str, Any]) -> list[dict[str, Any]]:
    histories = [trajectory, *trajectory.get("additional_histories", [])]
    said = [message for history in histories for message in history["messages_and_choices"]]
    return [message for message in said if "finish_reason" in message and "message" in message]


def _wrong_choice(choice: dict[str, Any]) -> str | None:
    tokens = (choice.get("logprobs") or {}).get("content") or []
    if not tokens:
        return "a choice has no logprobs"
    for token in tokens:
        if not token["token"].removeprefix("token_id:").isdigit() or not token["token"].startswith("token_id:"):
            return f"logprobs name tokens as token_id:N, not as {token['token']!r}"
        if not (isinstance(token["logprob"], int | float) and token["logprob"] <= 0):
            return "a log-probability is a number of at most 0"
    return None
