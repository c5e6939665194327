"""One started instance for all tests of this folder; it works on a week's backfill from its first moment."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.database.migrate import migrate
from babylon_rl_tests.defs.ranges import record
from babylon_rl_tests.desk.started import Desk, started_desk, wait_for, write_home

WEEK = 7 * 24
AGENTS = 4


@pytest.fixture(scope="session")
def week_database(server: EmbeddedServer) -> Iterator[Database]:
    """A database with a recorded week, which the started instance works on."""
    server.create_database("week")
    database = Database(server.url("week"), embedded=True)
    migrate(database)
    yield database
    database.engine().dispose()


@pytest.fixture(scope="session")
def week(week_database: Database) -> list[str]:
    """The week's windows."""
    return record(week_database, WEEK, AGENTS)


@pytest.fixture(scope="session")
def desk(
    server: EmbeddedServer, week_database: Database, week: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """Webserver and daemon on the week's database."""
    folder: Path = tmp_path_factory.mktemp("desk")
    write_home(folder / "home")
    environment = {
        "BABYLON_RL_HOME": str(folder / "var"),
        "BABYLON_RL_DATABASE_HOME": str(server.home),
        "BABYLON_RL_DATABASE_URL": week_database.url,
        "OMP_NUM_THREADS": "1",
    }
    with started_desk(folder, environment) as desk:
        yield desk


@pytest.fixture(scope="session")
def backfill(desk: Desk, week: list[str]) -> str:
    """The week's backfill, launched; its id."""
    return desk.backfill(week)


@pytest.fixture(scope="session")
def backfilled(desk: Desk, week: list[str], backfill: str) -> str:
    """The week's backfill, finished by the daemon; its id."""
    wait_for(lambda: desk.backfill_status(backfill).startswith(("COMPLETED", "FAILED")), "the week's backfill ends")
    return backfill
