"""A database as the application keeps it: tables as Prisma makes them, in any schema, and roles with few rights."""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.connect import Database
from babylon_rl.database.urls import database_name, libpq_url, schema_of

PRISMA = "connection_limit=1&pgbouncer=true"


@dataclass(frozen=True)
class Application:
    """The application's database. `owner`: as its owner writes to it; nothing else in it may be written."""

    owner: Database

    @property
    def schema(self) -> str:
        return schema_of(self.owner.url)

    def sql(self, *statements: str, **names: str) -> None:
        """Statements of the owner's, with identifiers put in."""
        schema = sql.Identifier(self.schema)
        with psycopg.connect(libpq_url(self.owner.url), autocommit=True) as connection:
            for statement in statements:
                identifiers = {name: sql.Identifier(value) for name, value in names.items()}
                connection.execute(sql.SQL(statement).format(schema=schema, **identifiers))

    def reader(self, role: str) -> str:
        """URL in Prisma's spelling of a role that may read the application's tables and nothing more."""
        self.sql(
            "CREATE ROLE {role} LOGIN",
            "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {database} TO {role}",
            "GRANT USAGE ON SCHEMA {schema} TO {role}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            role=role,
            database=database_name(self.owner.url),
        )
        return self.url(role)

    def url(self, role: str, prisma: str = PRISMA) -> str:
        """The URL as Prisma writes it: `postgres://`, the schema, a pooler."""
        bare = make_url(libpq_url(self.owner.url)).set(drivername="postgres", username=role, host="localhost")
        return f"{bare.render_as_string(hide_password=False)}&schema={self.schema}&{prisma}"

    def content(self) -> dict[str, bytes]:
        """Every relation, schema, function and type, and the rows of each table with where and by whom they lie."""
        queries = {
            "relations": "SELECT c.oid, relname, relkind, relfilenode, relacl FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = relnamespace WHERE nspname !~ '^(pg_|information_schema)' ORDER BY c.oid",
            "schemas": "SELECT oid, nspname, nspacl FROM pg_namespace ORDER BY oid",
            "functions": "SELECT oid, proname FROM pg_proc ORDER BY oid",
            "types": "SELECT oid, typname FROM pg_type ORDER BY oid",
        }
        with psycopg.connect(libpq_url(self.owner.url)) as connection:
            found = {name: repr(connection.execute(query).fetchall()).encode() for name, query in queries.items()}
            for table in application_metadata.tables:
                rows = sql.SQL("COPY (SELECT ctid, xmin, * FROM {} ORDER BY ctid) TO STDOUT").format(
                    sql.Identifier(self.schema, table)
                )
                with connection.cursor() as cursor, cursor.copy(rows) as copy:
                    found[table] = b"".join(map(bytes, copy))
        return found


def make_application(new_database: Callable[..., Database], schema: str = "game") -> Application:
    """An empty application's database, as its migrations leave it."""
    made = new_database(embedded=False)
    application = Application(Database(f"{made.url}&schema={schema}", embedded=False))
    application.sql(
        "CREATE SCHEMA IF NOT EXISTS {schema}", "CREATE TABLE {schema}._prisma_migrations (id text PRIMARY KEY)"
    )
    engine = application.owner.engine()
    with engine.begin() as connection:
        application_metadata.create_all(connection)
    engine.dispose()
    return application
