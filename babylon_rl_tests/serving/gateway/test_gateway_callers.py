"""Who asks the gateway, who answers, and what is refused: keys, agents, arms, switches, limits, health."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from babylon_rl.serving.gateway.keys import secret_digest
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.routing import ExperimentRoute, Routes, choose
from babylon_rl.windows import shift_window
from babylon_rl_tests.serving.gateway.stand_in import Held, error_of, in_process, key, prepare, wait_until

WINDOW = "2025-01-15T10:00"


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
    held = Held(upstream)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.ask)
        held.await_calls(1)
        upstream.answer = held.answering
        write = gateway.folder / "routes.json"
        write.write_text("{")  # a damaged file changes nothing
        wait_until(lambda: gateway.client.get("/health").json()["status"] == "degraded")
        assert gateway.ask().headers["x-babylon-checkpoint"] == "c1"
        gateway.use(Routes(promoted=upstream.target("c2"), base=None))
        wait_until(lambda: gateway.ask().headers["x-babylon-checkpoint"] == "c2")
        held.release()
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
    held = Held(upstream)
    prepare(tmp_path, upstream, in_flight=2)
    with in_process(tmp_path, GatewayLimits(in_flight=3)) as running, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.ask) for _ in range(2)]
        held.await_calls(2)
        assert error_of(running.ask()) == (429, "key_in_flight")
        running.use(keys=[key(), key(key_id="k2", secret_sha256=secret_digest("brl_2"))])
        asked.append(pool.submit(running.ask))
        held.await_calls(1)
        assert error_of(running.ask()) == (429, "in_flight")
        held.release()
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
