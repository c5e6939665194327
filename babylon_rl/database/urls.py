"""Database URLs: the driver a library needs, what libpq understands, and what may be shown to a person."""

import re
from typing import Literal

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from babylon_rl.errors import DatabaseError

# Parameters of Prisma's and, the last one, of a host that it is used with: libpq refuses a URL that holds one.
PRISMA_PARAMETERS = (
    "connection_limit",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "pgbouncer",
    "pool_timeout",
    "schema",
    "single_use_connections",
    "socket_timeout",
    "sslaccept",
    "statement_cache_size",
    "uselibpqcompat",
    "supa",
)
# Where Prisma finds the tables of a URL without `?schema=`.
PRISMA_SCHEMA = "public"
# A password with a bare @ ends at it, and its rest would be shown as the host's name.
STRAY_AT = re.compile(r"://[^:/]*:[^@]*@([^?]*|[^=]*)@")


def _parse(url: str) -> URL:
    """The URL without Prisma's parameters, which `schema_of` and `pooled` tell."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""
    if STRAY_AT.search(url):
        backend = ""
    if backend not in ("postgres", "postgresql"):
        raise DatabaseError(
            "The database URL cannot be read. Write it as postgresql://user:password@host:5432/database, "
            "with special characters of the password percent-encoded."
        ) from None
    return parsed.difference_update_query(PRISMA_PARAMETERS)


def schema_of(url: str) -> str:
    """The schema of the application's tables: what Prisma's `?schema=` names, else its default."""
    _parse(url)
    schema = make_url(url).query.get("schema")
    return schema if isinstance(schema, str) and schema else PRISMA_SCHEMA


def pooled(url: str) -> bool:
    """Whether Prisma's `?pgbouncer=true` says that a transaction is all that one server connection is kept for."""
    _parse(url)
    return make_url(url).query.get("pgbouncer") == "true"


def with_driver(url: str, driver: Literal["psycopg", "psycopg2"]) -> str:
    """`url` for SQLAlchemy with the driver named.

    A bare `postgresql://` means psycopg 3 to SQLAlchemy 2.1, with which Dagster's storage fails, so both name theirs.
    """
    return _parse(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


def libpq_url(url: str) -> str:
    """`url` for libpq: psycopg.connect, psql."""
    return _parse(url).set(drivername="postgresql").render_as_string(hide_password=False)


def redacted(url: str) -> str:
    """`url` as it may be shown: without any password."""
    try:
        parsed = _parse(url).set(drivername="postgresql")
    except DatabaseError:
        return "(a URL that cannot be read)"
    secret = [name for name in parsed.query if "password" in name.lower()]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def without_password(url: str) -> tuple[str, str | None]:
    """`url` for libpq without its password, and the password; for a command line, which others can read.

    DatabaseError where the URL holds another secret, which libpq takes from nowhere else.
    """
    parsed = _parse(url).set(drivername="postgresql")
    named = parsed.query.get("password")
    password = parsed.password if parsed.password is not None else named if isinstance(named, str) else None
    bare = URL.create(
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database, parsed.query
    ).difference_update_query(["password"])
    if secret := [name for name in bare.query if "password" in name.lower()]:
        raise DatabaseError(f"The database URL may not hold {secret[0]} here. Use a key without a password.")
    return bare.render_as_string(hide_password=False), password


def database_name(url: str) -> str:
    """Name of the database that `url` points at; empty where the URL names none."""
    return _parse(url).database or ""
