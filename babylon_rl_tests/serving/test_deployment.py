"""What agents get is what was decided: gateway, shipper, deployer and endpoint as real processes over a tiny model."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from babylon_rl.database.connect import Database
from babylon_rl.serving.gateway.files import read_routes
from babylon_rl.settings import Settings
from babylon_rl_tests.serving.served import Served, book_checkpoints, served


@pytest.fixture(scope="module")
def here(server, _template, tiny: Path, tmp_path_factory) -> Iterator[Served]:
    """One gateway for this module, serving a run of three checkpoints; `run@1` is promoted."""
    name = f"served_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        connection.execute(copy.format(sql.Identifier(name), sql.Identifier(_template)))
    database = Database(server.url(name), embedded=True)
    home = tmp_path_factory.mktemp("served")
    book_checkpoints(database, tiny, home / "checkpoints", 3)
    settings = Settings(home=home, base_model="tiny", device="cpu", threads=1)
    with served(database, settings, tiny) as found:
        found.promote("run@1")
        found.await_answer("run@1")
        yield found
    database.engine().dispose()


class Load:
    """Clients that call again and again, with retries as `openai`'s clients make them; every call must be answered."""

    def __init__(self, here: Served, clients: int = 3) -> None:
        self.here, self.answered, self.failed = here, [], []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._ended.is_set():
            request = uuid.uuid4().hex
            deadline = time.monotonic() + 60
            while True:
                said = "nothing"
                try:
                    response = self.here.ask(headers={"Idempotency-Key": request})
                    if response.status_code == 200:
                        self.answered.append((request, response.headers["x-babylon-checkpoint"]))
                        break
                    said = f"{response.status_code} {response.text}"
                    if response.status_code < 500 and response.status_code not in (408, 409, 429):
                        self.failed.append(said)
                        break
                except httpx.HTTPError as error:
                    said = str(error)
                if time.monotonic() > deadline:
                    self.failed.append(said)
                    return
                time.sleep(0.1)


def settle(here: Served, checkpoint_id: str) -> None:
    here.promote(checkpoint_id)
    here.await_answer(checkpoint_id)


def test_a_promotion_under_load_is_followed_within_seconds_and_no_call_is_lost(here):
    settle(here, "run@1")
    with Load(here) as load:
        committed = here.promote("run@2")
        assert here.await_answer("run@2") - committed < 20
        time.sleep(0.5)
    assert not load.failed
    assert {name for _, name in load.answered} == {"run@1", "run@2"}
    assert here.await_booked(("promoted", "run@2", "served"))[3] == "run@2 in place of run@1"


def test_a_rollback_loads_nothing_and_takes_seconds(here):
    settle(here, "run@1")
    settle(here, "run@2")
    loaded = set(read_routes(here.serving.folder).targets)
    assert {"run@1", "run@2"} <= loaded
    with Load(here, clients=1) as load:
        committed = here.promote("run@1")
        took = here.await_answer("run@1") - committed
    assert took < 10 and not load.failed


def test_weights_that_are_not_the_trainers_are_refused_and_the_old_ones_stay(here):
    settle(here, "run@1")
    with here.database.connect() as connection:
        # The stored log-probabilities of run@3 become those of run@2: as if other weights were loaded.
        connection.execute(
            """UPDATE babylon_rl.canaries SET logprobs =
                   (SELECT logprobs FROM babylon_rl.canaries WHERE checkpoint_id = 'run@2')
               WHERE checkpoint_id = 'run@3'"""
        )
    here.promote("run@3")
    row = here.await_booked(("promoted", "run@3", "refused"))
    assert "largest difference" in row[3]
    assert here.answers() == "run@1"
    assert any(line.startswith("Refused: run@3; run@1 stays.") for line in here.said)
    assert "run@3" not in read_routes(here.serving.folder).targets
    settle(here, "run@2")


def test_what_nobody_names_is_unloaded(here):
    settle(here, "run@1")
    settle(here, "run@2")
    settle(here, "run@0")
    deadline = time.monotonic() + 20
    routes = read_routes(here.serving.folder)
    while set(routes.targets) != {"run@0", "run@2"} and time.monotonic() < deadline:
        time.sleep(0.1)
        routes = read_routes(here.serving.folder)
    assert set(routes.targets) == {"run@0", "run@2"}
    base_url = routes.promoted.base_url
    while time.monotonic() < deadline:
        listed = {entry["id"] for entry in httpx.get(f"{base_url}/models").json()["data"]}
        if listed == {"tiny", "run@2"}:
            break
        time.sleep(0.1)
    assert listed == {"tiny", "run@2"}


def test_an_experiment_splits_the_agents_only_where_its_baseline_is_served(here):
    settle(here, "run@1")
    with here.database.connect() as connection:
        connection.execute(
            """INSERT INTO babylon_rl.experiments (experiment_id, candidate, baseline, design, share, seed,
                   first_window, horizon, settings, forecast, tried, state, reason, who)
               VALUES ('e1', 'run@2', 'run@1', 'paired-by-window', 0.5, 1, '2026-01-01T00:00', 200000,
                   '{"block_hours": 6}', '{}', 1, 'running', '', 'test')"""
        )
    try:
        here.await_booked(("candidate", "run@2", "served"))
        window = {"X-Babylon-Window": "2026-01-15T10:00"}  # draws both arms among eight agents
        agents = [f"agent-{number}" for number in range(8)]
        arms = [here.ask(headers={"X-Babylon-Agent": agent, **window}).headers["x-babylon-arm"] for agent in agents]
        assert set(arms) == {"promoted", "candidate"}
        assert here.ask(headers={"X-Babylon-Agent": agents[0], **window}).headers["x-babylon-arm"] == arms[0]
        settle(here, "run@0")
        here.await_booked(("candidate", None, "withdrawn"))
        assert any("compares run@2 with run@1, and run@0 is served" in line for line in here.said)
    finally:
        with here.database.connect() as connection:
            connection.execute("UPDATE babylon_rl.experiments SET state = 'stopped', ended_at = now()")


@pytest.mark.parametrize("which", ["endpoint", "gateway"])
def test_a_killed_process_is_started_again_and_no_call_is_lost(here, which):
    settle(here, "run@1")
    with Load(here, clients=2) as load:
        time.sleep(0.3)
        if which == "gateway":
            os.kill(here.serving.gateway.running.process.pid, signal.SIGKILL)
        else:
            (running,) = here.serving.deployer.endpoints._running.values()
            os.kill(running.endpoint.process.pid, signal.SIGKILL)
        time.sleep(0.5)
        here.await_answer("run@1")
        before = len(load.answered)
        while len(load.answered) < before + 5 and not load.failed:
            time.sleep(0.05)
    assert not load.failed
    assert any(f"The {which}" in line and "ended by itself" in line for line in here.said)
    requests = [request for request, _ in load.answered]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with here.database.connect() as connection:
            rows = connection.execute(
                "SELECT request_id, count(*) FROM babylon_rl.gateway_calls WHERE request_id = ANY(%s) AND status = 200 "
                "GROUP BY 1",
                (requests,),
            ).fetchall()
        if len(rows) == len(requests):
            break
        time.sleep(0.2)
    assert sorted(rows) == sorted((request, 1) for request in requests)


def test_without_postgresql_what_is_served_stays(here, monkeypatch):
    settle(here, "run@1")
    away = Database("postgresql://nobody@127.0.0.1:1/none", embedded=False)
    monkeypatch.setattr(here.serving.deployer, "database", away)
    deadline = time.monotonic() + 20
    while not any("until PostgreSQL answers again" in line for line in here.said):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert here.answers() == "run@1"
    monkeypatch.undo()
    settle(here, "run@2")
    assert any(line.startswith("PostgreSQL is back") for line in here.said)
