"""Bring a database to the schema of this version: ours by Alembic, the application's only where that is safe."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import sql

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.connect import Database, errors_mended
from babylon_rl.database.urls import pooled, redacted, schema_of, with_driver
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import REPOSITORY

# NULLS NOT DISTINCT, on which the current rows' unique indexes rest.
OLDEST_SERVER = 15


def migrate(database: Database, *, with_application_tables: bool | None = None) -> None:
    """Migrate schema `babylon_rl` to the newest revision; a second time changes nothing.

    with_application_tables: None makes them on the embedded server only. Elsewhere True makes them, if none of them
    is there and Prisma does not own the database. DatabaseError where they must not be made or a right is missing.
    """
    if pooled(database.url):
        _require_newest(database)
        return
    wanted = database.embedded if with_application_tables is None else with_application_tables
    with errors_mended(database.url):
        _require_server(database)
        if wanted:
            # Before anything of ours is made: a refusal leaves the database as it was.
            with database.engine().begin() as connection:
                _create_application_tables(connection, database)
        _upgrade(database)


def _upgrade(database: Database) -> None:
    try:
        command.upgrade(alembic_config(database), "head")
    except CommandError as error:
        raise DatabaseError(
            f"Schema babylon_rl in {redacted(database.url)} was left as it is ({error}): a newer version of babylon_rl "
            "made it. Use that version, or name another database in BABYLON_RL_DATABASE_URL."
        ) from None


def _require_newest(database: Database) -> None:
    """Through a pooler nothing is migrated: it does not keep a migration's lock from transaction to transaction."""
    with database.connect() as connection:
        made = connection.execute("SELECT to_regclass('babylon_rl.alembic_version') IS NOT NULL").fetchone()
        found = made == (True,) and connection.execute("SELECT version_num FROM babylon_rl.alembic_version").fetchone()
    if found != (ScriptDirectory.from_config(alembic_config(database)).get_current_head(),):
        raise DatabaseError(
            f"Schema babylon_rl in {redacted(database.url)} is missing or old, and it is not migrated through a pooler "
            "(pgbouncer=true). Run `babylon-rl db migrate --database URL` once with the server's own URL (Prisma's "
            "directUrl)."
        )


def alembic_config(database: Database) -> Config:
    """Alembic's configuration for commands run in this process on `database`."""
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "migrations").replace("%", "%%"))
    config.attributes["url"] = with_driver(database.url, "psycopg")
    return config


def _require_server(database: Database) -> None:
    with database.connect() as connection:
        version = connection.info.server_version // 10_000
    if version < OLDEST_SERVER:
        raise DatabaseError(
            f"{redacted(database.url)} is PostgreSQL {version}; babylon_rl needs {OLDEST_SERVER} or newer. "
            "Upgrade it, or leave BABYLON_RL_DATABASE_URL empty to use the embedded server."
        )


def _create_application_tables(connection: sa.Connection, database: Database) -> None:
    """All or none, and never beside Prisma, whose migrations would then fail."""
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('babylon_rl.application_tables', 0))"))
    if connection.scalar(sa.text("SELECT current_schema()")) is None:
        schema = sql.Identifier(schema_of(database.url)).as_string(None)
        raise DatabaseError(
            f"Schema {schema} is not in {redacted(database.url)}, or its role has no USAGE on it; nothing was made. "
            f"Have its owner run CREATE SCHEMA {schema}, or name another by ?schema= of the URL."
        )
    # The catalogue, not information_schema, which hides what the role has no right to.
    found = connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"))
    present = set(found)
    ours = set(application_metadata.tables)
    if "_prisma_migrations" in present:
        raise DatabaseError(
            f"{redacted(database.url)} is migrated by Prisma, which owns the application's tables there. "
            "Run `babylon-rl db migrate` without --with-application-tables."
        )
    if ours <= present:
        return
    if ours & present:
        raise DatabaseError(
            f"{redacted(database.url)} has some of the application's tables ({', '.join(sorted(ours & present))}) and "
            f"not others ({', '.join(sorted(ours - present))}); nothing was made. They are made all or none: use an "
            "empty database, or let the application make its own and migrate without --with-application-tables."
        )
    application_metadata.create_all(connection, checkfirst=False)
