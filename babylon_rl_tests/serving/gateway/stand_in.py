"""What the tests put behind and around a gateway: a scripted upstream, a gateway in this process, reading its spool."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from aiohttp import web

from babylon_rl.serving.gateway.application import Gateway
from babylon_rl.serving.gateway.events import CallEvent, Event
from babylon_rl.serving.gateway.files import SPOOL, write_keys, write_routes
from babylon_rl.serving.gateway.keys import SCOPES, Key, secret_digest
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.process import server_config
from babylon_rl.serving.gateway.spool import lines, segments
from babylon_rl.serving.routing import Routes, Target

SECRET = "brl_test"
HEADERS = {"authorization": f"Bearer {SECRET}"}
ASK = {"model": "babylon", "messages": [{"role": "user", "content": "BUY or SELL?"}], "temperature": 0.7, "seed": 3}

PATIENCE = 30.0  # seconds that what is sure to come may take on a busy machine

Answering = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def answer_of(body: dict[str, Any]) -> dict[str, Any]:
    """A vLLM-like answer of two tokens, with what was asked for and no more."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "BUY"}, "finish_reason": "stop"}
    names = ("token_id:5", "token_id:6") if body.get("return_tokens_as_token_ids") else ("BU", "Y")
    entries = [{"token": name, "logprob": lp} for name, lp in zip(names, (-0.5, -0.25), strict=True)]
    choice["logprobs"] = {"content": entries} if body.get("logprobs") else None
    found = {"id": "x", "model": body["model"], "unknown": {"kept": [1, 2.50]}, "choices": [choice]}
    if body.get("return_token_ids"):
        choice["token_ids"], found["prompt_token_ids"] = [5, 6], [1, 2, 3]
    return found | {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


async def answering(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """The answer, streamed where that is asked for."""
    if not body.get("stream"):
        return web.json_response(answer_of(body), headers={"x-ratelimit-remaining": "7"})
    return await stream_out(request, chunks_of(body))


def chunks_of(body: dict[str, Any]) -> list[bytes]:
    """The events of the same answer as a stream, a token each."""
    whole, out = answer_of(body), []
    choice = whole["choices"][0]
    for i, text in enumerate(("BU", "Y")):
        part = {"index": 0, "delta": {"content": text}, "finish_reason": None if i == 0 else "stop"}
        part["logprobs"] = choice["logprobs"] and {"content": [choice["logprobs"]["content"][i]]}
        event = {"id": "x", "choices": [part]}
        if "token_ids" in choice:
            part["token_ids"] = [choice["token_ids"][i]]
            event |= {"prompt_token_ids": whole["prompt_token_ids"]} if i == 0 else {}
        out.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    return [*out, b"data: [DONE]\n\n"]


async def stream_out(request: web.Request, parts: list[bytes], wait: Callable[[], Awaitable[Any]] | None = None):
    """The parts as a stream; `wait` is awaited after the first."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for number, part in enumerate(parts):
        await response.write(part)
        if number == 0 and wait is not None:
            await wait()
    await response.write_eof()
    return response


class Upstream:
    """A scripted upstream in a thread: `answer` may be replaced, `asked` holds the bodies, as bytes."""

    def __init__(self) -> None:
        self.answer: Answering = answering
        self.asked: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def target(self, checkpoint_id: str = "c1", **changes: Any) -> Target:
        base = {"base_url": f"http://127.0.0.1:{self.port}/v1", "model": f"name-of-{checkpoint_id}"}
        return Target(**{"checkpoint_id": checkpoint_id, **base, **changes})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        self.asked.append(content)
        self.headers.append(dict(request.headers))
        return await self.answer(request, json.loads(content))

    @contextlib.contextmanager
    def running(self) -> Iterator["Upstream"]:
        loop = asyncio.new_event_loop()
        application = web.Application()
        application.router.add_post("/v1/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)

        async def start() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()

        loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Held:
    """Makes an upstream answer only once it is let; `answering` is how it answered before."""

    def __init__(self, upstream: Upstream) -> None:
        self._arrived, self._let = threading.Semaphore(0), asyncio.Event()
        self.answering, upstream.answer = upstream.answer, self._answer

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self._loop = asyncio.get_running_loop()
        self._arrived.release()
        await self._let.wait()
        return await self.answering(request, body)

    def await_calls(self, count: int) -> None:
        """Until so many further calls have arrived."""
        assert all(self._arrived.acquire(timeout=PATIENCE) for _ in range(count))

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._let.set)


def prepare(folder: Path, upstream: Upstream, **keys: Any) -> None:
    """Routes with a promoted checkpoint and a base model, and one key."""
    promoted, base = upstream.target(), upstream.target("base")
    write_routes(folder, Routes(promoted=promoted, base=base, targets={"c1": promoted, "c2": upstream.target("c2")}))
    write_keys(folder, [key(**keys)])


def key(**changes: Any) -> Key:
    return Key(**{"key_id": "k1", "secret_sha256": secret_digest(SECRET), "scopes": SCOPES, **changes})


class InProcess:
    """A gateway in a thread of this process: `gateway` itself, and a client of it."""

    def __init__(self, gateway: Gateway, address: str) -> None:
        self.gateway, self.folder, self.address = gateway, gateway.folder, address
        self.client = httpx.Client(base_url=address, headers=HEADERS, timeout=PATIENCE, trust_env=False)

    def ask(self, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **changes: Any):
        return self.client.post(path, json={**ASK, **changes}, headers=headers)

    def calls(self) -> list[CallEvent]:
        return calls_in(self.folder)

    def use(self, routes: Routes | None = None, keys: list[Key] | None = None) -> None:
        """Write the files and have the gateway look."""
        if routes is not None:
            write_routes(self.folder, routes)
        if keys is not None:
            write_keys(self.folder, keys)
        self.gateway.follow()


@contextlib.contextmanager
def in_process(folder: Path, limits: GatewayLimits | None = None, upstream_key: str | None = None):
    """A gateway over HTTP in a thread."""
    gateway = Gateway(folder, limits or GatewayLimits(), upstream_key)
    server = uvicorn.Server(server_config(gateway))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            threading.Event().wait(0.005)
        running = InProcess(gateway, address)
        try:
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def events_in(folder: Path) -> list[Event]:
    spool = folder / SPOOL
    decode = msgspec.json.Decoder(Event).decode
    return [decode(line) for segment in segments(spool) for _, line in lines(spool, segment)]


def calls_in(folder: Path) -> list[CallEvent]:
    return [event for event in events_in(folder) if isinstance(event, CallEvent)]


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer that has to be an error in OpenAI's shape."""
    assert set(response.json()["error"]) == {"message", "type", "code"} and response.json()["error"]["message"]
    return response.status_code, response.json()["error"]["code"]


def wait_until(condition: Callable[[], Any]) -> None:
    """Until the condition holds; fails where it does not come to that."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        pause.wait(0.01)
