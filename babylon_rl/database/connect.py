"""The database in use: which one the settings name, engines and plain connections to it, errors with a remedy."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from babylon_rl.database.bulk import encode_json
from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer, default_home
from babylon_rl.database.urls import database_name, libpq_url, redacted, with_driver
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings

CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Database:
    """A database by its URL; `embedded` where it is ours alone, so that the application's tables may be made there."""

    url: str = field(repr=False)  # may hold a password
    embedded: bool

    def engine(self) -> sa.Engine:
        """SQLAlchemy engine over psycopg 3, one for each URL and process; sessions are in UTC."""
        return _engine(self.url)

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """One transaction on a plain connection in UTC: committed at the end, rolled back by an error.

        DatabaseError where the server cannot be reached, a right is missing or the schema is not there.
        """
        try:
            connection = psycopg.connect(libpq_url(self.url), connect_timeout=CONNECT_SECONDS, autocommit=True)
        except psycopg.OperationalError as error:
            raise _unreachable(self.url, error) from None
        with connection:
            # A statement, not a connection option: poolers refuse options.
            connection.execute("SET TIME ZONE 'UTC'")
            connection.autocommit = False
            with errors_mended(self.url):
                yield connection
                connection.commit()


def open_database(settings: Settings) -> Database:
    """The database that the settings name, reached once; without one, the embedded server's, brought up."""
    if settings.database_url is None or not settings.database_url.get_secret_value():
        server = EmbeddedServer(default_home(settings))
        server.up()
        return Database(server.url(APPLICATION_DATABASE), embedded=True)
    database = Database(settings.database_url.get_secret_value(), embedded=False)
    with database.connect():
        return database


@contextlib.contextmanager
def errors_mended(url: str) -> Iterator[None]:
    """Turn what a user can mend (rights, missing schema, full disk) into a DatabaseError; all else passes."""
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        remedy = _remedy(cause, url)
        if remedy is None:
            raise
        raise DatabaseError(f"{_first_line(cause)} ({redacted(url)}). {remedy}") from error


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
        connection.execute("SET TIME ZONE 'UTC'")
        connection.commit()

    return engine
