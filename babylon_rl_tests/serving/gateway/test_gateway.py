"""The gateway over HTTP before a scripted upstream: what it promises to a caller, and what it records."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest
from aiohttp import web

from babylon_rl.serving.gateway.keys import secret_digest
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.memory import call_id_of
from babylon_rl.serving.routing import ExperimentRoute, Routes, choose
from babylon_rl.windows import shift_window
from babylon_rl_tests.serving.gateway.stand_in import (
    ASK,
    HEADERS,
    answer_of,
    chunks_of,
    in_process,
    key,
    prepare,
    stream_out,
)

WINDOW = "2025-01-15T10:00"


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert set(response.json()["error"]) == {"message", "type", "code"} and response.json()["error"]["message"]
    return response.status_code, response.json()["error"]["code"]


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
        release.wait(10)
        write(data)

    gateway.gateway.spool._write_whole = slow
    with gateway.client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
        parts = response.iter_raw()
        first = next(parts)
        assert b'"BU"' in first and held.wait(5)
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
    assert left.wait(5)
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
    arrived, release = threading.Event(), asyncio.Event()
    answering = upstream.answer

    async def slow(request, body):
        arrived.set()
        slow.loop = asyncio.get_running_loop()
        await release.wait()
        return await answering(request, body)

    upstream.answer = slow
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(gateway.ask, headers={"idempotency-key": "one"}) for _ in range(5)]
        assert arrived.wait(5)
        other = pool.submit(gateway.ask, headers={"idempotency-key": "one"}, seed=9).result()
        assert error_of(other) == (409, "request_id_reused")
        slow.loop.call_soon_threadsafe(release.set)
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


def test_keys_are_asked_for_their_scope_expiry_and_agent(gateway):
    for header in ({"authorization": ""}, {"authorization": "Bearer brl_wrong"}, {"authorization": "Basic eA=="}):
        response = gateway.ask(headers=header)
        assert error_of(response) == (401, "invalid_api_key") and response.headers["www-authenticate"] == "Bearer"
    gateway.use(keys=[key(expires_at=1.0)])
    assert error_of(gateway.ask())[0] == 401
    gateway.use(keys=[key(scopes=("record",))])
    assert error_of(gateway.ask()) == (403, "scope")
    gateway.use(keys=[key(scopes=("call",), agent_id="ann")])
    assert error_of(gateway.ask(model="c2")) == (403, "scope")
    assert error_of(gateway.ask(headers={"x-babylon-agent": "bob"})) == (403, "agent")
    assert gateway.ask(user="bob").status_code == 200
    assert [call.agent_id for call in gateway.calls()] == ["ann"]


def test_the_agent_is_the_headers_else_the_users_else_the_keys(gateway):
    gateway.ask(headers={"x-babylon-agent": "ann"}, user="bob")
    gateway.ask(user="bob")
    gateway.ask()
    assert [call.agent_id for call in gateway.calls()] == ["ann", "bob", "k1"]


def test_a_named_checkpoint_answers_and_an_unknown_name_is_routed(gateway):
    arms = [gateway.ask(model=name).headers["x-babylon-arm"] for name in ("c2", "base", "gpt-4o", "", None)]
    assert arms == ["pinned", "base", "promoted", "promoted", "promoted"]
    assert [call.checkpoint_id for call in gateway.calls()] == ["c2", "base", "c1", "c1", "c1"]


def test_an_experiment_gives_each_agent_and_window_the_arm_that_routing_says(gateway, upstream):
    experiment = ExperimentRoute(
        experiment_id="e", design="paired-by-window", share=0.5, seed=1, first_window=WINDOW, block_hours=6
    )
    routes = Routes(promoted=upstream.target(), base=None, candidate=upstream.target("c2"), experiment=experiment)
    gateway.use(routes)
    expected = []
    for number in range(12):
        agent, window = f"a{number % 4}", shift_window(WINDOW, number // 4)
        response = gateway.ask(headers={"x-babylon-agent": agent, "x-babylon-window": window})
        chosen = choose(routes, agent, window, None)
        expected.append((chosen.arm, chosen.target.checkpoint_id))
        assert (response.headers["x-babylon-arm"], response.headers["x-babylon-checkpoint"]) == expected[-1]
    assert [(call.arm, call.checkpoint_id) for call in gateway.calls()] == expected
    assert {arm for arm, _ in expected} == {"promoted", "candidate"}
    assert {call.experiment_id for call in gateway.calls()} == {"e"}


def test_a_switch_is_followed_by_the_next_calls_and_not_by_those_in_flight(gateway, upstream):
    arrived, release, answering = threading.Event(), asyncio.Event(), upstream.answer

    async def slow(request, body):
        arrived.set()
        slow.loop = asyncio.get_running_loop()
        await release.wait()
        return await answering(request, body)

    upstream.answer = slow
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.ask)
        assert arrived.wait(5)
        upstream.answer = answering
        write = gateway.folder / "routes.json"
        write.write_text("{")  # a damaged file changes nothing
        wait_until(lambda: gateway.client.get("/health").json()["status"] == "degraded")
        assert gateway.ask().headers["x-babylon-checkpoint"] == "c1"
        gateway.use(Routes(promoted=upstream.target("c2"), base=None))
        wait_until(lambda: gateway.ask().headers["x-babylon-checkpoint"] == "c2", 2)
        slow.loop.call_soon_threadsafe(release.set)
        assert running.result().headers["x-babylon-checkpoint"] == "c1"
    assert gateway.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-babylon-window": "2025-01-15T10:30"}, b"{}"),
        ({"x-babylon-step": "-1"}, b"{}"),
        ({"x-babylon-step": "9" * 12}, b"{}"),
        ({"x-babylon-agent": "a" * 300}, b"{}"),
        ({}, b"[1]"),
        ({}, b'{"model": "\xff"}'),
        ({}, b'{"x": "\xff"}'),
        ({}, b""),
    ],
)
def test_what_cannot_be_understood_is_a_400_and_asks_nothing(gateway, upstream, headers, body):
    assert error_of(gateway.client.post("/v1/chat/completions", content=body, headers=headers))[0] == 400
    assert not upstream.asked and not gateway.calls()


def test_a_body_beyond_the_limit_is_a_413_however_it_is_sent(tmp_path, upstream):
    prepare(tmp_path, upstream)
    with in_process(tmp_path, GatewayLimits(body_bytes=1000)) as running:
        assert error_of(running.ask(user="x" * 2000)) == (413, "too_large")
        parts = running.client.post("/v1/chat/completions", content=iter([b"x" * 600, b"x" * 600]))
        assert error_of(parts) == (413, "too_large")


def test_limits_of_a_key_are_429s_that_name_the_limit_and_when_to_ask_again(gateway, upstream):
    gateway.use(keys=[key(requests_per_minute=2)])
    assert [gateway.ask().status_code for _ in range(3)] == [200, 200, 429]
    refused = gateway.ask()
    assert error_of(refused) == (429, "requests_per_minute") and 1 <= int(refused.headers["retry-after"]) <= 60
    gateway.use(keys=[key(key_id="k2", tokens_per_minute=600)])
    assert [gateway.ask(max_tokens=200).status_code for _ in range(5)] == [200] * 5  # five tokens each, as they say
    assert error_of(gateway.ask(max_tokens=590)) == (429, "tokens_per_minute")


def test_calls_beyond_those_in_flight_are_refused_and_leave_no_trace(tmp_path, upstream):
    arrived, release, answering = threading.Semaphore(0), asyncio.Event(), upstream.answer

    async def slow(request, body):
        slow.loop = asyncio.get_running_loop()
        arrived.release()
        await release.wait()
        return await answering(request, body)

    upstream.answer = slow
    prepare(tmp_path, upstream, in_flight=2)
    with in_process(tmp_path, GatewayLimits(in_flight=3)) as running, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.ask) for _ in range(2)]
        assert all(arrived.acquire(timeout=5) for _ in asked)
        assert error_of(running.ask()) == (429, "key_in_flight")
        running.use(keys=[key(), key(key_id="k2", secret_sha256=secret_digest("brl_2"))])
        asked.append(pool.submit(running.ask))
        assert arrived.acquire(timeout=5)
        assert error_of(running.ask()) == (429, "in_flight")
        slow.loop.call_soon_threadsafe(release.set)
        assert [response.result().status_code for response in asked] == [200] * 3
        assert running.gateway.admission.open == 0 and len(running.calls()) == 3


def test_the_upstreams_key_is_sent_to_it_and_the_callers_is_not(tmp_path, upstream):
    prepare(tmp_path, upstream)
    with in_process(tmp_path, upstream_key="up-secret") as running:
        running.use(Routes(promoted=upstream.target(key_name="upstream"), base=upstream.target("base")))
        running.ask()
        running.ask(model="base")
    assert upstream.headers[0]["Authorization"] == "Bearer up-secret"
    assert "Authorization" not in upstream.headers[1]


def test_health_readiness_models_and_metrics(gateway, upstream):
    gateway.ask()
    gateway.ask(model="c2")
    assert gateway.client.get("/health").json()["status"] == "ok"
    assert gateway.client.get("/ready").status_code == 200
    assert [one["id"] for one in gateway.client.get("/v1/models").json()["data"]] == ["babylon", "base", "c1", "c2"]
    text = httpx.get(f"{gateway.address}/metrics").text
    assert 'babylon_rl_gateway_calls_total{arm="promoted",checkpoint="c1",status="200"} 1.0' in text
    assert 'babylon_rl_gateway_calls_total{arm="pinned",checkpoint="other",status="200"} 1.0' in text
    assert httpx.get(f"{gateway.address}/metrics", headers={"x-forwarded-for": "1.2.3.4"}).status_code == 401
    gateway.use(Routes(promoted=upstream.target("c9"), base=None))
    assert 'checkpoint="c1"' not in httpx.get(f"{gateway.address}/metrics").text
    gateway.use(Routes(promoted=None, base=None), [])
    assert gateway.client.get("/ready").status_code == 503 and len(gateway.client.get("/ready").json()["missing"]) == 2
    assert error_of(gateway.client.get("/nothing")) == (404, "404")
    assert error_of(gateway.client.get("/v1/chat/completions")) == (405, "405")


def wait_until(condition, seconds: float = 5.0) -> None:
    """Until the condition holds; fails after so many seconds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("what was waited for did not come")
