"""Models and migrations agree, and nobody else's tables are touched."""

import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.connect import Database
from babylon_rl.database.migrate import alembic_config, migrate
from babylon_rl.database.tables import SCHEMA, metadata
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import REPOSITORY

CONSTRAINTS = sa.text(
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(c.oid) FROM pg_constraint c "
    "JOIN pg_namespace n ON n.oid = connamespace "
    "WHERE nspname = 'babylon_rl' AND conrelid IS DISTINCT FROM to_regclass('babylon_rl.alembic_version') ORDER BY 1, 2"
)
INDEXES = sa.text(
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'babylon_rl' AND tablename <> 'alembic_version' ORDER BY 1"
)


def tables(database: Database, schema: str = "public") -> set[str]:
    return set(sa.inspect(database.engine()).get_table_names(schema=schema))


def execute(database: Database, *statements: str) -> None:
    with database.engine().begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def test_autogenerate_finds_no_difference_between_models_and_a_migrated_database(database):
    def ours(name, kind, _parents):
        return name == SCHEMA if kind == "schema" else True

    with database.engine().connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": ours,
                "version_table_schema": SCHEMA,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_constraints_and_indexes_of_the_migrations_are_those_of_the_models(database, new_database):
    from_models = new_database()
    execute(from_models, f"CREATE SCHEMA {SCHEMA}")
    metadata.create_all(from_models.engine())
    for question in (CONSTRAINTS, INDEXES):
        with database.engine().connect() as migrated, from_models.engine().connect() as made:
            assert migrated.execute(question).all() == made.execute(question).all()


def test_down_and_up_again_gives_the_same_tables(database):
    before = tables(database, SCHEMA)
    command.downgrade(alembic_config(database), "base")
    assert tables(database, SCHEMA) == {"alembic_version"}
    migrate(database)
    assert tables(database, SCHEMA) == before


def test_migrations_at_the_same_time_wait_for_each_other(new_database):
    database = new_database()
    program = (
        "import sys; from babylon_rl.database.connect import Database; "
        "from babylon_rl.database.migrate import migrate; "
        "migrate(Database(sys.argv[1], embedded=True))"
    )
    command_line = [sys.executable, "-c", program, database.url]
    running = [subprocess.Popen(command_line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in running]
    # Quiet, too: what Alembic does is not shown to a user.
    assert [(process.returncode, text) for process, text in zip(running, said, strict=True)] == [(0, "")] * 2
    assert tables(database) == set(application_metadata.tables)


def test_an_embedded_database_gets_the_applications_tables_and_a_second_migration_changes_nothing(new_database):
    database = new_database()
    migrate(database)
    assert tables(database) == set(application_metadata.tables)
    migrate(database)
    migrate(database, with_application_tables=True)
    assert tables(database) == set(application_metadata.tables)


def test_an_external_database_gets_our_schema_only_unless_asked(new_database):
    database = new_database(embedded=False)
    migrate(database)
    assert tables(database) == set()
    assert tables(database, SCHEMA) == {t.name for t in metadata.tables.values()} | {"alembic_version"}
    migrate(database, with_application_tables=True)
    assert tables(database) == set(application_metadata.tables)


@pytest.mark.parametrize("present", ["_prisma_migrations", "trajectories", "User"])
def test_application_tables_are_refused_beside_those_of_another_and_nothing_is_made(new_database, present):
    database = new_database(embedded=False)
    execute(database, f'CREATE TABLE "{present}" (id text)')
    with pytest.raises(DatabaseError, match=present if present != "_prisma_migrations" else "Prisma"):
        migrate(database, with_application_tables=True)
    assert tables(database) == {present}
    assert tables(database, SCHEMA) == set()


def test_an_existing_applications_rows_and_tables_are_left_as_they_are(new_database):
    database = new_database(embedded=False)
    execute(
        database,
        'CREATE TABLE "User" (id text primary key, "someThing" int)',
        "INSERT INTO \"User\" VALUES ('u', 7)",
        "CREATE TABLE _prisma_migrations (id text)",
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('theirs')",
    )
    migrate(database)
    with database.engine().connect() as connection:
        assert connection.execute(sa.text('SELECT * FROM "User"')).all() == [("u", 7)]
        assert connection.execute(sa.text("SELECT * FROM public.alembic_version")).all() == [("theirs",)]
    assert tables(database) == {"User", "_prisma_migrations", "alembic_version"}


def test_a_schema_that_is_not_there_is_told_and_nothing_is_made(new_database):
    database = new_database(embedded=False)
    named = Database(f"{database.url}&schema=game", embedded=False)
    with pytest.raises(DatabaseError, match='CREATE SCHEMA "game"'):
        migrate(named, with_application_tables=True)
    named.engine().dispose()
    assert tables(database, SCHEMA) == set()


def test_a_schema_of_a_newer_version_is_told_and_left(database):
    execute(database, "UPDATE babylon_rl.alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="9999.*newer"):
        migrate(database)


def test_a_role_without_rights_is_told_what_to_grant(new_database, server):
    database = new_database(embedded=False)
    name = database.url.split("?")[0].rsplit("/", 1)[1]
    execute(database, f"CREATE ROLE {name}_reader LOGIN")
    try:
        stranger = Database(server.url(name).replace("postgres@", f"{name}_reader@"), embedded=False)
        with pytest.raises(DatabaseError, match=f'GRANT CREATE ON DATABASE "{name}"'):
            migrate(stranger)
        stranger.engine().dispose()
    finally:
        execute(database, f"DROP ROLE {name}_reader")


def test_application_columns_have_prismas_types_and_defaults(database):
    question = sa.text(
        "SELECT column_name, data_type, datetime_precision, character_maximum_length, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'trajectories'"
    )
    with database.engine().connect() as connection:
        columns = {row[0]: tuple(row[1:]) for row in connection.execute(question)}
        indexes = connection.scalars(sa.text("SELECT indexname FROM pg_indexes WHERE tablename = 'trajectories'")).all()
    assert columns["startTime"] == ("timestamp without time zone", 3, None, "NO", None)
    assert columns["createdAt"] == ("timestamp without time zone", 3, None, "NO", "CURRENT_TIMESTAMP")
    assert columns["updatedAt"] == ("timestamp without time zone", 3, None, "NO", None)
    assert columns["windowId"] == ("character varying", None, 50, "YES", None)
    assert columns["windowHours"][-2:] == ("NO", "1")
    assert columns["stepsJson"] == ("text", None, None, "NO", None)
    assert columns["isTrainingData"][-2:] == ("NO", "true")
    assert {"trajectories_pkey", "trajectories_trajectoryId_key", "trajectories_agentId_startTime_idx"} <= set(indexes)
