"""`babylon-rl serve`: gateway, shipper and deployer as one, from the first line that is printed to a clean end.

Each process ends when this one does, however that happens, and is started again when it ends by itself.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from babylon_rl.database.connect import Database
from babylon_rl.errors import BabylonError, ServingError
from babylon_rl.serving.deployer import Deployer, Pace
from babylon_rl.serving.finding import BaseFolder, upstream_key
from babylon_rl.serving.gateway.files import write_keys
from babylon_rl.serving.gateway.keys import Key, open_key
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.process import running_gateway
from babylon_rl.serving.key_store import create_key, load_keys
from babylon_rl.serving.lifetime import ended_by_signals, free_port
from babylon_rl.serving.shipping import await_shipped, running_shipper
from babylon_rl.settings import Settings, without_user

HOST = "127.0.0.1"
LOOK_SECONDS = 0.1
LONGEST_PAUSE = 30.0
SHIP_SECONDS = 10.0  # that the end waits for what is spooled to reach PostgreSQL
LOCK = "serve.lock"

Say = Callable[[str], None]


class Kept:
    """A process that is started again when it ends; at once the first time, then after longer and longer pauses.

    `start`: gives a context whose value has the `process`.
    """

    def __init__(self, name: str, start: Callable[[], contextlib.AbstractContextManager[Any]], say: Say) -> None:
        self.name, self.start, self.say = name, start, say
        self.restarts = 0
        self._stack = contextlib.ExitStack()
        self._began = self._again = 0.0
        self._pause = 0.0
        self.running: Any = None

    def open(self) -> Any:
        """Start it. ServingError where it does not start."""
        self._began = time.monotonic()
        self.running = self._stack.enter_context(self.start())
        return self.running

    def look(self) -> None:
        """Start it again where it has ended."""
        now = time.monotonic()
        if self.running is not None and self.running.process.poll() is not None:
            code = self.running.process.returncode
            self._pause = 0.0 if now - self._began > LONGEST_PAUSE else min(LONGEST_PAUSE, 2 * self._pause + 0.5)
            if self.restarts == 0:
                self._pause = 0.0
            self._again = now + self._pause
            self.running = None
            self._stack.close()
            self.say(f"The {self.name} has ended by itself (exit code {code}); it is started again.")
        if self.running is None and now >= self._again:
            self.restarts += 1
            try:
                self.open()
            except (BabylonError, OSError) as error:  # a full disk too: what runs goes on
                self._pause = min(LONGEST_PAUSE, 2 * self._pause + 0.5)
                self._again = time.monotonic() + self._pause
                self.say(f"The {self.name} does not start, tried again in {self._pause:.0f} s: {error}")

    def close(self) -> None:
        """End it."""
        self.running = None
        self._stack.close()


class Options(NamedTuple):
    """How it is served. `fixed`: a checkpoint, or `base`, instead of what is promoted; `open`: calls need no key."""

    port: int = 8100
    fixed: str | None = None
    open: bool = False
    pace: Pace | None = None


class Serving:
    """Gateway, shipper and deployer on a folder. `look` keeps them going; `close` ends them.

    `first_key`: the key that was made because there was none; it can be shown only now.
    """

    def __init__(
        self, database: Database, settings: Settings, options: Options, base_folder: BaseFolder, say: Say
    ) -> None:
        self.database, self.settings, self.say = database, settings, say
        self.folder = gateway_folder(settings.home)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_only_one(self.folder))
        try:
            port = options.port or free_port()
            _free(port)
            self.address = f"http://{HOST}:{port}"
            own: tuple[Key, ...] = (open_key(),) if options.open else ()
            self.first_key = None if options.open else _first_key(database)
            with database.connect() as connection:  # those of an earlier time may be revoked, or open to all
                write_keys(self.folder, [*own, *load_keys(connection)])
            limits, key = limits_of(settings), upstream_key(settings)
            self.deployer = Deployer(
                database,
                settings,
                self.folder,
                self.address,
                base_folder,
                say,
                fixed=options.fixed,
                keys=own,
                pace=options.pace,
            )
            self._stack.callback(self.deployer.close)  # after the gateway, whose last calls it answers
            self.shipper = Kept("shipper", lambda: running_shipper(self.folder, database), say)
            self.gateway = Kept("gateway", lambda: running_gateway(self.folder, port, limits, upstream_key=key), say)
            self._stack.callback(self.shipper.close)
            self._stack.callback(self._await_shipping)
            self._stack.callback(self.gateway.close)
            self.gateway.open()
            self.shipper.open()
        except BaseException:
            self._stack.close()
            raise
        _lock_says(self.folder, self.address)

    @property
    def base_url(self) -> str:
        """What agents call."""
        return f"{self.address}/v1"

    def look(self) -> None:
        """Start again what has ended, and follow what was decided. To be called a few times a second."""
        self.gateway.look()
        self.shipper.look()
        self.deployer.look()

    def answers(self) -> bool:
        """Whether agents can call: something is routed, and the gateway has read it."""
        if not (self.deployer.routes.promoted or self.deployer.routes.base):
            return False
        try:
            return httpx.get(f"{self.address}/ready", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """End the gateway, ship what is spooled, end shipper and endpoints."""
        self._stack.close()

    def _await_shipping(self) -> None:
        def stop() -> bool:
            self.shipper.look()
            return self.deployer.database_down

        if await_shipped(self.folder, SHIP_SECONDS, stop):
            self.say(f"Records wait in {self.folder}; the next start brings them to PostgreSQL.")


def serve(
    database: Database, settings: Settings, options: Options, base_folder: BaseFolder, say: Say
) -> Iterator[Serving]:
    """Serve until Ctrl-C, SIGTERM or the terminal's end; yields once, when agents can call."""
    with ended_by_signals():
        serving = Serving(database, settings, options, base_folder, say)
        try:
            told = False
            while True:
                serving.look()
                if not told and serving.answers():
                    told = True
                    yield serving
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            say("Ending: calls in flight are answered first …")
        finally:
            serving.close()
        say("Serving has ended.")


def gateway_folder(home: Path) -> Path:
    """Where the gateway's files and its spool lie."""
    return Path(home) / "gateway"


def limits_of(settings: Settings) -> GatewayLimits:
    """The gateway's limits as the settings name them."""
    return GatewayLimits(
        in_flight=settings.gateway_in_flight,
        body_bytes=int(settings.gateway_body_mb * 1_000_000),
        upstream_timeout=settings.upstream_timeout,
        request_memory_minutes=settings.request_memory_minutes,
    )


def upstream_told(settings: Settings) -> str:
    """What stands behind the gateway, in a sentence."""
    if settings.upstream_url is not None:
        return f"Calls go to {without_user(settings.upstream_url)}."
    return "Calls go to endpoints on this machine, and to the service that keeps a checkpoint's weights."


def _first_key(database: Database) -> str | None:
    """A key named `first` where the database has none that is good; None where it has one."""
    with database.connect() as connection:
        connection.execute("LOCK TABLE babylon_rl.gateway_keys IN SHARE ROW EXCLUSIVE MODE")
        if load_keys(connection):
            return None
        return create_key(connection, "first").secret


# --- one at a time, ports, signals -----------------------------------------------------------------


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two on one folder would write each other's routes."""
    with open(folder / LOCK, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServingError(
                f"This home folder is served already: {lock.read().strip() or 'it is just starting'}. End that one, or "
                "set BABYLON_RL_HOME to another folder."
            ) from None
        yield


def _lock_says(folder: Path, address: str) -> None:
    (folder / LOCK).write_text(f"{address} (process {os.getpid()})\n")


def _free(port: int) -> None:
    """ServingError where the port is taken: before a model is loaded for minutes."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServingError(
                f"Port {port} cannot be used: {error.strerror}. Name another with --port; 0 takes a free one."
            ) from None
