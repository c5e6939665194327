"""The answers of the loopback training service: its clock, its registry of models and jobs, its endpoints.

`training_service` carries them over HTTP and says what the endpoints are.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from babylon_rl.bench.training_books import (
    Books,
    Job,
    RemoteModel,
    Timeline,
    make_job,
    refusal,
    sequences_of,
    submission_key,
)
from babylon_rl.bench.training_faults import NO_FAULT, Fault, Script, Seen

PAGE = 20  # checkpoints or events of a page where no limit is asked for
# What stands for the part of a registration that is not given.
NAMED = {"entity": "loopback", "project": "default", "name": "default"}

# A client that retries is to do so at once: it keeps to this header, whose value is milliseconds.
QUICK = {"retry-after-ms": "1"}


class Answer(msgspec.Struct, frozen=True):
    """Status and JSON body of a response."""

    status: int
    body: Any = None
    headers: dict[str, str] = msgspec.field(default_factory=dict)


class _Refused(Exception):
    """A request that cannot be served: status and what is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Clock:
    """The service's seconds: the wall's times `speed`, or where that is None those that were told."""

    def __init__(self, speed: float | None) -> None:
        self.speed, self._told, self._started = speed, 0.0, time.monotonic()
        self._moved = asyncio.Event()

    def now(self) -> float:
        """Seconds since the start."""
        return self._told + (time.monotonic() - self._started) * (self.speed or 0.0)

    def advance(self, seconds: float) -> None:
        """Move on at once. On the service's loop."""
        self._told += seconds
        self._moved.set()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Until so many seconds are over."""
        until = self.now() + seconds
        while (left := until - self.now()) > 0:
            wait = left / self.speed if self.speed else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), wait)


class Registry:
    """Models and jobs, and the answers to requests about them. On the service's loop."""

    def __init__(self, script: Script, timeline: Timeline, clock: Clock) -> None:
        self.script, self.timeline, self.clock = script, timeline, clock
        self.models: dict[str, RemoteModel] = {}
        self.jobs: dict[str, Job] = {}
        self.jobs_of: dict[str, list[Job]] = {}
        self.accepted: dict[str, list[str]] = {}
        self.repeated: dict[str, Answer] = {}
        self.attempts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.overlapping = 0
        self.numbers = itertools.count(1)

    def books(self) -> Books:
        """What happened until now."""
        now = self.clock.now()
        jobs = {
            job.id: {
                "model_id": job.model_id,
                "key": job.key,
                "fault": job.fault.name,
                "state": job.state_at(now),
                "accepted_at": job.accepted_at,
                "ends_at": job.ends_at,
                "advances_at": job.advances_at,
            }
            for job in self.jobs.values()
        }
        models = {
            model.id: {name: getattr(model, name) for name in ("entity", "project", "name", "base_model", "deleted")}
            for model in self.models.values()
        }
        steps = {model_id: len(self.steps(model_id)) for model_id in self.models}
        accepted = {key: list(ids) for key, ids in self.accepted.items()}
        return Books(now, accepted, steps, models, jobs, dict(self.requests), self.overlapping)

    def steps(self, model_id: str) -> list[Job]:
        """Jobs whose step was made, in that order: the n-th made step n."""
        now = self.clock.now()
        made = [job for job in self.jobs_of.get(model_id, []) if job.advances_at is not None and job.advances_at <= now]
        return sorted(made, key=lambda job: job.advances_at or 0.0)

    def serve(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[Fault, Answer]:
        """What goes wrong with the request, and its answer where nothing does."""
        kind, handle, parts = _route(method, path)
        number = self.requests[kind]
        self.requests[kind] += 1
        try:
            if kind == "submit":
                return self._submit(number, _decoded(body))
            fault = self.script(Seen(kind, number)) or NO_FAULT
            return fault, handle(self, *parts, query, body) if fault.accepted else Answer(200)
        except _Refused as error:
            return NO_FAULT, Answer(error.status, {"error": {"message": str(error)}})

    def _submit(self, number: int, body: Any) -> tuple[Fault, Answer]:
        if not isinstance(body, dict) or not isinstance(body.get("model_id"), str):
            raise _Refused(400, "the body has no model_id")
        model = self._model(body["model_id"])
        if wrong := refusal(body):
            raise _Refused(422, wrong)
        key = submission_key(model.id, body["trajectory_groups"])
        attempt = self.attempts[key]
        self.attempts[key] += 1
        if key in self.repeated:
            return NO_FAULT, self.repeated[key]
        fault = self.script(Seen("submit", number, key, attempt)) or NO_FAULT
        if not fault.accepted:
            return fault, Answer(200)
        answer = Answer(200, {"id": self._accept(model, key, sequences_of(body), fault)})
        if fault.repeats_reply:
            self.repeated[key] = answer
        return fault, answer

    def _accept(self, model: RemoteModel, key: str, sequences: int, fault: Fault) -> str:
        now = self.clock.now()
        job = make_job(f"job-{next(self.numbers)}", model.id, key, sequences, fault, self.timeline, now)
        others = self.jobs_of.setdefault(model.id, [])
        self.overlapping += any(other.ends_at is None or job.accepted_at < other.ends_at for other in others)
        others.append(job)
        self.jobs[job.id] = job
        self.accepted.setdefault(key, []).append(job.id)
        return job.id

    def _model(self, model_id: str) -> RemoteModel:
        model = self.models.get(model_id)
        if model is None or model.deleted:
            raise _Refused(404, f"no model {model_id}")
        return model

    def _job(self, job_id: str) -> Job:
        if job_id not in self.jobs or self.jobs[job_id].accepted_at > self.clock.now():
            raise _Refused(404, f"no training job {job_id}")
        return self.jobs[job_id]

    def register(self, query: dict[str, str], body: bytes) -> Answer:
        """A model, or the one that is there; 409 where that is not wanted."""
        asked = _decoded(body)
        if not isinstance(asked, dict) or not asked.get("base_model"):
            raise _Refused(422, "base_model is missing")
        named = {name: asked.get(name) or fallback for name, fallback in NAMED.items()}
        for model in self.models.values():
            if not model.deleted and all(getattr(model, name) == value for name, value in named.items()):
                if not asked.get("return_existing"):
                    raise _Refused(409, "there is a model of that name")
                return Answer(200, _model_json(model))
        number = next(self.numbers)
        model = RemoteModel(id=f"model-{number}", base_model=asked["base_model"], run_id=f"run-{number}", **named)
        self.models[model.id] = model
        return Answer(200, _model_json(model))

    def delete_model(self, model_id: str, query: dict[str, str], body: bytes) -> Answer:
        """The model and its checkpoints are gone."""
        self._model(model_id).deleted = True
        return Answer(204)

    def checkpoints(self, model_id: str, query: dict[str, str], body: bytes) -> Answer:
        """A page of the model's checkpoints by step."""
        model = self._model(model_id)
        steps = [step for step in range(1, len(self.steps(model_id)) + 1) if step not in model.deleted_steps]
        if query.get("order") == "desc":
            steps.reverse()
        rows = [{"id": f"{model_id}-step{step}", "step": step, "metrics": {}} for step in steps]
        return _page(rows, query)

    def delete_checkpoints(self, model_id: str, query: dict[str, str], body: bytes) -> Answer:
        """The named steps are gone; steps go on counting from the last that was made."""
        model, made = self._model(model_id), len(self.steps(model_id))
        asked = _decoded(body)
        steps = set(asked["steps"]) if isinstance(asked, dict) and "steps" in asked else set()
        known = {step for step in steps if 1 <= step <= made and step not in model.deleted_steps}
        model.deleted_steps |= known
        return Answer(200, {"deleted_count": len(known), "not_found_steps": sorted(steps - known)})

    def job(self, job_id: str, query: dict[str, str], body: bytes) -> Answer:
        """The job's id, which is all that the service says of it."""
        return Answer(200, {"id": self._job(job_id).id})

    def events(self, job_id: str, query: dict[str, str], body: bytes) -> Answer:
        """A page of the events that are there after the one that is named."""
        job, now = self._job(job_id), self.clock.now()
        if job.fault.events_status is not None and now < job.accepted_at + job.fault.events_refused_for:
            return Answer(job.fault.events_status, {"error": {"message": "events are not to be had"}}, QUICK)
        after = query.get("after")
        places = [place for place, event in enumerate(job.events) if event.id == after]
        if after is not None and not places:
            raise _Refused(400, f"no event {after}")
        following = job.events[places[-1] + 1 :] if places else job.events
        rows = [{"id": event.id, "type": event.type, "data": event.data} for event in following if event.at <= now]
        return _page(rows, {**query, "after": ""})


def _model_json(model: RemoteModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ("id", "entity", "project", "name", "base_model", "run_id")}


def _page(rows: list[dict[str, Any]], query: dict[str, str]) -> Answer:
    """The rows after the one whose id is asked for, as many as asked for."""
    after, limit = query.get("after"), query.get("limit", str(PAGE))
    if after:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise _Refused(400, f"no entry {after}")
        rows = rows[ids.index(after) + 1 :]
    if not limit.isdigit() or limit == "0":
        raise _Refused(422, "limit is a number of at least 1")
    return Answer(200, {"data": rows[: int(limit)], "has_more": len(rows) > int(limit)})


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise _Refused(400, f"the body is no JSON: {error}") from None


Handler = Callable[..., Answer]

_ROUTES: dict[tuple[str, ...], tuple[str, Handler]] = {
    ("POST", "models"): ("register", Registry.register),
    ("DELETE", "models", "*"): ("delete_model", Registry.delete_model),
    ("GET", "models", "*", "checkpoints"): ("checkpoints", Registry.checkpoints),
    ("DELETE", "models", "*", "checkpoints"): ("delete_checkpoints", Registry.delete_checkpoints),
    ("POST", "training-jobs"): ("submit", Registry.job),
    ("GET", "training-jobs", "*"): ("job", Registry.job),
    ("GET", "training-jobs", "*", "events"): ("events", Registry.events),
}


def _route(method: str, path: str) -> tuple[Any, Handler, list[str]]:
    """Kind of request, what answers it, and the ids in its path."""
    parts = path.removeprefix("/v1/preview/").split("/") if path.startswith("/v1/preview/") else []
    found = _ROUTES.get((method, *(part if place != 1 else "*" for place, part in enumerate(parts))))
    if found is None:
        return "unknown", _unknown, []
    return *found, parts[1:2]


def _unknown(*asked: Any) -> Answer:
    raise _Refused(404, "no such endpoint")
