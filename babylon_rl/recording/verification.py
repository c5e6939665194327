"""Whether a database is fit for training: what is found in it, and the shortest list of what is missing.

Nothing is started, made or written; what may not be read is said and not tried.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.database.catalogue import Catalogue, Server, catalogue_of, server_of
from babylon_rl.database.connect import Database, Recordings, embedded_runs, open_application
from babylon_rl.database.migrate import OLDEST_SERVER
from babylon_rl.database.urls import redacted
from babylon_rl.errors import DatabaseError
from babylon_rl.recording.findings import (
    MarketFound,
    Missing,
    OurTables,
    RowsFound,
    Verification,
    WindowsFound,
    tally_rows,
)
from babylon_rl.recording.missing import missing_of, notes_of
from babylon_rl.settings import Settings
from babylon_rl.windows import parse_window_id, window_of

READY, NOT_READY = "READY FOR TRAINING", "NOT READY FOR TRAINING"


def verify(
    settings: Settings,
    now: datetime,
    sample: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Look at the application's database that the settings name. `now` (aware) decides which hours are over.

    `sample`: only the newest so many rows, rounded up to whole windows. `progress` is told the rows so far.
    """
    try:
        database = open_application(settings)
        url = redacted(database.application_url or database.url)
        with database.recordings_found() as recordings:
            return _look(settings, database, url, recordings, now, sample, progress)
    except DatabaseError as error:
        return _verification([Missing("The database cannot be looked at.", str(error))])


def _look(
    settings: Settings,
    database: Database,
    url: str,
    recordings: Recordings,
    now: datetime,
    sample: int | None,
    progress: Callable[[int], None],
) -> Verification:
    server, catalogue = server_of(recordings.application), catalogue_of(recordings.application)
    our_tables = _our_tables(settings, database, server, recordings)
    rows = windows = market = failure = None
    if catalogue.table("trajectories").usable:
        try:
            # A failure inside leaves the snapshot usable.
            with recordings.application.transaction():
                rows, windows = _survey(recordings, settings.min_agents_per_window, now, sample, progress)
        except psycopg.Error as error:
            failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
        market = _market(recordings.application, catalogue, windows)
    missing = missing_of(server, catalogue, rows, windows, failure)
    notes = notes_of(server, catalogue, windows, market, settings.groups_per_update)
    notes += _notes_on_ours(database, server)
    return _verification(
        missing,
        notes=notes,
        url=url,
        server=server,
        our_tables=our_tables,
        catalogue=catalogue,
        rows=rows,
        windows=windows,
        market=market,
    )


def _verification(missing: list[Missing], **found: Any) -> Verification:
    nothing = dict.fromkeys(("url", "server", "our_tables", "catalogue", "rows", "windows", "market"))
    ready = not missing
    return Verification(
        **{"notes": [], **nothing, **found}, ready=ready, verdict=READY if ready else NOT_READY, missing=missing
    )


# --- our tables -----------------------------------------------------------------------------------


def _our_tables(settings: Settings, database: Database, server: Server, recordings: Recordings) -> OurTables:
    if database.application_url is None:
        where = "in the same database"
        state = "there" if recordings.ours is not None else "unreadable" if server.our_schema else "absent"
        return OurTables(where=where, state=state)
    if database.embedded:
        where, runs = "on the embedded server", embedded_runs(settings)
    else:
        where, runs = f"in {redacted(database.url)}", _reached(database)
    state = "there" if recordings.ours is not None else "absent" if runs else "unreachable"
    return OurTables(where=where, state=state)


def _reached(database: Database) -> bool:
    try:
        with database.connect():
            return True
    except DatabaseError:
        return False


def _notes_on_ours(database: Database, server: Server) -> list[str]:
    if database.application_url is not None or database.embedded or server.our_schema:
        return []
    instead = "name this database in DATABASE_URL alone, and they are made on the embedded server"
    if not server.may_create_schema:
        return [f"Role {server.role} may not create our schema here: {instead}."]
    if server.major < OLDEST_SERVER:
        return [f"Our tables need PostgreSQL {OLDEST_SERVER} or newer: {instead}."]
    return []


# --- rows and windows -----------------------------------------------------------------------------


def _survey(
    recordings: Recordings, min_agents: int, now: datetime, sample: int | None, progress: Callable[[int], None]
) -> tuple[RowsFound, WindowsFound]:
    from babylon_rl.recording.survey import survey

    first = _first_of_newest(recordings.application, sample) if sample is not None else None
    tally = tally_rows(survey(recordings, first=first), progress)
    return tally.rows(sample if first is not None else None), tally.found(min_agents, now)


def _first_of_newest(connection: psycopg.Connection, rows: int) -> str | None:
    """Window in which the oldest of the newest so many rows ended; None where there are not so many."""
    found = connection.execute(
        """SELECT "endTime" FROM trajectories
           WHERE "endTime" >= '0001-01-01' AND "endTime" < '9999-12-31'
           ORDER BY "endTime" DESC LIMIT 1 OFFSET %s""",
        (rows - 1,),
    ).fetchone()
    return window_of(found[0]) if found else None


# --- market ---------------------------------------------------------------------------------------

_PRICES = """
    SELECT EXISTS (SELECT FROM "StockPrice"
                   WHERE "timestamp" >= %(first)s AND "timestamp" < %(last)s::timestamp + interval '1 hour')
"""
_PROBABILITIES = """
    SELECT EXISTS (SELECT FROM "PredictionPriceHistory"
                   WHERE "createdAt" >= %(first)s AND "createdAt" < %(last)s::timestamp + interval '1 hour')
"""
_RESOLVED = """SELECT EXISTS (SELECT FROM "Market" WHERE resolved AND resolution IS NOT NULL)"""
_OUTCOMES = """
    SELECT EXISTS (SELECT FROM market_outcomes WHERE "windowId" >= %(first_id)s AND "windowId" <= %(last_id)s)
"""


def _market(connection: psycopg.Connection, catalogue: Catalogue, windows: WindowsFound | None) -> MarketFound | None:
    if windows is None or windows.first is None or windows.last is None:
        return None
    first, last = (parse_window_id(one).replace(tzinfo=None) for one in (windows.first, windows.last))
    edges = {"first": first, "last": last, "first_id": windows.first, "last_id": windows.last}

    def exists(query: str, *tables: str) -> bool | None:
        if not all(catalogue.table(table).usable for table in tables):
            return None
        found = connection.execute(query, edges).fetchone()
        return bool(found and found[0])

    return MarketFound(
        prices=exists(_PRICES, "StockPrice", "Organization"),
        probabilities=exists(_PROBABILITIES, "PredictionPriceHistory", "Market"),
        resolved_questions=exists(_RESOLVED, "Market"),
        recorded_outcomes=exists(_OUTCOMES, "market_outcomes"),
    )
