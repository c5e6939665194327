"""How Alembic meets the database: our schema only, one migration at a time.

The URL is what the caller put into the configuration's attributes, else the database that the settings name.
"""

import sqlalchemy as sa
from alembic import context
from sqlalchemy.pool import NullPool

from babylon_rl.database.connect import open_database
from babylon_rl.database.tables import SCHEMA, metadata
from babylon_rl.database.urls import with_driver
from babylon_rl.settings import get_settings


def database_url() -> str:
    return context.config.attributes.get("url") or with_driver(open_database(get_settings()).url, "psycopg")


def include_name(name: str | None, kind: str, _parents: dict[str, str | None]) -> bool:
    return name == SCHEMA if kind == "schema" else True


def run() -> None:
    engine = sa.create_engine(database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        # Held by the session until it closes, so that a second migration waits and then finds nothing to do.
        connection.execute(sa.text("SELECT pg_advisory_lock(hashtextextended('babylon_rl.migrate', 0))"))
        # IF NOT EXISTS asks for the right to create even where the schema exists.
        if not connection.dialect.has_schema(connection, SCHEMA):
            connection.execute(sa.schema.CreateSchema(SCHEMA))
        # Alembic's version table must find the schema, and its transaction must be its own.
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_schemas=True,
            include_name=include_name,
            version_table_schema=SCHEMA,
            compare_type=True,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Migrations need a database: run them without --sql.")
run()
