"""A call from its first byte to its last: admitted, routed, asked of the upstream, recorded, answered.

The event of a call is on disk before the last byte of its answer goes out. Where the spool fails the call passes.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway import answers
from babylon_rl.serving.gateway.callers import Caller, caller_of
from babylon_rl.serving.gateway.calls import (
    Added,
    Body,
    answers_wanted,
    estimated_tokens,
    named_target,
    read_body,
    sampling_of,
    upstream_body,
)
from babylon_rl.serving.gateway.events import CallEvent
from babylon_rl.serving.gateway.memory import Answered, Attempt, Waiting, binds
from babylon_rl.serving.gateway.messages import (
    Headers,
    Receive,
    Send,
    caller_gone,
    check_text,
    read_request,
    send_whole,
)
from babylon_rl.serving.gateway.refusals import Refused, forbidden, invalid, too_many, unavailable
from babylon_rl.serving.gateway.spool import SpoolError, read_at
from babylon_rl.serving.gateway.upstream import passed_headers, said
from babylon_rl.serving.routing import Chosen, choose
from babylon_rl.windows import window_of

if TYPE_CHECKING:
    from babylon_rl.serving.gateway.application import Gateway


log = logging.getLogger(__name__)
_calls = msgspec.json.Decoder(CallEvent)


class Kept(msgspec.Struct, frozen=True):
    """An answer as it is given again: to a caller that asks with the same request id."""

    status: int
    content_type: str
    response: bytes
    call_id: str
    checkpoint_id: str
    arm: str


class Call:
    """One call on its way: what was asked, by whom, who answers, and what is known of the answer so far."""

    def __init__(self, path: str, content: bytes, digest: str, body: Body, caller: Caller, started: float) -> None:
        self.path, self.content, self.digest, self.body, self.caller = path, content, digest, body, caller
        self.started, self.asked_at = started, time.time()
        self.window_id = caller.window_id or _this_window(int(self.asked_at // 3600))
        self.chosen: Chosen
        self.attempt: Attempt
        self.added = Added(False, False)
        self.sampled = answers.Sampled(answers_wanted(body), bool(body.echo))
        self.status, self.content_type, self.streamed = 0, "", False
        self.upstream_at = self.upstream_seconds = 0.0
        self.first_byte_ms: float | None = None
        self.kept: Kept | None = None
        self.begun = False  # whether the answer's head is out
        self.whole = False  # whether the answer came to its end

    def headers(self, content_type: bytes) -> Headers:
        """Headers of the answer that are the gateway's own."""
        return [
            (b"content-type", content_type),
            (b"x-babylon-call", self.attempt.call_id.encode()),
            (b"x-babylon-checkpoint", self.chosen.target.checkpoint_id.encode()),
            (b"x-babylon-arm", self.chosen.arm.encode()),
        ]

    def event(self, response: bytes, finish_reason: str | None) -> CallEvent:
        """The record of the call."""
        caller, chosen, sampled = self.caller, self.chosen, self.sampled
        return CallEvent(
            call_id=self.attempt.call_id,
            request_id=caller.request_id,
            body_sha256=self.digest,
            key_id=caller.key.key_id,
            agent_id=caller.agent_id,
            window_id=self.window_id,
            trajectory_id=caller.trajectory_id,
            step_number=caller.step_number,
            arm=chosen.arm,
            experiment_id=chosen.experiment_id,
            checkpoint_id=chosen.target.checkpoint_id,
            upstream=chosen.target.base_url,
            model=chosen.target.model,
            request=self.content.decode(),
            response=response.decode("utf-8", "replace"),
            content_type=self.content_type,
            status=self.status,
            streamed=self.streamed,
            prompt_token_ids=sampled.prompt_token_ids,
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            sampling=sampling_of(self.body),
            finish_reason=finish_reason,
            asked_at=self.asked_at,
            latency_ms=_ms(time.perf_counter() - self.started),
            first_byte_ms=self.first_byte_ms,
            upstream_ms=_ms(self.upstream_seconds),
        )


class CallHandler:
    """Answers the calls of a gateway."""

    def __init__(self, gateway: "Gateway") -> None:
        self.gateway = gateway
        self._waiting = 0

    async def handle(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, path: str) -> None:
        """One call; `path`: what is asked of the upstream."""
        started, call = time.perf_counter(), None
        try:
            headers = dict(scope["headers"])
            key = self.gateway.key_of(headers.get(b"authorization", b"").decode("latin-1"), "call")
            content = await read_request(headers, receive, self.gateway.limits.body_bytes)
            if content is None:
                return
            body = read_body(content)
            check_text(content)
            caller = caller_of(headers, key, body)
            digest = hashlib.sha256(content).hexdigest()
            call = Call(path, content, digest, body, caller, started)
            await self._claimed(call, receive, send)
        except Refused as refused:
            await self._refuse(refused, send)
        except Exception:
            log.exception("A call was not answered.")
            if call is not None and call.begun:
                raise  # the server closes the connection, so that the caller sees that the answer is not whole
            await self._refuse(unavailable("The gateway failed; its log says why. Ask again.", "internal", 500), send)

    async def _refuse(self, refused: Refused, send: Send) -> None:
        self.gateway.metrics.refused.labels(refused.code or "other").inc()
        await send_whole(send, refused.status, refused.headers(), refused.body())

    async def _claimed(self, call: Call, receive: Receive, send: Send) -> None:
        """Give the answer that the request id has, wait for the one that it will have, or make it."""
        key_id, request_id, memory = call.caller.key.key_id, call.caller.request_id, self.gateway.memory
        while True:
            match memory.claim(key_id, request_id, call.digest):
                case Answered(place, same_body):
                    _check_same(same_body, request_id)
                    line = await asyncio.to_thread(read_at, self.gateway.spool.folder, place)
                    if line is not None:
                        return await self._give_again(_kept(_calls.decode(line)), send)
                    memory.forget(key_id, request_id)
                case Waiting(done, same_body):
                    _check_same(same_body, request_id)
                    kept = await self._wait(done)
                    if kept is not None:
                        return await self._give_again(kept, send)
                case Attempt() as attempt:
                    call.attempt = attempt
                    try:
                        return await self._admitted(call, receive, send)
                    finally:
                        # Who waits for an answer that broke off asks on its own.
                        memory.release(attempt, call.kept if call.whole else None)

    async def _wait(self, done: asyncio.Future) -> Kept | None:
        if self._waiting >= self.gateway.limits.in_flight:
            raise too_many("Too many calls wait for the answer of another with the same request id.", "waiting", 1.0)
        self._waiting += 1
        try:
            return await asyncio.shield(done)
        finally:
            self._waiting -= 1

    async def _give_again(self, kept: Kept, send: Send) -> None:
        self.gateway.metrics.replayed.inc()
        headers = [
            (b"content-type", kept.content_type.encode()),
            (b"x-babylon-call", kept.call_id.encode()),
            (b"x-babylon-checkpoint", kept.checkpoint_id.encode()),
            (b"x-babylon-arm", kept.arm.encode()),
            (b"x-babylon-replayed", b"true"),
        ]
        await send_whole(send, kept.status, headers, kept.response)

    async def _admitted(self, call: Call, receive: Receive, send: Send) -> None:
        gateway = self.gateway
        call.chosen = self._choose(call)
        admitted = gateway.admission.enter(call.caller.key, lambda: estimated_tokens(len(call.content), call.body))
        try:
            await self._ask(call, receive, send)
        finally:
            sampled = call.sampled
            used = sampled.total_tokens
            if used is None and sampled.token_ids is not None:
                used = len(sampled.token_ids) + len(sampled.prompt_token_ids or ())
            admitted.leave(used)
            if call.status:
                arm, target = call.chosen.arm, call.chosen.target
                gateway.metrics.call(arm, target.checkpoint_id, call.status)
                taken = time.perf_counter() - call.started
                gateway.metrics.latency.labels(arm).observe(taken)
                gateway.metrics.overhead.observe(max(0.0, taken - call.upstream_seconds))

    def _choose(self, call: Call) -> Chosen:
        routes = self.gateway.files.routes
        if routes is None:
            raise unavailable("The gateway does not know yet what is served. Ask again in a few seconds.", "no_routes")
        named = named_target(call.body, routes)
        if named is not None and "pin" not in call.caller.key.scopes:
            raise forbidden(
                f"Key {call.caller.key.key_id} lacks the scope 'pin', which a call that names {named!r} needs. Send "
                "model: babylon and the gateway chooses.",
                "scope",
            )
        try:
            return choose(routes, call.caller.agent_id, call.window_id, named)
        except ServingError as error:
            raise unavailable(str(error), "nothing_served") from None

    async def _ask(self, call: Call, receive: Receive, send: Send) -> None:
        target = call.chosen.target
        content, call.added = upstream_body(call.content, call.body, target, call.path)
        call.upstream_at = time.perf_counter()
        response = await self.gateway.upstreams.ask(target, call.path, content, call.attempt.call_id)
        content_type = response.headers.get("content-type", "application/json")
        try:
            if call.body.stream and content_type.startswith("text/event-stream"):
                await self._stream(call, response, content_type, receive, send)
            else:
                await self._plain(call, response, content_type, send)
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def _plain(self, call: Call, response: aiohttp.ClientResponse, content_type: str, send: Send) -> None:
        """Not ended by a caller that goes away: who asks again with the same request id gets this answer."""
        try:
            content = await response.read()
        except Exception as error:
            raise said(error, call.chosen.target) from error
        call.upstream_seconds = time.perf_counter() - call.upstream_at
        answer = answers.plain(content, call.added, call.sampled)
        call.status, call.content_type = response.status, content_type
        await self._record(call, answer, call.sampled.finish_reason)
        headers = [*call.headers(content_type.encode("latin-1")), *passed_headers(response)]
        call.begun = True
        await send_whole(send, response.status, headers, answer)

    async def _stream(
        self, call: Call, response: aiohttp.ClientResponse, content_type: str, receive: Receive, send: Send
    ) -> None:
        call.status, call.content_type, call.streamed = response.status, content_type, True
        events = answers.Events(call.added, call.sampled, answers_wanted(call.body))
        sent: list[bytes] = []
        relay = asyncio.ensure_future(self._relay(call, response, events, sent, send))
        gone = asyncio.ensure_future(caller_gone(receive))
        try:
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            if not relay.done() and call.kept is None:
                relay.cancel()
                response.close()
            with contextlib.suppress(asyncio.CancelledError):
                await relay
            if relay.cancelled():
                call.upstream_seconds = time.perf_counter() - call.upstream_at
                await self._record(call, b"".join(sent), answers.CANCELLED)
        except asyncio.CancelledError:  # the gateway is being ended and waits no longer
            relay.cancel()
            call.upstream_seconds = time.perf_counter() - call.upstream_at
            if call.kept is None:
                self.gateway.spool.put(call.event(b"".join(sent), answers.CANCELLED))
            raise
        finally:
            gone.cancel()

    async def _relay(
        self, call: Call, response: aiohttp.ClientResponse, events: answers.Events, sent: list[bytes], send: Send
    ) -> None:
        """The stream as it comes; its end when the call is recorded."""
        headers = [*call.headers(call.content_type.encode("latin-1")), *passed_headers(response)]
        call.begun = True
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        broken: Refused | None = None
        try:
            async for data in response.content.iter_any():
                if call.first_byte_ms is None:
                    call.first_byte_ms = _ms(time.perf_counter() - call.started)
                if part := events.feed(data):
                    sent.append(part)
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            broken = said(error, call.chosen.target)
        call.upstream_seconds = time.perf_counter() - call.upstream_at
        last = events.end()
        if broken is not None and not events.whole:
            last += b"data: " + broken.body() + b"\n\n"
            self.gateway.metrics.refused.labels(broken.code or "other").inc()
        sent.append(last)
        finish = answers.BROKEN if call.sampled.failed or (broken and not events.whole) else call.sampled.finish_reason
        await self._record(call, b"".join(sent), finish)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _record(self, call: Call, response: bytes, finish_reason: str | None) -> None:
        """Bring the call to disk; where that fails it is counted, and the caller still gets the answer."""
        target, attempt = call.chosen.target, call.attempt
        event = call.event(response, finish_reason)
        call.kept = Kept(
            call.status, call.content_type, response, attempt.call_id, target.checkpoint_id, call.chosen.arm
        )
        call.whole = finish_reason not in (answers.CANCELLED, answers.BROKEN)
        place = None
        with contextlib.suppress(SpoolError):
            place = await self.gateway.spool.append(event)
        self.gateway.memory.remember(attempt, place, binds(call.status, finish_reason))


def _check_same(same_body: bool, request_id: str) -> None:
    if not same_body:
        raise invalid(
            f"The request id {request_id!r} was used for another body. Give each request an id of its own; only a "
            "repeated one keeps its id.",
            "request_id_reused",
            409,
        )


def _kept(event: CallEvent) -> Kept:
    response = event.response.encode()
    return Kept(event.status, event.content_type, response, event.call_id, event.checkpoint_id, event.arm)


_windows: dict[int, str] = {}


def _this_window(hour: int) -> str:
    """Id of the window, by its hour since the epoch; the last one is kept."""
    if hour not in _windows:
        _windows.clear()
        _windows[hour] = window_of(datetime.fromtimestamp(3600 * hour, UTC))
    return _windows[hour]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
