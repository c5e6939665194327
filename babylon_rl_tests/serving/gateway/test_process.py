"""The gateway's process: killed under load and started again, ended politely, alone on its folder, and light."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway import process as gateway_process
from babylon_rl.serving.gateway.events import GapEvent
from babylon_rl.serving.gateway.files import write_routes
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.process import gateway_command, running_gateway
from babylon_rl.serving.gateway.spool import segment_file, segments
from babylon_rl.serving.routing import Routes
from babylon_rl_tests.serving.gateway.stand_in import (
    ASK,
    HEADERS,
    PATIENCE,
    Held,
    Upstream,
    calls_in,
    chunks_of,
    events_in,
    prepare,
    stream_out,
    wait_until,
)

PATH = "/chat/completions"


def ask(base_url: str, name: str | None = None, **changes) -> httpx.Response:
    headers = HEADERS | ({"idempotency-key": name} if name else {})
    return httpx.post(base_url + PATH, json={**ASK, **changes}, headers=headers, timeout=PATIENCE, trust_env=False)


def test_no_acknowledged_call_is_lost_and_none_is_there_twice_through_kills(tmp_path, upstream):
    """Agents ask with ids of their own and repeat what failed; the gateway is killed under them, three times."""
    prepare(tmp_path, upstream)
    address, done, acknowledged = [""], threading.Event(), {}

    def agent(number: int) -> None:
        with httpx.Client(headers=HEADERS, timeout=5, trust_env=False) as client:
            for count in range(10_000):
                name = f"{number}-{count}"
                while True:
                    if done.is_set():
                        return
                    try:
                        answer = client.post(
                            address[0] + PATH, json={**ASK, "user": name}, headers={"idempotency-key": name}
                        )
                    except httpx.HTTPError:
                        time.sleep(0.01)
                        continue
                    assert answer.status_code == 200, answer.text
                    acknowledged[name] = (answer.headers["x-babylon-call"], answer.text)
                    break

    with ThreadPoolExecutor(6) as pool:
        try:
            agents = []
            for kill in range(4):
                with running_gateway(tmp_path) as running:
                    address[0] = running.base_url
                    agents = agents or [pool.submit(agent, number) for number in range(6)]
                    before = len(acknowledged)
                    wait_until(lambda before=before: len(acknowledged) > before + 40)
                    if kill < 3:
                        running.process.kill()
                        running.process.wait()
                    else:
                        done.set()
                        for one in agents:
                            one.result(PATIENCE)
        finally:
            done.set()
    calls = calls_in(tmp_path)
    counted = Counter(call.call_id for call in calls)
    by_id = {call.call_id: call for call in calls}
    assert len(acknowledged) > 160 and len(segments(tmp_path / "spool")) >= 4
    assert not [name for name, (call_id, text) in acknowledged.items() if by_id[call_id].response != text]
    assert max(counted.values()) == 1 and len({call.request_id for call in calls}) == len(calls)


def test_an_upstream_that_is_killed_and_comes_back_loses_no_call(tmp_path, upstream):
    other = Upstream()
    prepare(tmp_path, other)
    with running_gateway(tmp_path) as running, ThreadPoolExecutor(1) as pool:
        with other.running():
            assert ask(running.base_url, "before").status_code == 200
        waiting = pool.submit(ask, running.base_url, "during")
        time.sleep(0.2)
        with other.running():
            assert waiting.result().status_code == 200  # it was connected again, and the call sent once
            assert ask(running.base_url, "before").headers["x-babylon-replayed"] == "true"
    assert [call.request_id for call in calls_in(tmp_path)] == ["before", "during"] and len(other.asked) == 2


def test_a_polite_end_finishes_what_is_in_flight_and_takes_no_more(tmp_path, upstream):
    held = Held(upstream)
    prepare(tmp_path, upstream)
    with running_gateway(tmp_path) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, running.base_url)
        held.await_calls(1)
        running.process.terminate()
        wait_until(lambda: refused(running.address))
        with pytest.raises(httpx.HTTPError):
            ask(running.base_url)
        held.release()
        assert asked.result().status_code == 200
        assert running.process.wait(PATIENCE) == 0 or running.process.returncode == -signal.SIGTERM
    assert len(calls_in(tmp_path)) == 1


def refused(address: str) -> bool:
    """Whether nobody listens there."""
    url = httpx.URL(address)
    try:
        socket.create_connection((url.host, url.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_end_that_waits_no_longer_records_streams_as_far_as_they_came(tmp_path, upstream):
    upstream.answer = lambda request, body: stream_out(request, chunks_of(body), lambda: asyncio.sleep(30))
    prepare(tmp_path, upstream)
    with running_gateway(tmp_path, limits=GatewayLimits(drain_seconds=1)) as running:
        with httpx.stream("POST", running.base_url + PATH, json={**ASK, "stream": True}, headers=HEADERS) as response:
            assert b'"BU"' in next(response.iter_raw())
            running.process.terminate()
            running.process.wait(PATIENCE)
    [call] = calls_in(tmp_path)
    assert call.finish_reason == "cancelled" and call.token_ids == [5] and '"BU"' in call.response


def test_a_disk_that_takes_no_more_lets_calls_pass_and_the_gap_is_shown_and_kept(tmp_path, upstream):
    """The limit of a file's size is the kernel's own refusal, and it takes a part of a write first."""
    prepare(tmp_path, upstream)
    with running_gateway(tmp_path) as running:
        assert ask(running.base_url, "a").status_code == 200
        size = segment_file(tmp_path / "spool", segments(tmp_path / "spool")[-1]).stat().st_size
        before = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (size + 100, before[1]))
        assert [ask(running.base_url, name).status_code for name in "bc"] == [200, 200]
        big = {"user": "x" * 200, "messages": [{"role": "user", "content": "y" * 2000}]}
        assert ask(running.base_url, "d", **big).status_code == 200
        health = httpx.get(f"{running.address}/health").json()
        assert (
            health["status"] == "degraded" and health["unrecorded_calls"] >= 1 and "File too large" in health["reason"]
        )
        assert "gateway_unrecorded_calls_total" in httpx.get(f"{running.address}/metrics").text
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, before)
        wait_until(lambda: httpx.get(f"{running.address}/health").json()["status"] == "ok")
        assert ask(running.base_url, "e").status_code == 200
        lost = httpx.get(f"{running.address}/health").json()["unrecorded_calls"]
        assert f"gateway_unrecorded_calls_total {lost}.0" in httpx.get(f"{running.address}/metrics").text
    gaps = [event for event in events_in(tmp_path) if isinstance(event, GapEvent)]
    assert sum(gap.calls for gap in gaps) == lost == 5 - len(calls_in(tmp_path))
    assert {"a", "e"} <= {call.request_id for call in calls_in(tmp_path)}


def test_two_gateways_do_not_share_a_folder(tmp_path, upstream, monkeypatch):
    prepare(tmp_path, upstream)
    with running_gateway(tmp_path):
        monkeypatch.setattr(gateway_process, "LOCK_SECONDS", 0.1)
        only = gateway_process._only_gateway(tmp_path)
        with pytest.raises(ServingError, match="Another gateway serves.*Stop it"), only:
            pass
    with gateway_process._only_gateway(tmp_path):  # the one that ended has left it
        pass


def test_the_process_ends_with_its_parent(tmp_path):
    port = tmp_path / "port"
    child = subprocess.Popen(gateway_command(tmp_path, port_file=port), stdin=subprocess.PIPE)
    try:
        wait_until(port.exists)
        assert httpx.get(f"http://127.0.0.1:{port.read_text()}/ready").status_code == 503
        child.stdin.close()
        child.wait(PATIENCE)
    finally:
        child.kill()
        child.wait()


def test_a_port_that_is_taken_and_limits_that_are_none_are_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServingError, match="cannot listen.*Free the port"):
            with running_gateway(tmp_path, port=taken.getsockname()[1]):
                pass
    command = [*gateway_command(tmp_path), "--limits", '{"no_such": 1}']
    parent, kept_open = os.pipe()  # closed, it would end the process by itself
    said = subprocess.run(command, stdin=parent, capture_output=True, timeout=60)
    os.close(parent)
    os.close(kept_open)
    assert said.returncode == 1 and b"no_such" in said.stderr


def test_the_process_imports_nothing_heavy_and_no_database():
    script = (
        "import sys, json, babylon_rl.serving.gateway.process, babylon_rl.serving.gateway.application;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    heavy = {"torch", "dagster", "pandas", "numpy", "sqlalchemy", "psycopg", "transformers", "art", "pydantic", "httpx"}
    assert not heavy & set(json.loads(found.stdout))


def test_a_switch_loses_no_request(tmp_path, upstream):
    prepare(tmp_path, upstream)
    done, seen = threading.Event(), Counter()

    def agent(number: int) -> None:
        with httpx.Client(headers=HEADERS, timeout=PATIENCE, trust_env=False) as client:
            while not done.is_set():
                answer = client.post(base_url + PATH, json={**ASK, "stream": number == 0})
                seen[(answer.status_code, answer.headers["x-babylon-checkpoint"])] += 1

    with running_gateway(tmp_path) as running, ThreadPoolExecutor(3) as pool:
        base_url = running.base_url
        agents = [pool.submit(agent, number) for number in range(3)]
        for name in ("c2", "c3"):
            before = seen.total()
            wait_until(lambda before=before: seen.total() > before + 30)
            write_routes(tmp_path, Routes(promoted=upstream.target(name), base=None))
            wait_until(lambda name=name: seen[(200, name)])
        done.set()
        for one in agents:
            one.result(PATIENCE)
    assert {name for _, name in seen} == {"c1", "c2", "c3"} and {status for status, _ in seen} == {200}
    assert len(calls_in(tmp_path)) == sum(seen.values())
