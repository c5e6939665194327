"""The databases in use: which ones the settings name, engines and plain connections, errors with a remedy."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import psycopg
import sqlalchemy as sa
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from babylon_rl.database.bulk import encode_json
from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer, default_home
from babylon_rl.database.urls import database_name, libpq_url, pooled, redacted, schema_of, with_driver
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings

CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Recordings:
    """What is read to know what agents did: the application's tables, and what we keep of calls beside them.

    `application`: its search path leads to the application's tables; they are read and never written. `ours`: holds
    schema `babylon_rl`; the same connection where one database holds both.
    """

    application: psycopg.Connection
    ours: psycopg.Connection

    @classmethod
    def of(cls, connection: psycopg.Connection) -> Self:
        """Where one database holds both."""
        return cls(connection, connection)


@dataclass(frozen=True)
class Database:
    """The database of our tables by its URL, and the application's where that is another one.

    `embedded`: ours alone, so that the application's tables may be made there. `application_url`: where the recorded
    tables are read; None: in the same database.
    """

    url: str = field(repr=False)  # may hold a password
    embedded: bool
    application_url: str | None = field(default=None, repr=False)

    def variables(self) -> dict[str, str]:
        """Environment in which `open_database` opens these databases and no others."""
        return {"BABYLON_RL_DATABASE_URL": self.url, "DATABASE_URL": self.application_url or ""}

    def engine(self) -> sa.Engine:
        """SQLAlchemy engine over psycopg 3, one for each URL and process; sessions are in UTC."""
        return _engine(self.url)

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """One transaction on our tables, in UTC: committed at the end, rolled back by an error.

        DatabaseError where the server cannot be reached, a right is missing or the schema is not there.
        """
        with _transaction(self.url, read_only=False) as connection, errors_mended(self.url):
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def connect_application(self) -> Iterator[psycopg.Connection]:
        """One snapshot of the application's tables, read only. DatabaseError as in `connect`."""
        url = self.application_url or self.url
        with _transaction(url, read_only=True) as connection, errors_mended(url, of_application=True):
            yield connection

    @contextlib.contextmanager
    def recordings(self) -> Iterator[Recordings]:
        """The recordings to read, each database in one snapshot."""
        with self.connect_application() as application:
            if self.application_url is None:
                yield Recordings.of(application)
                return
            with _transaction(self.url, read_only=True) as ours, errors_mended(self.url):
                yield Recordings(application, ours)

    @contextlib.contextmanager
    def recordings_beside(self, ours: psycopg.Connection) -> Iterator[Recordings]:
        """The recordings to read in the transaction `ours`, which may write our tables."""
        if self.application_url is None:
            yield Recordings.of(ours)
            return
        with self.connect_application() as application:
            yield Recordings(application, ours)


def open_database(settings: Settings) -> Database:
    """The databases that the settings name, ours reached once; what is not named is on the embedded server.

    DATABASE_URL alone is read, and written to only where somebody made a schema `babylon_rl` for our role there.
    """
    application, ours = _secret(settings.application_url), _secret(settings.database_url)
    if ours is None and application is not None and _holds_our_schema(application):
        ours = application
    if ours is None:
        server = EmbeddedServer(default_home(settings))
        server.up()
        return Database(server.url(APPLICATION_DATABASE), embedded=True, application_url=application)
    database = Database(ours, embedded=False, application_url=None if application in (None, ours) else application)
    with database.connect():
        return database


def _secret(url: SecretStr | None) -> str | None:
    return (url.get_secret_value() or None) if url else None


def _holds_our_schema(url: str) -> bool:
    with _transaction(url, read_only=True) as connection:
        query = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = 'babylon_rl'"
        found = connection.execute(query).fetchone()
        return bool(found and found[0])


@contextlib.contextmanager
def _transaction(url: str, *, read_only: bool) -> Iterator[psycopg.Connection]:
    """A connection in UTC that finds the URL's schema; a read-only one sees one snapshot."""
    try:
        connection = psycopg.connect(libpq_url(url), connect_timeout=CONNECT_SECONDS, autocommit=True)
    except psycopg.OperationalError as error:
        raise _unreachable(url, error) from None
    with connection:
        local = pooled(url)
        if local:
            connection.prepare_threshold = None
        if not local:
            _set_up(connection, url, local)
        connection.autocommit = False
        if read_only:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if local:  # the pooler's next transaction is on another server connection
            _set_up(connection, url, local)
        yield connection


def _set_up(connection: psycopg.Connection, url: str, local: bool) -> None:
    # Statements, not connection options: poolers refuse options.
    connection.execute("SELECT set_config('TimeZone', 'UTC', %s)", (local,))
    if schema := schema_of(url):
        path = sql.Identifier(schema).as_string(connection)
        connection.execute("SELECT set_config('search_path', %s, %s)", (path, local))


@contextlib.contextmanager
def errors_mended(url: str, *, of_application: bool = False) -> Iterator[None]:
    """Turn what a user can mend (rights, missing schema, full disk) into a DatabaseError; all else passes."""
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        remedy = (_application_remedy(cause) if of_application else None) or _remedy(cause, url)
        if remedy is None:
            raise
        raise DatabaseError(f"{_first_line(cause)} ({redacted(url)}). {remedy}") from error


def _application_remedy(cause: BaseException | None) -> str | None:
    match cause:
        case psycopg.errors.InsufficientPrivilege():
            return (
                "Its role may not read that. Have the owner run GRANT SELECT ON ALL TABLES IN SCHEMA ... TO that role; "
                "`babylon-rl verify` lists what is read."
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedColumn():
            return (
                "`babylon-rl verify` says which of the application's tables and columns are missing there; "
                "`babylon-rl db migrate` makes ours."
            )
    return None


def _remedy(cause: BaseException | None, url: str) -> str | None:
    name = database_name(url)
    match cause:
        case psycopg.errors.InsufficientPrivilege() | psycopg.errors.ReadOnlySqlTransaction():
            return (
                "Its role lacks a right. Have the database's owner run "
                f'GRANT CREATE ON DATABASE "{name}" TO that role, or name a database of your own in '
                "BABYLON_RL_DATABASE_URL; without a name the embedded server is used."
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedColumn():
            return "The schema is missing or old. Run `babylon-rl db migrate`."
        case psycopg.errors.DiskFull():
            return "The server's disk is full. Free space there and run the command again."
        case psycopg.errors.AdminShutdown() | psycopg.errors.CrashShutdown():
            return "The server was stopped. Start it (`babylon-rl db up` for the embedded one) and run it again."
        case psycopg.errors.OperationalError() if cause.sqlstate is None:
            return "The connection was lost. See that the server runs (`babylon-rl db up` for the embedded one)."
    return None


def _unreachable(url: str, error: psycopg.Error) -> DatabaseError:
    said = _first_line(error)
    password = make_url(url).password
    if password:
        said = said.replace(password, "***")
    # The server says so before there is a session, so there is no code to tell it by.
    if "too many connections" in said or "connection slots" in said:
        return DatabaseError(
            f"The database {redacted(url)} takes no further connection: {said}. Nothing was changed. End other "
            "programs that use it, or raise max_connections or the role's CONNECTION LIMIT, and run it again."
        )
    return DatabaseError(
        f"The database {redacted(url)} cannot be reached: {said}. See that the server runs and that the URL is right, "
        "or leave BABYLON_RL_DATABASE_URL empty to use the embedded server."
    )


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no detail"])[0]


@functools.cache
def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(
        with_driver(url, "psycopg"),
        pool_pre_ping=True,
        json_serializer=encode_json,
        connect_args={"connect_timeout": CONNECT_SECONDS},
    )

    @sa.event.listens_for(engine, "connect")
    def in_utc(connection: psycopg.Connection, _record: object) -> None:
        _set_up(connection, url, local=False)
        connection.commit()

    return engine
