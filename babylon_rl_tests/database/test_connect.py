"""Connections are in UTC, one transaction each, and say what to do when they fail."""

from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from babylon_rl.database.connect import Database, open_database
from babylon_rl.database.migrate import migrate
from babylon_rl.database.urls import database_name
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings
from babylon_rl_tests.application import make_application


def test_sessions_are_in_utc_through_either_door(database):
    with database.connect() as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    with database.engine().connect() as connection:
        assert connection.scalar(sa.text("SHOW timezone")) == "UTC"


@pytest.mark.parametrize("pooler", ["", "&pgbouncer=true"])
def test_a_databases_own_spelling_of_times_and_texts_is_not_ours(database, pooler):
    name = database_name(database.url)
    with psycopg.connect(database.url, autocommit=True) as connection:
        for setting in ("datestyle = 'German'", "client_encoding = 'SQL_ASCII'", "extra_float_digits = -5"):
            connection.execute(f"ALTER DATABASE {name} SET {setting}")
    query = "SELECT '2025-01-15 10:00+00'::timestamptz, 'é'::text, 0.1::float8 + 0.2::float8"
    read = (datetime(2025, 1, 15, 10, tzinfo=UTC), "é", 0.1 + 0.2)
    opened = Database(f"{database.url}{pooler}", embedded=False)
    with opened.connect() as connection:
        assert connection.execute(query).fetchone() == read
    with opened.engine().connect() as connection:
        assert connection.execute(sa.text(query)).one() == read
    opened.engine().dispose()


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


# --- the application's database --------------------------------------------------------------------


@pytest.fixture
def application(new_database):
    return make_application(new_database)


@pytest.fixture
def beside(application, database) -> Database:
    """Our database, and the application's as a role that may only read there."""
    reader = application.reader(f"reader_of_{database_name(application.owner.url)}")
    return Database(database.url, embedded=False, application_url=reader)


def test_a_role_without_select_is_told_whose_grant_it_takes_and_in_which_database(application, beside):
    application.sql("REVOKE SELECT ON {schema}.trajectories FROM {role}", role=role_of(beside))
    for opened in (beside.connect_application, beside.recordings):
        with pytest.raises(DatabaseError, match="permission denied for table trajectories") as refused, opened() as got:
            (got if isinstance(got, psycopg.Connection) else got.application).execute("SELECT FROM trajectories")
        said = str(refused.value)
        assert f"/{database_name(application.owner.url)}?" in said and f'TO "{role_of(beside)}"' in said
        assert 'GRANT USAGE ON SCHEMA "game"' in said


@pytest.mark.parametrize(
    "statement", ["DROP TABLE {schema}.trajectories CASCADE", "REVOKE USAGE ON SCHEMA {schema} FROM {role}"]
)
def test_a_table_that_is_not_there_is_told_with_where_it_was_looked_for(application, beside, statement):
    application.sql(statement, role=role_of(beside))
    with pytest.raises(DatabaseError, match='in schema "game"') as missing:
        with beside.connect() as ours, beside.recordings_beside(ours) as recordings:
            recordings.application.execute("SELECT FROM trajectories")
    assert database_name(application.owner.url) in str(missing.value) and "USAGE" in str(missing.value)


def test_what_is_missing_in_our_database_is_not_laid_to_the_applications(application, new_database, beside):
    empty = Database(new_database().url, embedded=False, application_url=beside.application_url)
    with pytest.raises(DatabaseError, match="Run `babylon-rl db migrate`") as missing:
        with empty.connect() as ours, empty.recordings_beside(ours) as recordings:
            recordings.ours.execute("SELECT FROM babylon_rl.trajectories")
    assert database_name(empty.url) in str(missing.value)
    one = Database(empty.url, embedded=False)
    with pytest.raises(DatabaseError, match="with-application-tables"), one.recordings() as recordings:
        recordings.application.execute('SELECT FROM "StockPrice"')


def test_an_unreachable_application_is_named_without_its_password(database):
    url = "postgres://user:secret@127.0.0.1:1/game?schema=game&sslpassword=secret2"
    settings = Settings(database_url=SecretStr(database.url), application_url=SecretStr(url))
    with pytest.raises(DatabaseError, match="The application's database .*DATABASE_URL") as failed:
        with open_database(settings).recordings():
            pass
    assert "secret" not in str(failed.value)
    with pytest.raises(DatabaseError, match="sslidentity"), Database(f"{url}&sslidentity=a.p12", False).connect():
        pass


def test_an_application_that_may_only_be_read_leaves_our_tables_on_the_embedded_server(application, server):
    reader = application.reader(f"reader_of_{database_name(application.owner.url)}")
    settings = Settings(application_url=SecretStr(reader), database_home=server.home)
    assert open_database(settings) == Database(server.url("babylon"), embedded=True, application_url=reader)
    # A schema of that name that is somebody else's is none of ours.
    application.sql("CREATE SCHEMA babylon_rl")
    assert open_database(settings).application_url == reader
    both = Settings(application_url=SecretStr(reader), database_url=SecretStr(reader))
    assert open_database(both) == Database(reader, embedded=False)


def test_the_application_is_read_in_one_snapshot_and_never_written(application, beside):
    with beside.recordings() as recordings:
        assert recordings.application.execute('SELECT count(*) FROM "User"').fetchone() == (0,)
        application.sql("""INSERT INTO {schema}."User" (id, "updatedAt") VALUES ('late', now())""")
        assert recordings.application.execute('SELECT count(*) FROM "User"').fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), recordings.savepoint():
            recordings.application.execute('DELETE FROM "User"')


def test_through_a_pooler_nothing_outlives_a_transaction(application, beside, database):
    """What a session kept would be another client's, and what it prepared would be missing on the next server."""
    pooled = Database(f"{database.url}&schema=game&pgbouncer=true", embedded=False)
    kept = "SELECT current_setting('TimeZone'), current_setting('search_path')"
    with beside.connect_application() as theirs, pooled.connect() as ours:
        for connection in (theirs, ours):
            for _ in range(8):
                assert connection.execute(kept).fetchone() == ("UTC", '"game"')
            assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            connection.commit()
            assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
    with pooled.engine().connect() as connection:
        assert connection.execute(sa.text(kept)).one() == ("UTC", '"game"')
        connection.rollback()
        assert connection.connection.driver_connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
    pooled.engine().dispose()


def test_through_a_pooler_nothing_is_migrated(database, new_database):
    migrate(Database(f"{database.url}&pgbouncer=true", embedded=False))
    empty = new_database()
    with pytest.raises(DatabaseError, match="not migrated through a pooler"):
        migrate(Database(f"{empty.url}&pgbouncer=true", embedded=False))
    assert "babylon_rl" not in sa.inspect(empty.engine()).get_schema_names()


def test_the_schema_of_the_url_holds_the_recordings_in_one_database_too(application):
    with application.owner.recordings() as recordings:
        assert recordings.application is recordings.ours
        assert recordings.application.execute("SELECT count(*) FROM trajectories").fetchone() == (0,)


def role_of(database: Database) -> str:
    return make_url(database.application_url).username
