"""The shipper under kills and without PostgreSQL: nothing is lost, nothing is there twice, nothing differs."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer
from babylon_rl.database.migrate import migrate
from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway import shipper
from babylon_rl.serving.gateway.events import CallEvent, EndEvent, Event, StartEvent, StepEvent
from babylon_rl.serving.gateway.files import SPOOL
from babylon_rl.serving.gateway.said import said_step
from babylon_rl.serving.gateway.shipper import read_status, refused_lines, ship, ship_until, waiting_bytes
from babylon_rl.serving.gateway.spool import Spool
from babylon_rl_tests.serving.gateway.agents import call_event, end, start, step

CALLS, KILLS, SEED = 300, 25, 0
# Of a row of gateway_calls, what tells one event from another.
COMPARED = ("call_id", "request", "response", "token_ids", "logprobs", "sampling", "trajectory_id", "step_number")


def session(numbers: range) -> list[Event]:
    """Calls, some of them of trajectories that start, step and end between them; all of them differ."""
    events: list[Event] = []
    for number in numbers:
        name = f"t{number // 10}"
        if number % 10 == 0:
            body = start(name)
            events.append(StartEvent(trajectory_id=name, key_id="k", agent_id="agent-1", body=body, at=1.0))
        events.append(call_event(
            f"c{number}", request=call_event("c").request.replace("News", f"News {number}"),
            token_ids=[number, 8], trajectory_id=name, step_number=number % 10,
        ))  # fmt: skip
        said = said_step(step(number % 10))
        events.append(StepEvent(trajectory_id=name, step_number=said.number, content=said.content, call_ids=[], at=2.0))
        if number % 10 == 9:
            events.append(EndEvent(trajectory_id=name, body=end(), at=3.0))
    return events


def append(spool: Spool, events: list[Event], group: int = 50, pause: float = 0.0) -> None:
    """Bring the events to disk, some at a time."""

    async def write() -> None:
        for first in range(0, len(events), group):
            await asyncio.gather(*(spool.append(event) for event in events[first : first + group]))
            await asyncio.sleep(pause)

    asyncio.run(write())


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Spool]:
    spool = Spool(folder / SPOOL, segment_bytes=60_000).open()
    yield spool
    spool.close()


def assert_all_there_once(database: Database, folder: Path, events: list[Event]) -> None:
    """Each call is a row that equals it, and each ended trajectory is recorded with all its calls."""
    calls = {event.call_id: event for event in events if isinstance(event, CallEvent)}
    names = sorted(event.trajectory_id for event in events if isinstance(event, EndEvent))
    with database.connect() as connection:
        found = connection.execute(
            "SELECT call_id, request, response, token_ids, logprobs, sampling, trajectory_id, step_number "
            "FROM babylon_rl.gateway_calls"
        ).fetchall()
        recorded = connection.execute('SELECT "trajectoryId" FROM babylon_rl.trajectories ORDER BY 1').fetchall()
        tokens = connection.execute("SELECT token_ids[1] FROM babylon_rl.recorded_calls").fetchall()
        open_ones = connection.execute(
            "SELECT count(*) FROM babylon_rl.gateway_trajectories WHERE state <> 'ended'"
        ).fetchone()
    assert len(found) == len(calls)
    for row in found:
        assert row == tuple(getattr(calls[row[0]], name) for name in COMPARED)
    assert [name for (name,) in recorded] == names and open_ones == (0,)
    assert sorted(token for (token,) in tokens) == sorted(event.token_ids[0] for event in calls.values())
    assert refused_lines(folder) == [] and waiting_bytes(folder) == 0


def forked_shipper(database: Database, folder: Path) -> int:
    """A shipper in a process of its own, which costs no imports; its id."""
    child = os.fork()
    if child:
        return child
    try:
        ship_until(threading.Event(), database, folder, 60)
    finally:
        os._exit(1)


def test_a_shipper_that_is_killed_at_any_point_loses_nothing_and_doubles_nothing(database, tmp_path, monkeypatch):
    for name, value in (("BATCH_EVENTS", 7), ("POLL_SECONDS", 0.001)):
        monkeypatch.setattr(shipper, name, value)
    events, chance, kills, progress = session(range(CALLS)), random.Random(SEED), 0, set()
    with opened(tmp_path) as spool:
        writing = threading.Thread(target=append, args=(spool, events), kwargs={"group": 6, "pause": 0.005})
        writing.start()
        while writing.is_alive() or kills < KILLS:
            child = forked_shipper(database, tmp_path)
            time.sleep(chance.uniform(0.005, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            progress.add(waiting_bytes(tmp_path))
        writing.join()
    assert kills >= KILLS and len(progress) > 5  # it was killed in the midst of its work
    ship(database, tmp_path)
    assert_all_there_once(database, tmp_path, events)


@pytest.fixture
def own_server(open_folder):
    """A server of the test's own, which it may stop."""
    server = EmbeddedServer(open_folder / "stopped")
    server.up()
    yield server
    server.down()


def test_a_shipper_waits_for_postgresql_says_so_once_and_goes_on(own_server, tmp_path):
    database = Database(own_server.url(APPLICATION_DATABASE), embedded=True)
    migrate(database)
    database.engine().dispose()
    events = session(range(CALLS))
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "babylon_rl.serving.gateway.shipper", "--folder", str(tmp_path), "--parent-pipe"],
            env={**os.environ, **database.variables(), "BABYLON_RL_HOME": str(tmp_path / "home")},
            stdin=subprocess.PIPE,
            stderr=output,
        )
    try:
        with opened(tmp_path) as spool:
            third = len(events) // 3
            append(spool, events[:third])
            until(lambda: rows(database) > 0)
            own_server.down()
            append(spool, events[third : 2 * third])
            until(lambda: read_status(tmp_path).error is not None)
            append(spool, events[2 * third :])
            assert waiting_bytes(tmp_path) > 0 and process.poll() is None
            own_server.up()
        until(lambda: waiting_bytes(tmp_path) == 0 and read_status(tmp_path).error is None)
        process.stdin.close()  # as its supervisor's end does
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert_all_there_once(database, tmp_path, events)
    said = log.read_text()
    assert said.count("cannot be written") == 1 and said.count("are written again") == 1
    assert read_status(tmp_path).shipped >= len(events)


def rows(database: Database) -> int:
    with database.connect() as connection:
        return connection.execute("SELECT count(*) FROM babylon_rl.gateway_calls").fetchone()[0]


def until(holds, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_shippers_of_a_folder_one_ships(database, tmp_path, monkeypatch):
    ended = threading.Event()
    first = threading.Thread(target=ship_until, args=(ended, database, tmp_path, 60))
    first.start()
    until(lambda: read_status(tmp_path) is not None)
    monkeypatch.setattr(shipper, "PATIENCE_SECONDS", 0.1)
    try:
        with pytest.raises(ServingError, match="Another shipper"):
            ship_until(ended, database, tmp_path, 60)
    finally:
        ended.set()
        first.join()


def test_what_a_status_says_names_no_secret(tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(shipper, "FIRST_PAUSE", 0.01)
    away = Database("postgresql://nobody:hidden@127.0.0.1:1/none", embedded=False)
    with opened(tmp_path) as spool:
        append(spool, session(range(1)))
    waiting = threading.Thread(target=ship_until, args=(ended, away, tmp_path, 60))
    waiting.start()
    until(lambda: (status := read_status(tmp_path)) is not None and status.error is not None)
    ended.set()
    waiting.join()
    status = read_status(tmp_path)
    assert "cannot be reached" in status.error and "hidden" not in (tmp_path / "shipper.json").read_text()
    assert status.waiting_bytes > 0 and status.failing_since is not None
