"""Connections are in UTC, one transaction each, and say what to do when they fail."""

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from babylon_rl.database.connect import Database, open_database
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings


def test_sessions_are_in_utc_through_either_door(database):
    with database.connect() as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    with database.engine().connect() as connection:
        assert connection.scalar(sa.text("SHOW timezone")) == "UTC"


def test_the_settings_url_is_opened_as_an_external_database(database):
    opened = open_database(Settings(database_url=SecretStr(database.url)))
    assert not opened.embedded
    with opened.connect() as connection:
        assert connection.execute("SELECT count(*) FROM babylon_rl.windows").fetchone() == (0,)


def test_without_a_url_the_embedded_server_is_opened(server):
    opened = open_database(Settings(database_home=server.home))
    assert opened == Database(server.url("babylon"), embedded=True)


def test_an_unreachable_database_is_named_without_its_password():
    url = "postgresql://user:secret@127.0.0.1:1/name"
    with pytest.raises(DatabaseError, match="cannot be reached") as failed:
        open_database(Settings(database_url=SecretStr(url)))
    assert "secret" not in str(failed.value) and "BABYLON_RL_DATABASE_URL" in str(failed.value)
    assert "secret" not in repr(Database(url, embedded=False))


def test_a_missing_schema_says_to_migrate(new_database):
    with pytest.raises(DatabaseError, match="babylon-rl db migrate"), new_database().connect() as connection:
        connection.execute("SELECT * FROM babylon_rl.windows")


def test_an_error_inside_rolls_back(database):
    with pytest.raises(RuntimeError), database.connect() as connection:
        connection.execute("CREATE TABLE made (a int)")
        raise RuntimeError
    assert "made" not in sa.inspect(database.engine()).get_table_names()
