"""The gateway as an ASGI application: the two paths of calls by hand, for speed; the others by Starlette."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from babylon_rl.serving.gateway.answering import CallHandler
from babylon_rl.serving.gateway.calls import CHAT, COMPLETIONS
from babylon_rl.serving.gateway.files import LOOK_SECONDS, SPOOL, Followed
from babylon_rl.serving.gateway.keys import Key, Scope, authenticate
from babylon_rl.serving.gateway.limits import Admission, GatewayLimits
from babylon_rl.serving.gateway.memory import Memory
from babylon_rl.serving.gateway.messages import Receive, Send
from babylon_rl.serving.gateway.metrics import Metrics
from babylon_rl.serving.gateway.refusals import Refused, unavailable
from babylon_rl.serving.gateway.spool import Spool
from babylon_rl.serving.gateway.trajectories import trajectory_routes
from babylon_rl.serving.gateway.upstream import LOOPBACK, Upstreams

Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CALLS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS}

log = logging.getLogger(__name__)


class Gateway:
    """What the gateway holds while it runs: files that it follows, spool, memory of request ids, counts."""

    def __init__(self, folder: Path, limits: GatewayLimits, upstream_key: str | None = None) -> None:
        self.folder, self.limits = folder, limits
        self.files = Followed(folder)
        self.metrics = Metrics()
        self.spool = Spool(folder / SPOOL, self.metrics.written)
        self.memory = Memory(limits.request_memory_minutes, limits.remembered)
        self.admission = Admission(limits.in_flight)
        self.upstreams = Upstreams(limits.upstream_timeout, upstream_key)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the files, recall what was answered, open the spool; at the end all that waits is on disk."""
        self.follow()
        self.memory.rebuild(self.folder / SPOOL)
        self.spool.open()
        self.upstreams.open()
        following = asyncio.create_task(self._follow_always())
        try:
            yield
        finally:
            following.cancel()
            await self.upstreams.close()
            await asyncio.to_thread(self.spool.close)

    def follow(self) -> None:
        """Take over routes and keys that have changed."""
        if not self.files.look():
            return
        if self.files.routes is not None:
            self.metrics.follow(self.files.routes)
        if self.files.keys is not None:
            self.admission.forget({key.key_id for key in self.files.keys})

    async def _follow_always(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.follow()
            except Exception:  # whatever a file holds, the gateway goes on with what it has
                log.exception("Routes or keys were not taken over.")

    def key_of(self, authorization: str | None, scope: Scope) -> Key:
        """The key of a request; Refused where it has none that may do this."""
        if self.files.keys is None:
            raise unavailable("The gateway has no keys yet. `babylon-rl keys create` makes one.", "no_keys")
        return authenticate(authorization, scope, self.files.by_digest, time.time())

    def authenticate(self, request: Request, scope: Scope) -> Key:
        """The same, of a request of Starlette."""
        return self.key_of(request.headers.get("authorization"), scope)

    def state(self) -> dict[str, Any]:
        """What /health says: `ok` or `degraded`, why, and how many calls are unrecorded since the start."""
        reasons = list(self.files.damaged.values())
        if (trouble := self.spool.trouble) is not None:
            reasons.append(f"the spool {self.spool.folder} cannot be written: {trouble}")
        return {
            "status": "degraded" if reasons else "ok",
            "reason": " ".join(reasons) or None,
            "unrecorded_calls": self.spool.unrecorded,
            "in_flight": self.admission.open,
            "fsyncs": self.spool.groups,
            "pid": os.getpid(),
        }

    def missing(self) -> list[str]:
        """What it lacks to answer calls."""
        routes = self.files.routes
        served = routes is not None and (routes.promoted or routes.base)
        found = [] if served else ["routes: nothing is served yet (`babylon-rl serve` writes what is)"]
        return found if self.files.keys else [*found, "keys: there is none (`babylon-rl keys create` makes one)"]


def build_application(gateway: Gateway) -> Application:
    """The application; it runs its gateway from startup to shutdown. Trajectories in the spool are read now."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    others = Starlette(
        routes=_routes(gateway),
        lifespan=lifespan,
        exception_handlers={Refused: _refused, HTTPException: _http_error},
    )
    handler = CallHandler(gateway)

    async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = CALLS.get(scope.get("path", "")) if scope["type"] == "http" else None
        if path is None or scope["method"] != "POST":
            await others(scope, receive, send)
        else:
            await handler.handle(scope, receive, send, path)

    return application


def _routes(gateway: Gateway) -> list[Route]:
    async def health(request: Request) -> Response:
        return JSONResponse(gateway.state())

    async def ready(request: Request) -> Response:
        missing = gateway.missing()
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    async def metrics(request: Request) -> Response:
        # Behind a proxy every caller seems to be on this machine; what a proxy adds tells it apart.
        forwarded = {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers.keys())
        if forwarded or request.client is None or request.client.host not in LOOPBACK:
            gateway.authenticate(request, "metrics")
        found, state = gateway.metrics, gateway.state()
        found.in_flight.set(state["in_flight"])
        found.lost(state["unrecorded_calls"])
        found.degraded.set(state["status"] == "degraded")
        found.remembered.set(len(gateway.memory))
        return Response(found.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(request: Request) -> Response:
        gateway.authenticate(request, "call")
        routes = gateway.files.routes
        names = ["babylon", *(["base"] if routes and routes.base else []), *(routes.targets if routes else ())]
        listed = [{"id": n, "object": "model", "created": 0, "owned_by": "babylon_rl"} for n in dict.fromkeys(names)]
        return JSONResponse({"object": "list", "data": listed})

    return [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        *(Route(path, _call_path, methods=["POST"]) for path in CALLS),
        *trajectory_routes(gateway.authenticate, gateway.spool.append, gateway.folder, gateway.limits.body_bytes),
    ]


async def _call_path(request: Request) -> Response:
    raise AssertionError("calls are taken before they come here; this route answers other methods with a 405")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"There is nothing at {request.url.path}.", 405: f"{request.method} is not for {request.url.path}."}
    message = said.get(error.status_code, error.detail)
    body = {"error": {"message": message, "type": "invalid_request_error", "code": str(error.status_code)}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
