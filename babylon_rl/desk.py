"""The operator's desk: Dagster's webserver and daemon as processes under this one, from a free port to a clean end.

Each of the two leads a session of its own, so that Ctrl-C reaches only this process, which ends them in order, and so
that everything they start (code servers, runs, the trainer) can be found and ended with them.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from babylon_rl.errors import DeskError
from babylon_rl.materializing import dagster_environment
from babylon_rl.serving.lifetime import ended_by_signals
from babylon_rl.settings import REPOSITORY, Settings

HOST = "127.0.0.1"
FIRST_PORT = 3000
PORTS = 100  # tried from the first one on
START_SECONDS = 180.0
SERVICES_END_SECONDS = 20.0
RUNS_END_SECONDS = 15.0
LOG_BYTES = 10_000_000

STATE = """{
  workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
    __typename ... on PythonError { message } } } } ... on PythonError { message } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""


@dataclass(frozen=True)
class Service:
    """One of the two processes, its session, and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def session(self) -> list[psutil.Process]:
        """Everything that it started and that still lives, itself included, also after its own end."""
        return [process for process in psutil.process_iter() if _session_of(process.pid) == self.process.pid]


def desk_environment(settings: Settings, sensors: bool = True, home: Path | None = None) -> dict[str, str]:
    """Environment of the two processes; sensors are on unless the user has set otherwise or `sensors` is False."""
    values = dict(os.environ) | dagster_environment(settings, home)
    # They do not start in the checkout, where Dagster would read a file named .env.
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), values.get("PYTHONPATH")]))
    values["PYTHONUNBUFFERED"] = "1"
    for name, url in (("BABYLON_RL_DATABASE_URL", settings.database_url), ("DATABASE_URL", settings.application_url)):
        values[name] = "" if url is None else url.get_secret_value()
    wanted = settings.sensors if "sensors" in settings.model_fields_set else "on"
    values["BABYLON_RL_SENSORS"] = wanted if sensors else "off"
    return values


def open_desk(
    environment: Mapping[str, str],
    folder: Path,
    port: int | None,
    say: Callable[[str], None],
    workspace: Path = REPOSITORY / "workspace.yaml",
) -> None:
    """Run webserver and daemon until Ctrl-C, SIGTERM or the terminal's end; logs and lock lie in `folder`.

    DeskError where the port is taken, a desk is open already, the definitions do not load or a process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    services: list[Service] = []
    with ended_by_signals(), _only_one(folder) as lock:
        port = free_port(port)
        url = f"http://{HOST}:{port}"
        try:
            say("Dagster starts: webserver and daemon …")
            for name, command in _commands(port, workspace):
                services.append(_start(name, command, environment, folder, lock))
            _note(lock, url, services)
            _await_ready(url, services)
            say(f"Dagster: {url} (webserver and daemon; sensors {environment.get('BABYLON_RL_SENSORS', 'off')})")
            say(f"Logs: {folder}/*.log. Ctrl-C ends both, and the runs in progress.")
            while True:
                _raise_if_ended(services)
                time.sleep(0.5)
        except KeyboardInterrupt:
            say("Dagster ends …")
        finally:
            interrupted = end(services)
    tried_again = f" Interrupted runs: {interrupted}; they are tried again when it is open next." if interrupted else ""
    say(f"Dagster is down.{tried_again}")


def free_port(wanted: int | None) -> int:
    """The port that was asked for, else the first free one from 3000 on; DeskError where there is none."""
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket() as probe:
            # As the webserver binds: a port whose last connections are still being closed is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    if wanted:
        raise DeskError(
            f"Port {wanted} is taken. Choose another with --port, or leave --port out: the first free one is taken."
        )
    raise DeskError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free. Name one with --port.")


def end(services: list[Service]) -> int:
    """End the services and all that they started, gently first; how many runs were in progress.

    A second Ctrl-C ends the patience at once.
    """
    runs = 0
    try:
        for service in services:
            _signal([psutil.Process(service.process.pid)] if service.process.poll() is None else [])
        for service in services:
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.process.wait(SERVICES_END_SECONDS)
        # Their code servers wait for the runs in progress, whose steps an interrupt ends.
        left = _everything(services)
        runs = sum(_is_run(process) for process in left)
        _signal(left)
        psutil.wait_procs(left, timeout=RUNS_END_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        while left := _everything(services):
            _signal(left, signal.SIGKILL)
            psutil.wait_procs(left, timeout=1)
        for service in services:
            service.process.wait()
    return runs


# --- processes -------------------------------------------------------------------------------------


def _commands(port: int, workspace: Path) -> Iterator[tuple[str, list[str]]]:
    options = ["-w", str(workspace.absolute())]
    yield "webserver", [sys.executable, "-m", "dagster_webserver", "-h", HOST, "-p", str(port), *options]
    yield "daemon", [sys.executable, "-m", "dagster._daemon", "run", *options]


def _start(name: str, command: list[str], environment: Mapping[str, str], folder: Path, lock: int) -> Service:
    log = folder / f"{name}.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    return Service(name, process, log)


def _raise_if_ended(services: list[Service]) -> None:
    for service in services:
        if (code := service.process.poll()) is not None:
            lines = service.log.read_text(errors="replace").splitlines()[-12:]
            raise DeskError(
                f"Dagster's {service.name} has ended (exit code {code}). The end of {service.log}:\n" + "\n".join(lines)
            )


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _everything(services: list[Service]) -> list[psutil.Process]:
    return [
        process
        for service in services
        for process in service.session()
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def _is_run(process: psutil.Process) -> bool:
    """Whether it is a run: the code server starts each as a process of Python's multiprocessing."""
    with contextlib.suppress(psutil.Error):
        return any("spawn_main" in argument for argument in process.cmdline())
    return False


def _signal(processes: list[psutil.Process], number: signal.Signals = signal.SIGTERM) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# --- waiting ---------------------------------------------------------------------------------------


def _await_ready(url: str, services: list[Service]) -> None:
    """Until the definitions are loaded and every daemon has given a sign of life."""
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < deadline:
            _raise_if_ended(services)
            if _is_ready(client, url):
                return
            time.sleep(0.3)
    raise DeskError(f"Dagster is not ready after {START_SECONDS:.0f} s. Its logs: {services[0].log.parent}/*.log")


def _is_ready(client: httpx.Client, url: str) -> bool:
    try:
        answer = client.post(f"{url}/graphql", json={"query": STATE})
        answer.raise_for_status()
    except httpx.HTTPError:
        return False
    state: dict[str, Any] = answer.json()["data"]
    locations = state["workspaceOrError"].get("locationEntries", [])
    for location in locations:
        loaded = location["locationOrLoadError"]
        if loaded and loaded["__typename"] == "PythonError":
            raise DeskError(f"The definitions of {location['name']} do not load: {loaded['message'].strip()}")
    daemons = state["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(location["locationOrLoadError"] for location in locations) and all(
        daemon["healthy"] for daemon in daemons if daemon["required"]
    )


# --- one desk at a time ----------------------------------------------------------------------------


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Descriptor of the desk's lock. Both processes inherit it, so that two daemons never share a storage."""
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DeskError(f"Dagster is open already: {path.read_text().strip()}") from None
    os.truncate(descriptor, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _note(lock: int, url: str, services: list[Service]) -> None:
    """What another start is told."""
    pids = " ".join(str(pid) for pid in [os.getpid(), *(service.process.pid for service in services)])
    os.pwrite(lock, f"{url}. Ctrl-C in its terminal ends it, or: kill {pids}\n".encode(), 0)
