"""Fixtures that every test may use: a clean environment and a real PostgreSQL."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.database.migrate import migrate
from babylon_rl.settings import ALL_NAMES, get_settings

TEMPLATE = "migrated"


def pytest_configure() -> None:
    """A suite that a shell runs in the background would ignore Ctrl-C, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests take a minute or more begin first, so that no worker is left with one of them at the end.
LONGEST = ("test_loop.py", "test_learning.py", "test_daemon.py", "test_submissions.py", "test_admission.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


_names = itertools.count(1)


def of_the_user(name: str) -> bool:
    """Whether the environment variable is one that a user may have set and that would change a test."""
    return name.startswith(("BABYLON_RL_", "PG", "DAGSTER_", "OPENAI_", "WANDB_")) or name.upper() in ALL_NAMES


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, database or setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if of_the_user(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BABYLON_RL_TRACKING", "off")  # a second and a process for each update
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def _memory_folder() -> str | None:
    """Linux's folder in memory where it has room and runs programs: there a database is copied in 20 ms, not 300."""
    folder = "/dev/shm"
    if not os.access(folder, os.W_OK):
        return None
    status = os.statvfs(folder)
    roomy = status.f_bavail * status.f_frsize > 1_000_000_000
    return folder if roomy and not status.f_flag & os.ST_NOEXEC else None


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that the server's user may enter also where root runs the tests; pytest's own is private."""
    folder = Path(tempfile.mkdtemp(prefix="babylon_rl-tests-", dir=_memory_folder()))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(open_folder: Path) -> Iterator[EmbeddedServer]:
    """An embedded server of this test session."""
    server = EmbeddedServer(open_folder / "server")
    server.up()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        # The data are thrown away, so no test waits for the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.down()


@pytest.fixture(scope="session")
def _template(server: EmbeddedServer) -> str:
    server.create_database(TEMPLATE)
    database = Database(server.url(TEMPLATE), embedded=True)
    migrate(database)
    # A template with an open connection cannot be copied.
    database.engine().dispose()
    return TEMPLATE


@pytest.fixture
def new_database(server: EmbeddedServer) -> Iterator[Callable[..., Database]]:
    """Function that makes a database for this test: `new_database()` is empty, `template=` is copied."""
    made: list[tuple[str, Database]] = []

    def make(*, template: str = "template0", embedded: bool = True) -> Database:
        name = f"test_{next(_names)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        database = Database(server.url(name), embedded=embedded)
        made.append((name, database))
        return database

    yield make
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name, database in made:
            database.engine().dispose()
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(new_database: Callable[..., Database], _template: str) -> Database:
    """A fresh migrated database with the application's tables, dropped after the test."""
    return new_database(template=_template)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a freshly initialised tiny model whose tokenizer knows the simulated market's words."""
    from babylon_rl.loop import corpus
    from babylon_rl.training.base_models import TINY, prepare_base_model

    return prepare_base_model(TINY, tmp_path_factory.mktemp("home"), 0, corpus(40))


@pytest.fixture
def policy(tiny: Path):
    """A policy on the tiny model, on one thread."""
    from babylon_rl.training.policy import Policy, use_threads

    use_threads(1)
    return Policy(tiny)
