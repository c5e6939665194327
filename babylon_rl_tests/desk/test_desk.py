"""The desk's own work, without Dagster: ports, one desk at a time, environment, and an end that leaves nothing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from babylon_rl import desk
from babylon_rl.errors import DeskError
from babylon_rl.settings import Settings

# It starts a child, in its session, that does not care for being asked to end; then both wait.
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
started.stdout.readline()
print(started.pid, flush=True)
time.sleep(600)
"""


def test_a_taken_port_is_said_and_without_one_named_another_is_found(monkeypatch):
    with socket.socket() as taken:
        taken.bind((desk.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeskError, match=f"Port {port} is taken. Choose another with --port"):
            desk.free_port(port)
        monkeypatch.setattr(desk, "FIRST_PORT", port)
        assert port < desk.free_port(None) < port + desk.PORTS
        monkeypatch.setattr(desk, "PORTS", 1)
        with pytest.raises(DeskError, match="Name one with --port"):
            desk.free_port(None)


def test_a_second_desk_is_told_where_the_first_one_is(tmp_path):
    with desk._only_one(tmp_path) as lock:
        desk._note(lock, "http://127.0.0.1:3000", [])
        with pytest.raises(DeskError, match=f"open already: http://127.0.0.1:3000.*kill {os.getpid()}"):
            desk.open_desk({}, tmp_path, None, print)
    with desk._only_one(tmp_path):
        pass


def test_the_end_takes_along_what_a_process_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "RUNS_END_SECONDS", 0.2)
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)
    child = psutil.Process(int(process.stdout.readline()))
    assert child.is_running()
    desk.end([desk.Service("stubborn", process, tmp_path / "log")])
    assert process.returncode == -signal.SIGTERM
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ends_by_itself_ends_the_desk_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(
        desk,
        "_commands",
        lambda port, workspace: [
            ("webserver", [sys.executable, "-c", "import time; time.sleep(600)"]),
            ("daemon", [sys.executable, "-c", "print('no such storage'); raise SystemExit(3)"]),
        ],
    )
    with pytest.raises(DeskError, match=r"daemon has ended \(exit code 3\)[\s\S]*no such storage"):
        desk.open_desk(dict(os.environ), tmp_path, None, lambda line: None)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("set_by_user", "sensors", "meant"),
    [({}, True, "on"), ({}, False, "off"), ({"sensors": "off"}, True, "off"), ({"sensors": "on"}, False, "off")],
)
def test_sensors_are_on_unless_somebody_says_otherwise(set_by_user, sensors, meant, monkeypatch):
    monkeypatch.setattr(desk, "dagster_environment", lambda settings, home: {"DAGSTER_HOME": "/home"})
    values = desk.desk_environment(Settings(**set_by_user), sensors)
    assert values["BABYLON_RL_SENSORS"] == meant
    assert Path(values["PYTHONPATH"].split(os.pathsep)[0], "babylon_rl").is_dir()
