"""Answering a chat completion over HTTP: whole, or as a stream of server-sent events.

A call whose caller has closed the connection is given up.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from babylon_rl.serving.answers import Answering
from babylon_rl.serving.asked import Asked
from babylon_rl.serving.batching import Call, Engine, Progress
from babylon_rl.serving.refusals import error_body
from babylon_rl.serving.requests import Sample

Told = tuple[int, Progress]


async def answer(
    request: Request, engine: Engine, asked: Asked, prompt: list[int] | None, answering: Answering
) -> Response:
    """The response to a chat completion whose prompt's tokens are known."""
    begun = time.perf_counter()
    queue: asyncio.Queue[Told] = asyncio.Queue()
    calls = _submit(engine, asked, prompt, queue)
    if asked.stream:
        try:
            first = await queue.get()  # so that what fails before it has a status of its own
            if first[1].error is not None:
                raise first[1].error
        except BaseException:
            _cancel(engine, calls)
            raise
        return StreamingResponse(_stream(engine, calls, queue, first, answering), media_type="text/event-stream")
    collecting = asyncio.create_task(_collect(queue, len(calls)))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(answering.whole(collecting.result(), time.perf_counter() - begun))
    finally:
        collecting.cancel()
        leaving.cancel()
        _cancel(engine, calls)


def _submit(engine: Engine, asked: Asked, prompt: list[int] | None, queue: asyncio.Queue[Told]) -> list[Call]:
    """The calls of all answers, which tell the queue; all of them are queued, or none."""
    loop = asyncio.get_running_loop()

    def teller(index: int) -> Any:
        def tell(progress: Progress) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, (index, progress))
            except RuntimeError:  # the loop has ended, and with it whoever waited
                pass

        return tell

    calls: list[Call] = []
    try:
        for index, one in enumerate(asked.requests):
            call = Call(msgspec.structs.replace(one, prompt=prompt), teller(index), says=asked.stream)
            engine.submit(call)
            calls.append(call)
    except BaseException:
        _cancel(engine, calls)
        raise
    return calls


def _cancel(engine: Engine, calls: Sequence[Call]) -> None:
    for call in calls:
        if not call.ended:
            engine.cancel(call)


async def _left(request: Request) -> None:
    """Returns when the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(queue: asyncio.Queue[Told], answers: int) -> list[Sample]:
    samples: dict[int, Sample] = {}
    while len(samples) < answers:
        index, progress = await queue.get()
        if progress.error is not None:
            raise progress.error
        assert progress.sample is not None
        samples[index] = progress.sample
    return [samples[index] for index in range(answers)]


async def _stream(
    engine: Engine, calls: Sequence[Call], queue: asyncio.Queue[Told], first: Told, answering: Answering
) -> AsyncIterator[bytes]:
    """Server-sent events of the answers, `[DONE]` last. What fails on the way is told as an event."""
    samples: dict[int, Sample] = {}
    parts = {index: _Part(index, answering) for index in range(len(calls))}
    told = first
    try:
        for index in parts:
            yield _event(answering.chunk(index, {"role": "assistant", "content": ""}) | _prompt(answering, calls))
        while True:
            index, progress = told
            if progress.error is not None:
                yield _event(error_body(progress.error))
                break
            for chunk in parts[index].take(progress):
                yield _event(chunk)
            if progress.sample is not None:
                samples[index] = progress.sample
            if len(samples) == len(calls):
                if answering.asked.include_usage:
                    yield _event(answering.usage_chunk([samples[i] for i in sorted(samples)]))
                break
            told = await queue.get()
        yield b"data: [DONE]\n\n"
    finally:
        _cancel(engine, calls)


class _Part:
    """One of the answers of a stream: its tokens are told with the text that they came to."""

    def __init__(self, index: int, answering: Answering) -> None:
        self.index, self._answering = index, answering
        self._held: list[Progress] = []
        self._tokens = 0

    def take(self, progress: Progress) -> list[dict[str, Any]]:
        """The chunks that can be said now."""
        if progress.sample is None:
            self._held.append(progress)
            return self._said(progress.text) if progress.text else []
        sample, chunks = progress.sample, []
        if self._held:
            chunks = self._said("")
        left = slice(self._tokens, None)  # all of them where a choice was drawn
        if sample.token_ids[left]:
            delta = {"content": progress.text}
            shown = sample.token_ids[left], sample.logprobs[left], sample.top_logprobs[left]
            chunks.append(self._answering.chunk(self.index, delta, *shown))
        return [*chunks, self._answering.chunk(self.index, {}, finish_reason=sample.finish_reason)]

    def _said(self, text: str) -> list[dict[str, Any]]:
        tokens = [p.token for p in self._held if p.token is not None]
        logprobs, tops = [p.logprob for p in self._held], [p.top for p in self._held]
        self._held, self._tokens = [], self._tokens + len(tokens)
        return [self._answering.chunk(self.index, {"content": text}, tokens, logprobs, tops)]


def _prompt(answering: Answering, calls: Sequence[Call]) -> dict[str, Any]:
    return {"prompt_token_ids": calls[0].request.prompt} if answering.asked.token_ids else {}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
