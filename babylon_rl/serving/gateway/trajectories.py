"""Trajectories over HTTP: start, step, end and abandon, in the recorder's contract.

A request is answered when its event is on disk in the spool; the shipper brings it to PostgreSQL, and what has ended
to the recordings. The same request again gets the same answer, whatever happened in between; another request in its
place is refused. Imports nothing heavy: it runs in the gateway's process.
"""

import asyncio
import hashlib
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from babylon_rl.serving.gateway.events import AbandonEvent, EndEvent, Event, StartEvent, StepEvent
from babylon_rl.serving.gateway.keys import Key, Scope
from babylon_rl.serving.gateway.known import (
    MOST_OPEN,
    MOST_STEPS,
    Known,
    KnownTrajectory,
    body_digest,
    load_known,
    text_digest,
)
from babylon_rl.serving.gateway.said import BadBody, parse_body, said_abandon, said_end, said_start, said_step
from babylon_rl.serving.gateway.spool import SpoolError

MOST_BYTES = 8_000_000  # of a body

Authenticate = Callable[[Request, Scope], Key]
Append = Callable[[Event], Awaitable[Any]]


class Refused(Exception):
    """A request is not done; `parameter`: the field or header that is why."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter = status, parameter


def trajectory_routes(
    authenticate: Authenticate, append: Append, folder: Path, most_bytes: int = MOST_BYTES
) -> list[Route]:
    """Routes of trajectories, for the gateway to mount.

    `authenticate` gives the key of a request that has the scope, or raises what the application answers with. `append`
    returns when the event is on disk. `folder`: the gateway's; what it says of trajectories is read now.
    """
    said = _Trajectories(authenticate, append, load_known(folder), most_bytes)
    one = "/v1/trajectories/{trajectory_id}"
    return [
        Route("/v1/trajectories", _answered(said.start), methods=["POST"]),
        Route(f"{one}/steps", _answered(said.step), methods=["POST"]),
        Route(f"{one}/end", _answered(said.end), methods=["POST"]),
        Route(f"{one}/abandon", _answered(said.abandon), methods=["POST"]),
    ]


Handler = Callable[[Request], Awaitable[Response]]


def _answered(handle: Handler) -> Handler:
    """The handler, whose refusals are answers in the form that OpenAI's clients read."""

    async def answered(request: Request) -> Response:
        try:
            return await handle(request)
        except BadBody as error:
            return _refusal(400, str(error), error.path)
        except Refused as error:
            return _refusal(error.status, str(error), error.parameter)
        except SpoolError as error:
            told = f"It could not be written to disk ({error}) and is not kept; send it again."
            return _refusal(503, told, None)

    return answered


def _refusal(status: int, message: str, parameter: str | None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    body = {"error": {"message": message, "type": kind, "param": parameter, "code": None}}
    return JSONResponse(body, status, headers=headers)


class _Trajectories:
    """The handlers, over what is known. One request of a trajectory is looked at at a time."""

    def __init__(self, authenticate: Authenticate, append: Append, known: Known, most_bytes: int) -> None:
        self._authenticate, self._append, self._known, self._most_bytes = authenticate, append, known, most_bytes
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def start(self, request: Request) -> Response:
        key = self._authenticate(request, "record")
        body = await self._body(request)
        said = said_start(body)
        agent_id = _agent(request, key, said.agent_id)
        trajectory_id = said.trajectory_id or _made_id(request, key)
        async with self._alone(trajectory_id):
            known = self._known.get(trajectory_id)
            if known is not None:
                _may_speak(key, known.agent_id)
                if known.started != body_digest(body) or known.agent_id != agent_id:
                    raise Refused(409, f"The trajectory {trajectory_id!r} was started before, otherwise.")
            else:
                now = time.time()
                if not self._known.has_room(now):
                    raise Refused(429, f"{MOST_OPEN} trajectories are open: end or abandon some.")
                await self._keep(
                    StartEvent(trajectory_id=trajectory_id, key_id=key.key_id, agent_id=agent_id, body=body, at=now)
                )
                known = self._known.get(trajectory_id)
                assert known is not None
        answer = {"trajectoryId": trajectory_id, "agentId": known.agent_id, "startTime": known.start_time}
        return JSONResponse(answer, 201)

    async def step(self, request: Request) -> Response:
        key = self._authenticate(request, "record")
        said = said_step(await self._body(request))
        trajectory_id = request.path_params["trajectory_id"]
        async with self._alone(trajectory_id):
            known = self._open_to(key, trajectory_id)
            before = known.steps.get(said.number)
            if before is not None and before != text_digest(said.content):
                raise Refused(409, f"Step {said.number} was sent before, otherwise.", "stepNumber")
            if before is None:
                if known.closed is not None:
                    raise Refused(409, f"The trajectory {trajectory_id!r} has {known.closed}: it takes no more steps.")
                if len(known.steps) >= MOST_STEPS:
                    raise Refused(400, f"A trajectory has at most {MOST_STEPS} steps: end it, and start another.")
                await self._keep(
                    StepEvent(
                        trajectory_id=trajectory_id,
                        step_number=said.number,
                        content=said.content,
                        call_ids=said.call_ids,
                        at=time.time(),
                    )
                )
        return JSONResponse({"trajectoryId": trajectory_id, "stepNumber": said.number}, 201)

    async def end(self, request: Request) -> Response:
        key = self._authenticate(request, "record")
        body = await self._body(request)
        trajectory_id = request.path_params["trajectory_id"]
        async with self._alone(trajectory_id):
            known = self._open_to(key, trajectory_id)
            now = time.time()
            if not _closed_so(known, "ended", body_digest(body)):
                said_end(body, known.start_time, round(now * 1000))
                await self._keep(EndEvent(trajectory_id=trajectory_id, body=body, at=now))
        return JSONResponse({"trajectoryId": trajectory_id, "state": "ended"})

    async def abandon(self, request: Request) -> Response:
        key = self._authenticate(request, "record")
        reason = said_abandon(await self._body(request)).reason
        trajectory_id = request.path_params["trajectory_id"]
        async with self._alone(trajectory_id):
            known = self._open_to(key, trajectory_id)
            if not _closed_so(known, "abandoned", body_digest({"reason": reason})):
                await self._keep(AbandonEvent(trajectory_id=trajectory_id, reason=reason, at=time.time()))
        return JSONResponse({"trajectoryId": trajectory_id, "state": "abandoned"})

    def _alone(self, trajectory_id: str) -> asyncio.Lock:
        return self._locks.setdefault(trajectory_id, asyncio.Lock())

    def _open_to(self, key: Key, trajectory_id: str) -> KnownTrajectory:
        known = self._known.get(trajectory_id)
        if known is None:
            raise Refused(404, f"There is no trajectory {trajectory_id!r}: start it with POST /v1/trajectories.")
        _may_speak(key, known.agent_id)
        return known

    async def _keep(self, event: Event) -> None:
        await self._append(event)
        self._known.apply(event)

    async def _body(self, request: Request) -> dict[str, Any]:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._most_bytes:
                raise Refused(413, f"The body is larger than {self._most_bytes / 1e6:g} MB.")
            parts.append(part)
        return parse_body(b"".join(parts))


def _agent(request: Request, key: Key, said: str | None) -> str:
    """Whose trajectory it is: the body's agent, the header's, or the key's."""
    header = request.headers.get("x-babylon-agent")
    if said and header and said != header:
        raise Refused(400, f"agentId is {said!r}, and the header X-Babylon-Agent is {header!r}.", "agentId")
    agent_id = said or header or key.agent_id
    if not agent_id:
        raise Refused(400, "agentId: found nothing, wanted the agent's id, here or in X-Babylon-Agent.", "agentId")
    _may_speak(key, agent_id)
    return agent_id


def _may_speak(key: Key, agent_id: str) -> None:
    if key.agent_id is not None and key.agent_id != agent_id:
        raise Refused(403, f"This key speaks for the agent {key.agent_id!r} alone.", "agentId")


def _made_id(request: Request, key: Key) -> str:
    """Id of a trajectory that names none: always the same for the same request, where the request has an id."""
    named = request.headers.get("idempotency-key") or request.headers.get("x-request-id")
    if named is None:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{key.key_id}/{named}".encode(errors="surrogatepass")).hexdigest()[:32]


def _closed_so(known: KnownTrajectory, how: str, digest: str) -> bool:
    """Whether it was closed by this very request; Refused where it was closed by another."""
    if known.closed is None:
        return False
    if (known.closed, known.closing) != (how, digest):
        raise Refused(409, f"The trajectory has {known.closed} before, otherwise.")
    return True
