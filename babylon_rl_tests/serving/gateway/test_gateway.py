"""The gateway over HTTP before a scripted upstream: what it promises to a caller of it, and what it records."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
from aiohttp import web

from babylon_rl.serving.gateway.keys import secret_digest
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.memory import call_id_of
from babylon_rl.serving.routing import Routes
from babylon_rl_tests.serving.gateway.stand_in import (
    ASK,
    HEADERS,
    PATIENCE,
    Held,
    answer_of,
    chunks_of,
    error_of,
    in_process,
    key,
    prepare,
    stream_out,
    wait_until,
)

WINDOW = "2025-01-15T10:00"


def said_in(stream: bytes) -> list:
    """The events of a stream, decoded."""
    parts = [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part]
    return [part if part == b"[DONE]" else json.loads(part) for part in parts]


def test_a_call_is_answered_as_the_upstream_would_and_recorded_with_its_tokens(gateway, upstream):
    response = gateway.ask(headers={"x-babylon-window": WINDOW, "x-babylon-trajectory": "t", "x-babylon-step": "4"})
    assert response.json() == answer_of({"model": "name-of-c1"})
    assert response.headers["x-ratelimit-remaining"] == "7"
    [call] = gateway.calls()
    assert response.headers["x-babylon-call"] == call.call_id
    assert (response.headers["x-babylon-checkpoint"], response.headers["x-babylon-arm"]) == ("c1", "promoted")
    assert (call.prompt_token_ids, call.token_ids, call.logprobs) == ([1, 2, 3], [5, 6], [-0.5, -0.25])
    assert (call.window_id, call.trajectory_id, call.step_number, call.finish_reason) == (WINDOW, "t", 4, "stop")
    assert call.request.encode() == response.request.content and call.response == response.text
    assert call.sampling == {"temperature": 0.7, "seed": 3} and (call.arm, call.checkpoint_id) == ("promoted", "c1")
    sent = json.loads(upstream.asked[0])
    added = {"logprobs": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
    assert sent == {**ASK, "model": "name-of-c1", **added}


def test_what_the_caller_asks_for_is_not_taken_out(gateway, upstream):
    body = gateway.ask(logprobs=True, return_token_ids=True).json()
    assert body == answer_of({"model": "name-of-c1", "logprobs": True, "return_token_ids": True})
    assert "return_tokens_as_token_ids" not in json.loads(upstream.asked[0])
    body = gateway.ask(logprobs=True).json()
    assert [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]] == ["BU", "Y"]
    assert "token_ids" not in body["choices"][0] and gateway.calls()[1].token_ids == [5, 6]


def test_an_upstream_without_extensions_is_sent_logprobs_alone_and_completions_ask_by_number(gateway, upstream):
    plain = upstream.target(fields="openai")
    gateway.use(Routes(promoted=plain, base=None))
    gateway.ask()
    gateway.ask("/v1/completions", prompt="BUY")
    chat, completion = (json.loads(asked) for asked in upstream.asked)
    assert chat == {**ASK, "model": "name-of-c1", "logprobs": True}
    assert completion == {**ASK, "prompt": "BUY", "model": "name-of-c1", "logprobs": 1}


def test_a_stream_passes_as_it_came_and_is_recorded_before_its_end(gateway, upstream):
    with gateway.client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
        parts = list(response.iter_raw())
        recorded = gateway.calls()
    assert said_in(b"".join(parts)) == said_in(b"".join(chunks_of({"model": "name-of-c1"})))
    [call] = recorded
    assert call.response.encode() == b"".join(parts) and call.streamed and call.first_byte_ms is not None
    assert (call.prompt_token_ids, call.token_ids, call.logprobs) == ([1, 2, 3], [5, 6], [-0.5, -0.25])
    assert call.finish_reason == "stop"


def test_the_end_of_a_stream_waits_for_the_disk_and_its_beginning_does_not(gateway, upstream):
    held, release, write = threading.Event(), threading.Event(), gateway.gateway.spool._write_whole

    def slow(data: bytes) -> None:
        held.set()
        release.wait(PATIENCE)
        write(data)

    gateway.gateway.spool._write_whole = slow
    with gateway.client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
        parts = response.iter_raw()
        first = next(parts)
        assert b'"BU"' in first and held.wait(PATIENCE)
        assert b'"Y"' not in first and not gateway.calls()
        release.set()
        assert b'"Y"' in (rest := b"".join(parts)) and rest.endswith(b"data: [DONE]\n\n")
    assert len(gateway.calls()) == 1


def test_a_stream_that_its_caller_leaves_is_recorded_as_far_as_it_came_and_the_upstream_is_left(gateway, upstream):
    left = threading.Event()

    async def endless(request, body):
        async def wait():
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                left.set()
                raise

        return await stream_out(request, chunks_of(body), wait)

    upstream.answer = endless
    named = {**HEADERS, "idempotency-key": "left"}
    url = f"{gateway.address}/v1/chat/completions"
    with httpx.stream("POST", url, json={**ASK, "stream": True}, headers=named) as response:
        assert b'"BU"' in next(response.iter_raw())
    assert left.wait(PATIENCE)
    wait_until(gateway.calls)
    [call] = gateway.calls()
    assert call.finish_reason == "cancelled" and '"BU"' in call.response and '"Y"' not in call.response
    assert call.token_ids == [5]
    upstream.answer = lambda request, body: stream_out(request, chunks_of(body))
    again = gateway.ask(stream=True, headers={"idempotency-key": "left"})
    assert again.text.endswith("data: [DONE]\n\n") and again.headers["x-babylon-call"] == call_id_of("k1", "left", 2)


def test_a_stream_that_the_upstream_breaks_off_says_so_and_binds_nothing(gateway, upstream):
    async def breaking(request, body):
        async def cut():
            request.transport.close()
            await asyncio.sleep(30)

        return await stream_out(request, chunks_of(body), cut)

    upstream.answer = breaking
    response = gateway.ask(stream=True, headers={"idempotency-key": "a"})
    assert "upstream_broke_off" in response.text and "[DONE]" not in response.text
    assert gateway.calls()[0].finish_reason == "broken" and gateway.calls()[0].response == response.text
    assert len(upstream.asked) == 1  # what may have been sampled is not sent twice


def test_an_error_of_the_upstream_passes_as_it_is_and_leaves_its_request_id_free(gateway, upstream):
    async def failing(request, body):
        return web.Response(status=503, text="no room {", headers={"retry-after": "9"}, content_type="text/plain")

    answering, upstream.answer = upstream.answer, failing
    response = gateway.ask(headers={"idempotency-key": "a"})
    assert (response.status_code, response.text, response.headers["retry-after"]) == (503, "no room {", "9")
    assert response.headers["content-type"].startswith("text/plain")
    upstream.answer = answering
    assert gateway.ask(headers={"idempotency-key": "a"}).status_code == 200
    first, second = gateway.calls()
    assert (first.status, second.status) == (503, 200) and first.call_id != second.call_id
    assert first.request_id == second.request_id == "a"


def test_a_repeated_request_gets_the_recorded_answer_and_another_body_is_refused(gateway, upstream):
    for changes in ({}, {"stream": True}):
        named = {"idempotency-key": f"same {changes}"}
        first, again = (gateway.ask(headers=named, **changes) for _ in range(2))
        assert again.content == first.content and again.headers["x-babylon-replayed"] == "true"
        for name in ("x-babylon-call", "x-babylon-checkpoint", "x-babylon-arm", "content-type"):
            assert again.headers[name] == first.headers[name]
    assert error_of(gateway.ask(headers={"x-request-id": "same {}"}, seed=4)) == (409, "request_id_reused")
    assert len(upstream.asked) == len(gateway.calls()) == 2


def test_a_request_that_is_asked_again_while_it_is_answered_is_sampled_once(gateway, upstream):
    held = Held(upstream)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(gateway.ask, headers={"idempotency-key": "one"}) for _ in range(5)]
        held.await_calls(1)
        other = pool.submit(gateway.ask, headers={"idempotency-key": "one"}, seed=9).result()
        assert error_of(other) == (409, "request_id_reused")
        held.release()
        answers = {response.result().content for response in asked}
    assert len(answers) == len(upstream.asked) == len(gateway.calls()) == 1


def test_request_ids_of_two_keys_are_two_requests(gateway, upstream):
    other = key(key_id="k2", secret_sha256=secret_digest("brl_other"))
    gateway.use(keys=[key(), other])
    named = {"idempotency-key": "x"}
    gateway.ask(headers=named)
    gateway.ask(headers={**named, "authorization": "Bearer brl_other"})
    assert len({call.call_id for call in gateway.calls()}) == 2


def test_answers_are_remembered_over_a_restart(upstream, tmp_path):
    prepare(tmp_path, upstream)
    answers = []
    for _ in range(2):
        with in_process(tmp_path) as running:
            for name in ("plain", "stream"):
                answers.append(running.ask(headers={"idempotency-key": name}, stream=name == "stream").content)
    assert answers[:2] == answers[2:] and len(upstream.asked) == 2


def test_where_the_record_of_an_answer_is_gone_the_request_is_asked_again(gateway, upstream):
    gateway.ask(headers={"idempotency-key": "a"})
    for segment in (gateway.folder / "spool").iterdir():
        segment.unlink()
    assert gateway.ask(headers={"idempotency-key": "a"}).status_code == 200
    assert len(upstream.asked) == 2 and len(gateway.calls()) == 1  # and what is written now lies in a file that exists


def test_an_upstream_that_is_not_there_is_a_502_with_a_remedy_and_free_to_ask_again(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr("babylon_rl.serving.gateway.upstream.PAUSES", (0.01, 0.01))
    away = msgspec.structs.replace(upstream.target(), base_url="http://127.0.0.1:9/v1")
    prepare(tmp_path, upstream)
    with in_process(tmp_path) as running:
        running.use(Routes(promoted=away, base=None))
        response = running.ask(headers={"idempotency-key": "a"})
        assert error_of(response) == (502, "upstream_unreachable") and "Start the upstream" in response.text
        running.use(Routes(promoted=upstream.target(), base=None))
        assert running.ask(headers={"idempotency-key": "a"}).status_code == 200
        assert len(running.calls()) == 1


def test_a_slow_upstream_is_given_up_and_not_asked_twice(tmp_path, upstream):
    async def silent(request, body):
        await asyncio.sleep(30)

    upstream.answer = silent
    prepare(tmp_path, upstream)
    with in_process(tmp_path, GatewayLimits(upstream_timeout=0.2)) as running:
        assert error_of(running.ask()) == (504, "upstream_timeout")
    assert len(upstream.asked) == 1
