"""Trajectories over HTTP: what is taken, what is refused and why, and that the same request is the same answer."""

import asyncio
import json
import subprocess
import sys
import time

import httpx
import pytest
from starlette.applications import Starlette

from babylon_rl.serving.gateway import known as known_module
from babylon_rl.serving.gateway.events import AbandonEvent, EndEvent, StartEvent, StepEvent
from babylon_rl.serving.gateway.files import SPOOL
from babylon_rl.serving.gateway.known import Known, decode_event, keep_known, load_known
from babylon_rl.serving.gateway.spool import Spool, SpoolError, lines, segment_file, segments
from babylon_rl.serving.gateway.trajectories import trajectory_routes
from babylon_rl_tests.serving.gateway.agents import authenticate, call_event, end, recording, start, step

ALL = "/v1/trajectories"
ONE = f"{ALL}/t1"


def events(folder) -> list:
    spool = folder / SPOOL
    return [decode_event(line) for segment in segments(spool) for _, line in lines(spool, segment)]


def test_what_is_answered_is_in_the_spool_as_it_was_sent(tmp_path):
    sent = step(0, providerAccesses=[{"providerName": "news"}], unknown={"kept": "\ud800"}, callIds=["c-1"])
    with recording(tmp_path) as client:
        begun = time.time()
        answers = [
            client.post(ALL, json=start()),
            client.post(f"{ONE}/steps", content=json.dumps(sent)),
            client.post(f"{ONE}/end", json=end()),
        ]
        assert [answer.status_code for answer in answers] == [201, 201, 200]
        told = events(tmp_path)
    assert [type(event) for event in told] == [StartEvent, StepEvent, EndEvent]
    assert told[0].body == start() and told[0].agent_id == "agent-1" and told[2].body == end()
    assert json.loads(told[1].content) == sent and told[1].call_ids == ["c-1"]
    assert all(begun - 1 < event.at < time.time() + 1 for event in told)


def test_the_same_request_again_is_the_same_answer_and_no_second_event_also_after_a_restart(tmp_path):
    requests = [
        (ALL, start()), (f"{ONE}/steps", step(0)), (f"{ONE}/steps", step(1)), (f"{ONE}/end", end()),
        (ALL, start("t2")), (f"{ALL}/t2/abandon", {"reason": "the market closed"}),
    ]  # fmt: skip
    with recording(tmp_path) as client:
        first = [client.post(path, json=body) for path, body in requests]
        again = [client.post(path, json=body) for path, body in requests]
    with recording(tmp_path) as client:
        # Keys in another order are the same body.
        restarted = [client.post(path, json=dict(reversed(body.items()))) for path, body in requests]
    answers = [[(answer.status_code, answer.json()) for answer in run] for run in (first, again, restarted)]
    assert answers[0] == answers[1] == answers[2] and len(events(tmp_path)) == len(requests)


@pytest.mark.parametrize("restarted", [False, True])
def test_another_body_in_the_place_of_one_that_was_taken_is_refused(tmp_path, restarted):
    def ask(client: httpx.Client) -> list[int]:
        return [
            client.post(path, json=body).status_code
            for path, body in (
                (ALL, start(startTime=5)),
                (f"{ONE}/steps", step(0, reward=1.0)),
                (f"{ONE}/steps", step(9)),
                (f"{ONE}/end", end(finalPnL=4.0)),
                (f"{ONE}/abandon", {"reason": "after all"}),
            )
        ]

    with recording(tmp_path) as client:
        for path, body in ((ALL, start()), (f"{ONE}/steps", step(0)), (f"{ONE}/end", end())):
            assert client.post(path, json=body).is_success
        answers = [] if restarted else ask(client)
    if restarted:
        with recording(tmp_path) as client:
            answers = ask(client)
    assert answers == [409] * 5 and len(events(tmp_path)) == 3


def test_a_start_without_an_id_is_known_by_its_request_id_and_else_a_new_one(tmp_path):
    body = {"agentId": "agent-1"}
    with recording(tmp_path) as client:
        named = [client.post(ALL, json=body, headers={"X-Request-Id": "r1"}).json() for _ in range(2)]
        unnamed = {client.post(ALL, json=body).json()["trajectoryId"] for _ in range(2)}
    assert named[0] == named[1] and len(unnamed | {named[0]["trajectoryId"]}) == 3


def test_who_may_record_for_whom(tmp_path):
    with recording(tmp_path) as client:
        assert client.post(ALL, json=start(agentId="agent-2")).is_success
        assert client.post(ALL, json={}).status_code == 400
        by_header = client.post(ALL, json={}, headers={"X-Babylon-Agent": "agent-3"})
        assert by_header.json()["agentId"] == "agent-3"
        contradicted = client.post(ALL, json={"agentId": "a"}, headers={"X-Babylon-Agent": "b"})
        assert contradicted.status_code == 400 and contradicted.json()["error"]["param"] == "agentId"
    with recording(tmp_path, key="bound") as client:
        own = client.post(ALL, json={})
        assert own.json()["agentId"] == "agent-1"
        for path, body in ((ALL, start("x", agentId="agent-2")), (ALL, start(agentId="agent-2"))):
            assert client.post(path, json=body).status_code == 403
        for path, body in (("steps", step()), ("end", end()), ("abandon", {"reason": "no"})):
            assert client.post(f"{ONE}/{path}", json=body).status_code == 403
    for key, status in (("caller", 403), ("nobody", 401)):
        with recording(tmp_path, key=key) as client:
            assert client.post(ALL, json=start("y")).status_code == status


def test_an_unknown_trajectory_is_not_found(tmp_path):
    with recording(tmp_path) as client:
        for path, body in (("steps", step()), ("end", end()), ("abandon", {"reason": "no"})):
            answer = client.post(f"{ALL}/nobody/{path}", json=body)
            assert answer.status_code == 404 and "POST /v1/trajectories" in answer.json()["error"]["message"]


BAD = [
    (ALL, b"{", "the body", "no JSON"),
    (ALL, b"[]", "the body", "a JSON object"),
    (ALL, b'{"agentId": NaN}', "the body", "NaN is no JSON"),
    (ALL, {"agentId": 7}, "agentId", "a text"),
    (ALL, {"agentid": "a"}, "agentid", "agentId"),
    (ALL, {"agentId": "a", "trajectoryId": "a/b"}, "trajectoryId", "letters"),
    (ALL, {"agentId": "a", "windowId": "2025-01-15T10:30"}, "windowId", "off the hour"),
    (ALL, {"agentId": "a", "startTime": "yesterday"}, "startTime", "RFC3339"),
    (ALL, b'{"agentId": "a\\u0000"}', "agentId", "NUL"),
    (ALL, b'{"agentId": "a", "metadata": {"x": "\\ud800"}}', "metadata", "no file can hold"),
    (f"{ONE}/steps", {"stepNumber": 0}, "action", "an object"),
    (f"{ONE}/steps", step(-1), "stepNumber", "at least 0"),
    (f"{ONE}/steps", step(0, action={"actionType": "hold", "parameters": {}}), "action.success", "true or false"),
    (f"{ONE}/steps", step(0, environmentState={"agentPnL": "3"}), "environmentState.agentPnL", "a number"),
    (f"{ONE}/steps", step(0, llmCalls=[{"callId": "c", "porpose": "x"}]), "llmCalls[0].porpose", "purpose"),
    (f"{ONE}/steps", step(0, llmCalls=[{"model": "m", "response": "r"}]), "llmCalls[0].maxTokens", "a whole number"),
    (f"{ONE}/steps", step(0, callIds="c"), "callIds", "a list"),
    (f"{ONE}/steps", step(0, callIds=["\ud800"]), "callIds", "surrogate"),
    (f"{ONE}/end", {"endTime": "2024-01-01T00:00:00Z"}, "endTime", "after it"),
    (f"{ONE}/end", {"finalPnl": 3.0}, "finalPnl", "finalPnL"),
    (f"{ONE}/abandon", {}, "reason", "a text"),
]  # fmt: skip


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    with recording(tmp_path_factory.mktemp("strict")) as client:
        assert client.post(ALL, json=start()).is_success
        yield client


@pytest.mark.parametrize(("path", "body", "parameter", "said"), BAD)
def test_what_is_wrong_is_told_with_its_place(strict, path, body, parameter, said):
    answer = strict.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == parameter
    assert said in error["message"] and error["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(tmp_path):
    with recording(tmp_path, most_bytes=1000) as client:
        answer = client.post(ALL, json=start(metadata={"x": "y" * 2000}))
    assert answer.status_code == 413 and events(tmp_path) == []


def test_what_cannot_be_written_is_told_and_may_be_sent_again(tmp_path):
    answers = iter([SpoolError("No space left on device"), None])

    async def append(event):
        if (error := next(answers)) is not None:
            raise error

    with recording(tmp_path, append=append) as client:
        first, second = (client.post(ALL, json=start()) for _ in range(2))
    assert first.status_code == 503 and "No space left" in first.json()["error"]["message"]
    assert second.status_code == 201


def test_an_answer_waits_for_the_disk_and_the_same_request_meanwhile_for_it(tmp_path):
    """Two equal steps at once: one event, and neither is answered before it is kept."""
    kept, may_go = [], asyncio.Event()

    async def append(event):
        if isinstance(event, StepEvent):
            await may_go.wait()
        kept.append(event)

    async def play():
        application = Starlette(routes=trajectory_routes(authenticate, append, tmp_path))
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers={"Authorization": "Bearer any"}
        ) as client:
            assert (await client.post(ALL, json=start())).is_success
            asked = [asyncio.create_task(client.post(f"{ONE}/steps", json=step())) for _ in range(2)]
            done, _ = await asyncio.wait(asked, timeout=0.05)
            assert not done
            may_go.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(play()) == [201, 201] and len(kept) == 2


def test_what_is_known_outlives_the_segments_that_said_it(tmp_path):
    """As the shipper deletes them: kept first, so that no moment is without it."""
    with recording(tmp_path) as client:
        assert client.post(ALL, json=start()).is_success
        assert client.post(f"{ONE}/steps", json=step()).is_success
        assert client.post(ALL, json=start("t2")).is_success
        assert client.post(f"{ALL}/t2/end", json=end()).is_success
    before = load_known(tmp_path).all()
    spool = tmp_path / SPOOL
    leaving = segments(spool)
    keep_known(tmp_path, leaving)
    assert load_known(tmp_path).all() == before  # kept and still there
    for segment in leaving:
        segment_file(spool, segment).unlink()
    assert load_known(tmp_path).all() == before
    with recording(tmp_path) as client:
        assert client.post(f"{ONE}/steps", json=step()).status_code == 201
        assert client.post(f"{ONE}/steps", json=step(reward=2.0)).status_code == 409
        assert client.post(f"{ALL}/t2/end", json=end()).status_code == 200
    assert events(tmp_path) == []


def test_what_is_shipped_and_deleted_while_a_gateway_starts_is_known_all_the_same(tmp_path, monkeypatch):
    with recording(tmp_path) as client:
        assert client.post(ALL, json=start()).is_success
    before, read = load_known(tmp_path).all(), known_module._kept

    def shipped_meanwhile(folder):
        found = read(folder)
        monkeypatch.setattr(known_module, "_kept", read)
        leaving = segments(folder / SPOOL)
        keep_known(folder, leaving)
        for segment in leaving:
            segment_file(folder / SPOOL, segment).unlink()
        return found

    monkeypatch.setattr(known_module, "_kept", shipped_meanwhile)
    assert before and load_known(tmp_path).all() == before


def test_a_torn_line_and_lines_of_calls_are_passed_over_when_a_gateway_starts(tmp_path):
    async def write():
        spool = Spool(tmp_path / SPOOL).open()
        await spool.append(call_event("c1"))
        await spool.append(StartEvent(trajectory_id="t1", key_id="k", agent_id="a", body={}, at=1.0))
        spool.close()

    asyncio.run(write())
    [segment] = segments(tmp_path / SPOOL)
    with segment_file(tmp_path / SPOOL, segment).open("ab") as file:
        file.write(b'{"type":"abandon","trajectory_id":"t1","reas')
    known = load_known(tmp_path)
    assert known.open_count == 1 and known.get("t1").start_time == 1000


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(known_module, "MOST_OPEN", 3)
    monkeypatch.setattr(known_module, "MOST_CLOSED", 2)
    known = Known()
    for number in range(3):
        known.apply(StartEvent(trajectory_id=f"t{number}", key_id="k", agent_id="a", body={}, at=float(number)))
    assert not known.has_room(now=100.0) and known.has_room(now=24 * 3600 + 1.5)
    assert known.get("t0") is None and known.get("t1") is None and known.open_count == 1
    for number in range(10, 14):
        name = f"t{number}"
        known.apply(StartEvent(trajectory_id=name, key_id="k", agent_id="a", body={}, at=1.0))
        known.apply(AbandonEvent(trajectory_id=name, reason="r", at=2.0))
    assert set(known.all()) == {"t12", "t13", "t2"}


def test_the_routes_import_nothing_heavy():
    code = (
        "import sys, babylon_rl.serving.gateway.trajectories as t; "
        "print([m for m in ('pandas','numpy','sqlalchemy','torch','dagster','psycopg') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
