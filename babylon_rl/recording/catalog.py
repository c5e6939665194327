"""Which rows are recorded and in which window each is: small columns of both origins, no texts.

The application's table and ours are read alike; a trajectory that stands in both is the application's. The application
has no index on its times, so what a window's rows are called is told by its index, and the others by a scan.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.recording.attribution import Attribution, attribute
from babylon_rl.windows import window_of

APPLICATION, OURS = sql.Identifier("trajectories"), sql.Identifier("babylon_rl", "trajectories")
BATCH = 1000  # rows of a server-side cursor
_cursor_numbers = itertools.count()

# Years that a calendar has; `isfinite` and the years are looked at in SQL, for drivers refuse other times.
_IS_TIME = sql.SQL(
    """(isfinite("endTime") AND "endTime" >= '0001-01-01'::timestamp AND "endTime" < '10000-01-01'::timestamp)
       IS TRUE"""
)
_OWN_HOUR = sql.SQL("""to_char("endTime", 'YYYY-MM-DD"T"HH24:00')""")
_WITHIN = sql.SQL("""("endTime" >= %(first)s::timestamp AND "endTime" < %(last)s::timestamp + interval '1 hour')""")
# The casts cost nothing where the types are Prisma's; elsewhere a number, a flag or a status is still what it says.
_COLUMNS = sql.SQL(
    """"trajectoryId", "agentId"::text, "windowId", CASE WHEN {is_time} THEN "endTime" END,
       CASE WHEN isfinite("startTime") AND "startTime" >= '0001-01-01'::timestamp
                 AND "startTime" < '10000-01-01'::timestamp THEN "startTime" END,
       id, "scenarioId", "isTrainingData"::boolean, "isEvaluation"::boolean, "usedInTraining"::boolean,
       "finalStatus"::text, "finalBalance"::float8, "finalPnL"::float8, "totalReward"::float8,
       coalesce(octet_length("stepsJson"::text), 0), {ours}"""
)


class Entry(NamedTuple):
    """A recorded row without its texts. `ended`, `started`: naive UTC, None for what is no time; `length`: bytes.

    `agent_id` and `status` are None only in tables that somebody altered.
    """

    trajectory_id: str
    agent_id: str | None
    named: str | None
    ended: datetime | None
    started: datetime | None
    row_id: str
    scenario_id: str | None
    is_training: bool
    is_evaluation: bool
    used: bool
    status: str | None
    final_balance: float | None
    final_pnl: float | None
    total_reward: float | None
    length: int
    ours: bool

    @property
    def attribution(self) -> Attribution:
        return attribute(self.named, self.ended)


class Elsewhere(NamedTuple):
    """A row that ended in the window or hour `ended_in` (None: at no time) and does not name it by its own id."""

    trajectory_id: str
    agent_id: str
    named: str | None
    ended_in: str | None
    attribution: Attribution


def window_entries(recordings: Recordings, window_id: str, elsewhere: Sequence[str]) -> list[Entry]:
    """The window's rows by trajectory id: those that name it, and of `elsewhere` those that are in it all the same."""
    hour = {"first": _naive(window_id), "last": _naive(window_id), "window_id": window_id, "ids": list(elsewhere)}
    found: dict[str, Entry] = {}
    for ours in (False, True):
        rows = list(_entries(recordings, ours, sql.SQL('"windowId" = %(window_id)s AND {}').format(_WITHIN), hour))
        if elsewhere:
            condition = sql.SQL('"trajectoryId" = ANY(%(ids)s) AND {}').format(_WITHIN)
            rows += [e for e in _entries(recordings, ours, condition, hour) if e.attribution.window_id == window_id]
        taken = _in_application(recordings, [row.trajectory_id for row in rows]) if ours else ()
        found |= {row.trajectory_id: row for row in rows if row.trajectory_id not in taken}
    return [found[trajectory_id] for trajectory_id in sorted(found)]


def named_elsewhere(recordings: Recordings, window_ids: Sequence[str]) -> Iterator[Elsewhere]:
    """Rows that ended between the first and the last of these windows, or at no time, and do not name their hour."""
    condition = sql.SQL('({within} AND "windowId" IS DISTINCT FROM {own}) OR NOT ({is_time})').format(
        within=_WITHIN, own=_OWN_HOUR, is_time=_IS_TIME
    )
    for ours in (False, True):
        query = sql.SQL(
            'SELECT "trajectoryId", "agentId", "windowId", CASE WHEN {} THEN "endTime" END FROM {} WHERE {}'
        ).format(_IS_TIME, OURS if ours else APPLICATION, condition)
        for batch in _batches(_connection(recordings, ours), query, _span(window_ids)):
            taken = _in_application(recordings, [row[0] for row in batch]) if ours else ()
            for trajectory_id, agent_id, named, ended in batch:
                if trajectory_id not in taken:
                    own = None if ended is None else window_of(ended)
                    yield Elsewhere(trajectory_id, agent_id, named, own, attribute(named, ended))


def count_recorded(recordings: Recordings, window_ids: Sequence[str], chunk: int = 500) -> dict[str, int]:
    """Rows that belong to each window, counted by the database: of both origins, each trajectory once."""
    counts = dict.fromkeys(sorted(set(window_ids)), 0)
    wanted = list(counts)
    query = sql.SQL("""SELECT "windowId", date_trunc('hour', "endTime"), count(*) FROM {} WHERE {} GROUP BY 1, 2""")
    for start in range(0, len(wanted), chunk):
        span = _span(wanted[start : start + chunk])
        for table, ours in ((APPLICATION, False), (OURS, True)):
            cursor = _connection(recordings, ours).execute(query.format(table, _WITHIN), span)
            for named, hour, rows in cursor:
                _add(counts, named, hour, rows)
        for named, hour in _in_both(recordings, span):
            _add(counts, named, hour, -1)
    return counts


def _add(counts: dict[str, int], named: str | None, hour: datetime, rows: int) -> None:
    window_id = attribute(named, hour).window_id
    if window_id in counts:
        counts[window_id] += rows


def _in_both(recordings: Recordings, span: dict[str, Any]) -> list[tuple[str | None, datetime]]:
    """What our rows name and when they ended, of those in the span that stand in the application's table too."""
    query = sql.SQL('SELECT "trajectoryId", "windowId", "endTime" FROM {} WHERE {}').format(OURS, _WITHIN)
    rows = recordings.ours.execute(query, span).fetchall()
    taken = _in_application(recordings, [trajectory_id for trajectory_id, _, _ in rows])
    return [(named, ended) for trajectory_id, named, ended in rows if trajectory_id in taken]


def all_entries(recordings: Recordings, first: str | None, last: str | None) -> Iterator[list[Entry]]:
    """Every recorded row in batches; between two windows only those that ended in that span, with neither bound all."""
    condition, values = sql.SQL("true"), {}
    if first is not None or last is not None:
        condition = _WITHIN
        values = {"first": _naive(first or "0001-01-01T00:00"), "last": _naive(last or "9999-12-31T23:00")}
    for ours in (False,) if recordings.ours is None else (False, True):
        for rows in _batches(_connection(recordings, ours), _select(ours, condition), values):
            batch = [Entry._make(row) for row in rows]
            taken = _in_application(recordings, [entry.trajectory_id for entry in batch]) if ours else ()
            if left := [entry for entry in batch if entry.trajectory_id not in taken]:
                yield left


def known_agents(recordings: Recordings, agent_ids: Iterable[str | None]) -> set[str]:
    """Which of the agents the application has, whose table of them can be read."""
    query = 'SELECT id FROM "User" WHERE id = ANY(%s)'
    wanted = sorted({agent_id for agent_id in agent_ids if agent_id is not None})
    return {agent_id for (agent_id,) in recordings.application.execute(query, (wanted,))}


def _entries(recordings: Recordings, ours: bool, condition: sql.Composable, values: dict[str, Any]) -> Iterator[Entry]:
    with _connection(recordings, ours).cursor(binary=True) as cursor:
        yield from map(Entry._make, cursor.execute(_select(ours, condition), values))


def _batches(connection: psycopg.Connection, query: sql.Composed, values: dict[str, Any]) -> Iterator[list[tuple]]:
    """Rows through a server-side cursor, beside which the connection takes other queries."""
    with connection.cursor(name=f"recorded_{next(_cursor_numbers)}", binary=True) as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(BATCH):
            yield rows


def _select(ours: bool, condition: sql.Composable) -> sql.Composed:
    columns = _COLUMNS.format(is_time=_IS_TIME, ours=sql.Literal(ours))
    return sql.SQL("SELECT {} FROM {} WHERE {}").format(columns, OURS if ours else APPLICATION, condition)


def _in_application(recordings: Recordings, trajectory_ids: Sequence[str]) -> set[str]:
    """Which of the trajectories stand in the application's table."""
    if not trajectory_ids:
        return set()
    query = 'SELECT "trajectoryId" FROM trajectories WHERE "trajectoryId" = ANY(%s)'
    return {name for (name,) in recordings.application.execute(query, (list(trajectory_ids),))}


def _connection(recordings: Recordings, ours: bool) -> psycopg.Connection:
    return recordings.ours if ours else recordings.application


def _span(window_ids: Sequence[str]) -> dict[str, Any]:
    return {"first": _naive(min(window_ids)), "last": _naive(max(window_ids))}


def _naive(window_id: str) -> str:
    """The window's start as PostgreSQL reads it."""
    return window_id.replace("T", " ")
