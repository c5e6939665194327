"""Two arms whose past was played once for all tests of a session."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl_tests.evaluation.two_arms import TwoArms

PLAYED = "two_arms_played"


@pytest.fixture(scope="session")
def _two_arms_played(server: EmbeddedServer, _template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        connection.execute(query.format(sql.Identifier(PLAYED), sql.Identifier(_template)))
    database = Database(server.url(PLAYED), embedded=True)
    made = TwoArms(database)
    made.train(tmp_path_factory.mktemp("weights"))
    made.play_past()
    # A template with an open connection cannot be copied.
    database.engine().dispose()
    yield PLAYED


@pytest.fixture
def arms(new_database: Callable[..., Database], _two_arms_played: str) -> TwoArms:
    """Two arms, and a day that the baseline answered, in a database of this test."""
    return TwoArms(new_database(template=_two_arms_played))
