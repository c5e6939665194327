"""A training service on loopback: the hosted service's HTTP protocol as ART 0.5.18 uses it, with faults on demand.

    with training_service(faults) as service:
        backend = ServerlessBackend(base_url=service.base_url, api_key=service.api_key)
        ...
        assert not service.books.twice()

`faults`: what goes wrong (`training_faults`): a name out of FAULTS or a Fault for all submissions, a list of them for
the submissions in order (None: nothing), or a function of `Seen`, which may also answer for other requests.
`seeded(seed, share)` is one such function. `service.books` is what the service did until now (`training_books.Books`).
Another process reads the same as JSON from GET {origin}/books, no key asked.

Time is the service's own. `speed`: its seconds in a second of the wall (1,000: a job of ten seconds takes 10 ms).
`speed=None`: time stands still until `service.advance(seconds)`. A job's events and the step that it makes follow from
the clock alone (`training_books.make_job`); `service.advance(1e6)` brings everything to its end that has one.

Endpoints, under `base_url`, with `Authorization: Bearer {api_key}` or 401:

    POST   /preview/models                     -> {id, entity, project, name, base_model, run_id}
    DELETE /preview/models/{id}
    GET    /preview/models/{id}/checkpoints    ?limit &order &after -> {data: [{id, step, metrics}], has_more}
    DELETE /preview/models/{id}/checkpoints    {steps} -> {deleted_count, not_found_steps}
    POST   /preview/training-jobs              {model_id, trajectory_groups, experimental_config} -> {id}
    GET    /preview/training-jobs/{id}         -> {id}
    GET    /preview/training-jobs/{id}/events  ?limit &after -> {data: [{id, type, data}], has_more}

A submission is refused with 400 where it is no JSON of finite numbers, 404 for an unknown model, 422 where a choice has
no log-probabilities of `token_id:N` tokens or nothing is trainable. Whether the hosted service refuses the same is not
known; what it would train wrong is refused here. As there, the same submission twice is two jobs. A model's first
checkpoint is that of its first job.

The server is a loop of its own in a thread and not uvicorn, because it must be able to break a connection anywhere.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from babylon_rl.bench.training_books import Books, Timeline
from babylon_rl.bench.training_faults import Fault, Script, as_script
from babylon_rl.bench.training_registry import QUICK, Answer, Clock, Registry

API_KEY = "loopback-key"


class TrainingService:
    """A running service; `training_service` starts and stops it."""

    def __init__(self, script: Script, speed: float | None, timeline: Timeline) -> None:
        self.api_key = API_KEY
        self.clock = Clock(speed)
        self.registry = Registry(script, timeline, self.clock)
        self.requests: list[tuple[str, str]] = []  # method and path of each request, in order
        self.loop = asyncio.new_event_loop()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """What `ServerlessBackend(base_url=...)` is given."""
        return f"{self.origin}/v1"

    @property
    def books(self) -> Books:
        """What the service did until now."""
        return self._on_loop(self.registry.books)

    def advance(self, seconds: float) -> None:
        """Move the service's clock on."""
        self._on_loop(lambda: self.clock.advance(seconds))

    def follow(self, faults: "Script | list[Fault | str | None] | Fault | str | None") -> None:
        """From now on another script."""
        script = as_script(faults)
        self._on_loop(lambda: setattr(self.registry, "script", script))

    def _on_loop(self, call: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    async def start(self) -> None:
        """Listen on a port that the system chooses."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.origin = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End every connection, also those that wait for an answer that never comes."""
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # the client went away, or the service ends
        finally:
            self._serving.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Whether the connection lasts."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        if url.path == "/books":
            return await _send(writer, Answer(200, msgspec.to_builtins(self.registry.books())))
        self.requests.append((method, url.path))
        if headers.get("authorization") != f"Bearer {self.api_key}":
            return await _send(writer, Answer(401, {"error": {"message": "wrong key"}}))
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        fault, answer = self.registry.serve(method, url.path, query, body)
        if fault.answer_after:
            await self.clock.sleep(fault.answer_after)
        return await _faulty(reader, writer, fault, answer)


async def _faulty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault, answer: Answer) -> bool:
    """Send the answer as far as the fault lets it through."""
    match fault.answer:
        case "ok":
            return await _send(writer, answer)
        case "never":
            await reader.read()  # until the client gives up
            return False
        case "broken" | "half":
            if fault.answer == "half":
                raw = _raw(answer)
                writer.write(raw[: len(raw) - 3])
                await writer.drain()
            writer.transport.abort() if fault.answer == "broken" else writer.close()
            return False
        case "page":
            page = b"<html><body>One moment, please</body></html>"
            head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(page)}\r\n\r\n"
            writer.write(head.encode() + page)
            await writer.drain()
            return True
    after = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
    said = {"error": {"message": f"fault {fault.name or fault.answer}"}}
    return await _send(writer, Answer(fault.answer, said, after or QUICK))


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> bool:
    writer.write(_raw(answer))
    await writer.drain()
    return True


def _raw(answer: Answer) -> bytes:
    body = b"" if answer.body is None else msgspec.json.encode(answer.body)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def training_service(
    faults: "Script | list[Fault | str | None] | Fault | str | None" = None,
    speed: float | None = 1000.0,
    timeline: Timeline = Timeline(),
) -> Iterator[TrainingService]:
    """A service on 127.0.0.1 that ends with the block."""
    service = TrainingService(as_script(faults), speed, timeline)
    thread = threading.Thread(target=service.loop.run_forever, name="training-service", daemon=True)
    thread.start()

    def run(coroutine: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, service.loop).result(30)

    try:
        run(service.start())
        try:
            yield service
        finally:
            run(service.stop())
    finally:
        service.loop.call_soon_threadsafe(service.loop.stop)
        thread.join(30)
        service.loop.close()
