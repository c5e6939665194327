"""`babylon-rl serve` as its user meets it: a real process from its first line to Ctrl-C, and its mistakes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from babylon_rl.serving.gateway.files import SPOOL
from babylon_rl.serving.supervision import Serving
from babylon_rl_tests.serving.gateway.stand_in import Upstream, wait_until

ASK = {"messages": [{"role": "user", "content": "BUY or SELL?"}], "max_tokens": 2}


@pytest.fixture
def home(tiny: Path, tmp_path: Path) -> Path:
    """A home folder that holds the tiny model."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-0").symlink_to(tiny)
    return tmp_path


@pytest.fixture
def started(home: Path, database) -> Iterator[subprocess.Popen]:
    """The command in a process of its own, before a service that answers."""
    with Upstream().running() as service:
        yield from _started(home, database, f"http://127.0.0.1:{service.port}/v1")


def _started(home: Path, database, service: str) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "BABYLON_RL_HOME": str(home), "BABYLON_RL_UPSTREAM_URL": service}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "babylon_rl.cli", "serve", "--port", "0", "--model", "tiny", "--json"]
        + ["--database", database.url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_it_tells_how_to_call_it_answers_records_and_ends_cleanly(started, database, home, run):
    assert started.stdout is not None
    told = json.loads(started.stdout.readline() or started.communicate()[1])
    assert told["served"] == "tiny" and told["key"].startswith("brl_") and told["candidate"] is None
    url, headers = f"{told['base_url']}/chat/completions", {"Authorization": f"Bearer {told['key']}"}
    assert httpx.post(url, json=ASK).status_code == 401
    answer = httpx.post(url, json=ASK, headers={**headers, "Idempotency-Key": "first"}, timeout=60)
    assert answer.status_code == 200 and answer.headers["x-babylon-arm"] == "base", answer.text

    def told_status() -> dict:
        return json.loads(run("serve", "--status", "--json", "--database", database.url).stdout)

    wait_until(lambda: "promoted" in told_status()["served"])  # what is served is booked right after it is said
    status = told_status()
    assert status["gateway"]["status"] == "ok" and status["served"]["promoted"]["checkpoint"] == "tiny"
    assert status["gaps"] == {"gaps": 0, "calls": 0} and status["refused"] == []
    twice = run("serve", "--port", "0", "--model", "tiny", "--database", database.url)
    assert twice.returncode == 1 and "served already: " + told["base_url"].removesuffix("/v1") in twice.stderr
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 0, said
    assert "Serving has ended." in said and "wait in" not in said
    with database.connect() as connection:
        calls = connection.execute("SELECT request_id, status FROM babylon_rl.gateway_calls").fetchall()
        rows = connection.execute("SELECT state FROM babylon_rl.deployments ORDER BY deployment_id").fetchall()
        keys = connection.execute("SELECT name FROM babylon_rl.gateway_keys").fetchall()
    assert calls == [("first", 200)] and rows == [("served",), ("withdrawn",)] and keys == [("first",)]
    assert list((home / "gateway" / SPOOL).glob("*.jsonl"))
    with pytest.raises(httpx.HTTPError):
        httpx.get(told["base_url"], timeout=2)
    status = run("serve", "--status", "--database", database.url).stdout
    assert "No gateway of this home folder answers." in status and "promoted:" not in status


def test_a_port_that_is_taken_is_said_before_anything_is_started(run, database, home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port, "--model", "tiny", "--database", database.url)
    assert done.returncode == 1 and f"Port {port} cannot be used" in done.stderr


def test_what_is_served_against_promotions_and_to_everyone_is_said_loudly(run, database, home, monkeypatch):
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Serving, "__init__", refuse)
    done = run("serve", "--checkpoint", "base", "--open", "--model", "tiny", "--database", database.url)
    assert "ATTENTION: base is served whatever was promoted" in done.stdout
    assert "ATTENTION: open." in done.stdout
