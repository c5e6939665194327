"""The databases in use: which ones the settings name, engines and plain connections, errors with a remedy."""

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import psycopg
import sqlalchemy as sa
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.bulk import encode_json
from babylon_rl.database.embedded import APPLICATION_DATABASE, EmbeddedServer, default_home
from babylon_rl.database.urls import database_name, libpq_url, pooled, redacted, schema_of, with_driver
from babylon_rl.errors import DatabaseError, Unreachable
from babylon_rl.settings import Settings

CONNECT_SECONDS = 10
# A role's or a database's own encoding may lack what agents write; the server converts.
CONNECTING = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8"}
# Settings of a role that end its work, by the error's code.
TIME_LIMITS = {
    "57014": "statement_timeout",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
}
# Of a connection on which a statement failed, or that was lost.
FAILED = (psycopg.pq.TransactionStatus.INERROR, psycopg.pq.TransactionStatus.UNKNOWN)
# What recordings are read from in our schema.
OUR_RECORDINGS = ("trajectories", "llm_call_logs", "recorded_calls")

NOTHING_MATERIALIZED = (
    "Nothing has been materialized: the schema babylon_rl is not there. `babylon-rl windows --live` looks at the "
    "recordings themselves; `babylon-rl db migrate` makes the schema, and `make ui` materializes windows."
)


@dataclass(frozen=True)
class Recordings:
    """What is read to know what agents did: the application's tables, and what we keep of calls beside them.

    `application`: its search path leads to the application's tables; they are read and never written. `ours`: holds
    schema `babylon_rl`; the same connection where one database holds both, and None only from `recordings_found`.
    """

    application: psycopg.Connection
    ours: psycopg.Connection

    @classmethod
    def of(cls, connection: psycopg.Connection) -> Self:
        """Where one database holds both."""
        return cls(connection, connection)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """After an error inside, both transactions go on as they were before."""
        with contextlib.ExitStack() as stack:
            for connection in dict.fromkeys((self.application, self.ours)):
                stack.enter_context(connection.transaction())
            yield


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
        with (
            _transaction(url, read_only=True, of_application=self.application_url is not None) as connection,
            errors_mended(url, of_application=True),
        ):
            yield connection

    @contextlib.contextmanager
    def recordings(self) -> Iterator[Recordings]:
        """The recordings to read, each database in one snapshot."""
        with _transaction(self.url, read_only=True) as ours, errors_mended(self.url):
            with self.recordings_beside(ours) as recordings:
                yield recordings

    @contextlib.contextmanager
    def recordings_found(self) -> Iterator[Recordings]:
        """As `recordings`; `ours` is None where our tables are not there, cannot be read or cannot be reached."""
        with self.connect_application() as application, contextlib.ExitStack() as opened:
            ours: psycopg.Connection | None = application
            if self.application_url is not None:
                try:
                    ours = opened.enter_context(_transaction(self.url, read_only=True))
                except DatabaseError:
                    ours = None
            if ours is not None and not _readable(ours):
                ours = None
            yield Recordings(application, ours)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def recordings_beside(self, ours: psycopg.Connection) -> Iterator[Recordings]:
        """The recordings to read in the transaction `ours`, which may write our tables."""
        if self.application_url is None:
            yield Recordings.of(ours)
            return
        url = self.application_url
        with _transaction(url, read_only=True, of_application=True) as application:
            try:
                yield Recordings(application, ours)
            except psycopg.Error as error:
                if application.info.transaction_status not in FAILED:
                    raise  # it is of our own database
                raise _mended(error, url, of_application=True) from error


def open_database(settings: Settings) -> Database:
    """The databases that the settings name, ours reached once; what is not named is on the embedded server.

    DATABASE_URL alone is read, and written to only where somebody made a schema `babylon_rl` for our role there.
    """
    database = _named(settings)
    if database.embedded:
        EmbeddedServer(default_home(settings)).up()
        return database
    with database.connect():
        return database


def open_application(settings: Settings) -> Database:
    """The databases that `open_database` opens, without a look at ours: nothing is started, made or written.

    DatabaseError where no database is named and the embedded server is down.
    """
    database = _named(settings)
    if database.application_url is None and database.embedded and not embedded_runs(settings):
        raise DatabaseError(
            "No database is named, and the embedded server is down. Name the application's in DATABASE_URL or with "
            "--database URL, or start the embedded one with `babylon-rl db up`."
        )
    return database


def open_materialized(settings: Settings) -> Database:
    """The database of our tables as `open_database` names it; the embedded server is started where it has data.

    DatabaseError where it has none: nothing can have been materialized.
    """
    database = _named(settings)
    server = EmbeddedServer(default_home(settings))
    if database.embedded and not server.running():
        if not server.data.exists():
            raise DatabaseError(NOTHING_MATERIALIZED)
        server.up()
    return database


def embedded_runs(settings: Settings) -> bool:
    """Whether the embedded server takes connections."""
    return EmbeddedServer(default_home(settings)).running()


def _named(settings: Settings) -> Database:
    """The databases that the settings name; the application's is asked for our schema where that decides."""
    application, ours = _secret(settings.application_url), _secret(settings.database_url)
    if ours is None and application is not None and _holds_our_schema(application):
        ours = application
    if ours is None:
        server = EmbeddedServer(default_home(settings))
        return Database(server.url(APPLICATION_DATABASE), embedded=True, application_url=application)
    return Database(ours, embedded=False, application_url=None if application in (None, ours) else application)


def _secret(url: SecretStr | None) -> str | None:
    return (url.get_secret_value() or None) if url else None


def _holds_our_schema(url: str) -> bool:
    with _transaction(url, read_only=True, of_application=True) as connection:
        query = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = 'babylon_rl'"
        found = connection.execute(query).fetchone()
        return bool(found and found[0])


def _readable(connection: psycopg.Connection) -> bool:
    """Whether the recordings among our tables are there, in this version's schema, and may be read."""
    query = """
        SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'babylon_rl' AND c.relname = ANY(%s)
            AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    """
    found = connection.execute(query, (list(OUR_RECORDINGS),)).fetchone()
    return found == (len(OUR_RECORDINGS),)


@contextlib.contextmanager
def _transaction(url: str, *, read_only: bool, of_application: bool = False) -> Iterator[psycopg.Connection]:
    """A connection in UTC that finds the URL's schema; a read-only one sees one snapshot."""
    try:
        connection = psycopg.connect(libpq_url(url), autocommit=True, **CONNECTING)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise _unreachable(url, error, of_application) from None
    with connection:
        local = pooled(url)
        if local:
            connection.prepare_threshold = None
        else:
            _set_up(connection, url, local)
        connection.autocommit = False
        if read_only:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if local:  # the pooler's next transaction is on another server connection
            _set_up(connection, url, local)
        yield connection


def _set_up(connection: psycopg.Connection, url: str, local: bool) -> None:
    """Statements, not connection options, which poolers refuse.

    The path is Prisma's also where the URL names none: a role of the name of our schema would find our tables first.
    Times and floats are spelled as the driver reads them, whatever the role's or the database's own settings are.
    """
    path = sql.Identifier(schema_of(url)).as_string(connection)
    connection.execute(
        """SELECT set_config('TimeZone', 'UTC', %(local)s), set_config('search_path', %(path)s, %(local)s),
                  set_config('DateStyle', 'ISO, YMD', %(local)s), set_config('extra_float_digits', '1', %(local)s)""",
        {"path": path, "local": local},
    )


@contextlib.contextmanager
def errors_mended(url: str, *, of_application: bool = False) -> Iterator[None]:
    """Turn what a user can mend (rights, missing schema, full disk) into a DatabaseError; all else passes.

    `of_application`: whatever is missing is the application's; otherwise the error's text tells whose it is.
    """
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        mended = _mended(error, url, of_application)
        if mended is error:
            raise
        raise mended from error


def _mended(error: psycopg.Error | sa.exc.DBAPIError, url: str, of_application: bool) -> Exception:
    """The error as a DatabaseError with its remedy, where a user can mend it; else the error itself."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    said = _first_line(cause)
    theirs = of_application or _names_the_applications(said)
    remedy = (_application_remedy(cause, url) if theirs else None) or _remedy(cause, url)
    return error if remedy is None else DatabaseError(f"{said} ({redacted(url)}). {remedy}")


def _names_the_applications(said: str) -> bool:
    """Whether PostgreSQL speaks of one of the application's tables; it names ours with their schema."""
    words = set(re.findall(r"[\w.]+", said))
    return not any(word.startswith("babylon_rl.") for word in words) and bool(words & set(application_metadata.tables))


def _application_remedy(cause: BaseException | None, url: str) -> str | None:
    schema = sql.Identifier(schema_of(url)).as_string(None)
    match cause:
        case psycopg.errors.InsufficientPrivilege():
            role = sql.Identifier(make_url(url).username or "role").as_string(None)
            return (
                f"Have the owner run GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA "
                f"{schema} TO {role}; `babylon-rl verify` lists what is read."
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedColumn():
            return (
                f"The application's tables are looked for in schema {schema}, which `?schema=` of the URL names. See "
                "that it is the right one, that the application's migrations ran there and that the role has USAGE on "
                "it. `babylon-rl verify` says which tables and columns are missing; in an empty database of your own "
                "`babylon-rl db migrate --with-application-tables` makes them."
            )
        case psycopg.errors.CharacterNotInRepertoire() | psycopg.errors.UntranslatableCharacter():
            return (
                "The database keeps bytes that are not UTF-8, as one with the encoding SQL_ASCII may. Have the owner "
                "correct that row, or read a copy of the database in UTF-8."
            )
        case psycopg.Error() if cause.sqlstate in TIME_LIMITS:
            role = sql.Identifier(make_url(url).username or "role").as_string(None)
            return (
                "The role's time limit is too short for reading. Have the owner run "
                f"ALTER ROLE {role} SET {TIME_LIMITS[cause.sqlstate]} = '1h';"
            )
        case psycopg.errors.OperationalError() if cause.sqlstate is None:
            return "The connection to the application's database was lost. See that the server runs, and try again."
    return None


def _remedy(cause: BaseException | None, url: str) -> str | None:
    name = database_name(url)
    match cause:
        case psycopg.errors.InsufficientPrivilege() | psycopg.errors.ReadOnlySqlTransaction():
            return (
                "Its role lacks a right. Have the database's owner run CREATE SCHEMA babylon_rl AUTHORIZATION that "
                f'role, or GRANT CREATE ON DATABASE "{name}" TO it, or name a database of your own in '
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


def _unreachable(url: str, error: psycopg.Error, of_application: bool) -> DatabaseError:
    said = _first_line(error)
    parsed = make_url(url)
    for secret in (parsed.password, *(value for name, value in parsed.query.items() if "password" in name.lower())):
        if isinstance(secret, str) and secret:
            said = said.replace(secret, "***")
    # The server says so before there is a session, so there is no code to tell it by.
    if "too many connections" in said or "connection slots" in said:
        return DatabaseError(
            f"The database {redacted(url)} takes no further connection: {said}. Nothing was changed. End other "
            "programs that use it, or raise max_connections or the role's CONNECTION LIMIT, and run it again."
        )
    if isinstance(error, psycopg.ProgrammingError):
        return DatabaseError(f"The database {redacted(url)} cannot be named so: {said}. Take that out of the URL.")
    if of_application:
        return Unreachable(
            f"The application's database {redacted(url)} cannot be reached: {said}.",
            "See that the server runs and that DATABASE_URL is right; with DATABASE_URL empty the recordings are read "
            "in the database of our tables.",
        )
    return Unreachable(
        f"The database {redacted(url)} cannot be reached: {said}.",
        "See that the server runs and that the URL is right, or leave BABYLON_RL_DATABASE_URL empty to use the "
        "embedded server.",
    )


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no detail"])[0]


@functools.cache
def _engine(url: str) -> sa.Engine:
    local = pooled(url)
    engine = sa.create_engine(
        with_driver(url, "psycopg"),
        pool_pre_ping=True,
        json_serializer=encode_json,
        connect_args=CONNECTING | ({"prepare_threshold": None} if local else {}),
    )
    if local:

        @sa.event.listens_for(engine, "begin")
        def transaction_in_utc(connection: sa.Connection) -> None:
            _set_up(connection.connection.driver_connection, url, local=True)  # type: ignore[arg-type]

        return engine

    @sa.event.listens_for(engine, "connect")
    def session_in_utc(connection: psycopg.Connection, _record: object) -> None:
        _set_up(connection, url, local=False)
        connection.commit()

    return engine
