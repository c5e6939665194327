"""A cheap open-loop load over loopback, and the upstream that it ends at; both in one event loop on one core.

Calls leave at the times of a Poisson process, whether or not earlier ones are answered, and a call's latency counts
from the time at which it was to leave, so that a slow server cannot hide behind a generator that waits for it.
"""

import asyncio
import random
import time
from collections import deque

import httptools
import msgspec

SYSTEM = "You trade prediction markets on the news of the last hour. Answer with one action and its reason. " * 12
TEXT = "BUY YES 20: the suit is won and the price has not moved yet. It should be near 0.70 soon."
PROMPT_TOKENS, ANSWER_TOKENS = 600, 24


def request_body() -> bytes:
    """The chat completion that every call asks for, about 1.4 kB."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "ACME wins its suit; the market says 0.41. What do you do?"},
    ]
    body = {"model": "babylon", "messages": messages, "temperature": 1.0, "max_tokens": 64, "seed": 7}
    return msgspec.json.encode(body)


def _answer(recorded: bool) -> bytes:
    """The fixed answer; `recorded`: with token ids and log-probabilities, as vLLM gives them to who asks."""
    entries = [
        {"token": f"token_id:{100 + i}", "logprob": -0.5 - i / 64, "bytes": None, "top_logprobs": []}
        for i in range(ANSWER_TOKENS)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "logprobs": {"content": entries} if recorded else None,
        "finish_reason": "stop",
        **({"token_ids": [100 + i for i in range(ANSWER_TOKENS)]} if recorded else {}),
    }
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS}
    body = {
        "id": "chatcmpl-fixed",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [choice],
        "usage": {**usage, "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS},
        **({"prompt_token_ids": [7 * i % 50_000 for i in range(PROMPT_TOKENS)]} if recorded else {}),
    }
    content = msgspec.json.encode(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


class Upstream(asyncio.Protocol):
    """Answers each request at once with the fixed answer."""

    plain, recorded = _answer(False), _answer(True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser, self.asked = transport, httptools.HttpRequestParser(self), b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.asked += body

    def on_message_complete(self) -> None:
        self.transport.write(self.recorded if b'"return_token_ids":true' in self.asked else self.plain)
        self.asked = b""


class Connection(asyncio.Protocol):
    """A kept connection of the generator: one call at a time."""

    def __init__(self, load: "Load") -> None:
        self.load, self.due = load, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.parser = transport, httptools.HttpResponseParser(self)

    def ask(self, due: float, request: bytes) -> None:
        """Send the call that was to leave at `due`."""
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        status, self.parser = self.parser.get_status_code(), httptools.HttpResponseParser(self)
        self.load.answered(self, status, time.perf_counter() - self.due)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """Calls at `rate` a second for `seconds`, at the times that the seed draws."""

    def __init__(self, port: int, key: str, rate: float, seconds: float, seed: int) -> None:
        body = request_body()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.port, self.request = port, head.encode() + body
        drawn, at, self.times = random.Random(seed), 0.0, []
        while (at := at + drawn.expovariate(rate)) < seconds:
            self.times.append(at)
        self.latencies: list[float] = []
        self.failed = 0
        self.late: deque[float] = deque()
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()

    async def run(self, connections: int = 64) -> None:
        """Send all, and wait for the answers; a minute at most after the last."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
            self.idle.append(connection)
        begun = time.perf_counter() + 0.05
        for at in self.times:
            wait = begun + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._send(begun + at)
        until = time.perf_counter() + 60
        while (self.busy or self.late) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        self.failed += len(self.busy) + len(self.late)
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.transport.close()

    def _send(self, due: float) -> None:
        if not self.idle:
            self.late.append(due)  # its latency counts from `due` all the same
            return
        connection = self.idle.pop()
        self.busy.add(connection)
        connection.ask(due, self.request)

    def answered(self, connection: Connection, status: int, seconds: float) -> None:
        """A call is answered, and its connection free."""
        if status == 200:
            self.latencies.append(seconds)
        else:
            self.failed += 1
        if self.late:
            connection.ask(self.late.popleft(), self.request)
        else:
            self.busy.discard(connection)
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """The server closed a connection."""
        if connection in self.busy:
            self.busy.discard(connection)
            self.failed += 1
        elif connection in self.idle:
            self.idle.remove(connection)
