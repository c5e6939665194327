"""Buckets of recorded rows: what a look at a table gives, compared with what is known of it, and what is remembered.

A bucket are the rows of one table that name one window and ended in one hour. Its fingerprint is a sum over its rows'
`xmin`, which any write of a row changes whoever made it, so that no time stamp is believed and no large text is read.
Rows without a `windowId` have no index by name: their buckets also hold the hour in which they started, so that a range
of `(agentId, startTime)` finds whole buckets. The tables are looked at where they are, the buckets are compared in our
database: the two may be on different servers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id


@dataclass(frozen=True)
class Origin:
    """A pair of tables that hold recordings, by their names, on the connection that reads them."""

    name: str
    connection: psycopg.Connection
    trajectories: sql.Identifier
    call_logs: sql.Identifier

    def query(self, template: sql.SQL) -> sql.Composed:
        """The template with the name of this origin's trajectories."""
        return template.format(trajectories=self.trajectories)

    def first(self, template: sql.SQL, values: Mapping[str, Any] | None = None) -> Any:
        """First column of the first row of the template's query; None without a row."""
        found = self.connection.execute(self.query(template), values).fetchone()
        return found[0] if found else None


def origins_of(recordings: Recordings) -> tuple[Origin, Origin]:
    """The application's tables, and those of ours that hold what may not be written there."""
    return (
        Origin("application", recordings.application, sql.Identifier("trajectories"), sql.Identifier("llm_call_logs")),
        Origin(
            "ours",
            recordings.ours,
            sql.Identifier("babylon_rl", "trajectories"),
            sql.Identifier("babylon_rl", "llm_call_logs"),
        ),
    )


_COLUMNS = sql.SQL('t."windowId", t."endTime", t."trajectoryId", t.xmin AS row_version, {log_sum}')
_SEEN = sql.SQL("""
    SELECT named, to_char(ended, 'YYYY-MM-DD"T"HH24:00') AS window_id, started, rows, fingerprint, logged, ids
    FROM (
        SELECT coalesce("windowId", '') AS named, date_trunc('hour', "endTime") AS ended, started,
               count(*)::integer AS rows, sum(log_sum)::text AS logged, {ids} AS ids,
               sum(hashtextextended("trajectoryId" || ' ' || row_version::text, 0))::text AS fingerprint
        FROM ({source}) source
        WHERE "endTime" >= '0001-01-01' AND "endTime" < '10000-01-01'
        GROUP BY 1, 2, 3
    ) buckets
""")
# Calls that come after their trajectory belong to what the agent wrote.
_LOG_SUM = sql.SQL("""
    coalesce((SELECT sum(hashtextextended(l."callId" || ' ' || l.xmin::text, 1))
              FROM {call_logs} l WHERE l."trajectoryId" = t."trajectoryId"), 0) AS log_sum
""")
_NO_LOG_SUM = sql.SQL("NULL::bigint AS log_sum")
_IDS, _NO_IDS = sql.SQL('array_agg("trajectoryId")'), sql.SQL("NULL::text[]")


@dataclass(frozen=True)
class Look:
    """A look at an origin, and the known buckets that hold all that it can give, so that one without rows is gone.

    `source`: the rows, with the hour they started in where that tells buckets apart. `calls`: whether calls are looked
    at as well. `by_range`: the scope is a range of names, which two databases may sort differently.
    """

    source: sql.SQL
    scope: sql.SQL
    calls: bool = False
    by_range: bool = False

    def query(self, origin: Origin, with_ids: bool = False) -> sql.Composed:
        """Query of the buckets: named, window_id, started, rows, fingerprint, logged, ids."""
        log_sum = _LOG_SUM.format(call_logs=origin.call_logs) if self.calls else _NO_LOG_SUM
        source = self.source.format(columns=_COLUMNS.format(log_sum=log_sum), trajectories=origin.trajectories)
        return _SEEN.format(ids=_IDS if with_ids else _NO_IDS, source=source)


_THESE = sql.SQL("""SELECT {columns}, '' AS started FROM {trajectories} t WHERE t."windowId" = ANY(%(names)s)""")
_RANGE = sql.SQL("""
    SELECT {columns}, '' AS started FROM {trajectories} t WHERE t."windowId" > %(after)s AND t."windowId" <= %(last)s
""")
_REST = sql.SQL("""SELECT {columns}, '' AS started FROM {trajectories} t WHERE t."windowId" > %(after)s""")
_UNNAMED = sql.SQL("""
    SELECT {columns}, to_char(t."startTime", 'YYYY-MM-DD"T"HH24:00') AS started
    FROM unnest(%(agents)s::text[]) agent
    JOIN {trajectories} t ON t."agentId" = agent AND t."startTime" >= %(since)s AND t."startTime" < %(until)s
    WHERE t."windowId" IS NULL
""")
_IN_THESE = sql.SQL("known.named = ANY(%(names)s) AND known.started = ''")
_IN_RANGE = sql.SQL("known.named > %(after)s AND known.named <= %(last)s AND known.started = ''")
_IN_REST = sql.SQL("known.named > %(after)s AND known.started = ''")
_STARTED = sql.SQL("known.named = '' AND known.started >= %(from)s AND known.started < %(to)s")

LOOK_BACK = Look(_THESE, _IN_THESE, calls=True)
THESE = Look(_THESE, _IN_THESE)
WALK = Look(_RANGE, _IN_RANGE, by_range=True)
WALK_TO_THE_END = Look(_REST, _IN_REST, by_range=True)
UNNAMED_LOOK_BACK = Look(_UNNAMED, _STARTED, calls=True)
UNNAMED_WALK = Look(_UNNAMED, _STARTED)

_COMPARE = sql.SQL("""
    WITH seen AS MATERIALIZED (
        SELECT * FROM unnest(
            %(seen_named)s::text[], %(seen_window_id)s::text[], %(seen_started)s::text[], %(seen_rows)s::integer[],
            %(seen_fingerprint)s::text[], %(seen_calls)s::text[]
        ) bucket(named, window_id, started, rows, fingerprint, calls)
    ), written AS (
        INSERT INTO babylon_rl.recorded_buckets AS known
            (origin, named, window_id, started, rows, fingerprint, calls, seen_at)
        SELECT %(origin)s, named, window_id, started, rows, fingerprint, calls, %(now)s FROM seen
        WHERE NOT EXISTS (
            SELECT FROM babylon_rl.recorded_buckets same
            WHERE same.origin = %(origin)s
                AND (same.named, same.window_id, same.started) = (seen.named, seen.window_id, seen.started)
                AND same.fingerprint = seen.fingerprint
                AND (seen.calls IS NULL OR same.calls IS NOT DISTINCT FROM seen.calls)
        )
        ON CONFLICT (origin, named, window_id, started) DO UPDATE
        SET rows = excluded.rows, fingerprint = excluded.fingerprint, calls = excluded.calls, seen_at = excluded.seen_at
        RETURNING named, window_id, started
    )
    SELECT named, window_id, started, false FROM written
    UNION ALL
    SELECT named, window_id, started, true FROM babylon_rl.recorded_buckets known
    WHERE origin = %(origin)s AND {scope} AND NOT EXISTS (
        SELECT FROM seen
        WHERE (known.named, known.window_id, known.started) = (seen.named, seen.window_id, seen.started)
    )
""")
_FORGET = """
    DELETE FROM babylon_rl.recorded_buckets known
    USING unnest(%(named)s::text[], %(window_id)s::text[], %(started)s::text[]) gone(named, window_id, started)
    WHERE known.origin = %(origin)s
        AND (known.named, known.window_id, known.started) = (gone.named, gone.window_id, gone.started)
"""
_ENDED = sql.SQL("""
    SELECT EXISTS (SELECT FROM {trajectories} WHERE "endTime" >= %(start)s AND "endTime" < %(end)s)
""")
_ANY_CALLS = "SELECT EXISTS (SELECT FROM babylon_rl.recorded_calls)"
RECORDED_CALLS = """
    SELECT bucket, sum(hashtextextended(c.call_id || ' ' || c.xmin::text, 0))::text
    FROM unnest(%(buckets)s::integer[], %(ids)s::text[]) row(bucket, id)
    JOIN babylon_rl.recorded_calls c ON c.trajectory_id = row.id
    GROUP BY bucket
"""


def changed_buckets(
    ours: psycopg.Connection, origin: Origin, look: Look, values: Mapping[str, Any], now: datetime
) -> set[str]:
    """Hours of the buckets that a look finds written, moved or gone since they were last seen; they are remembered."""
    with_ids = look.calls and ours.execute(_ANY_CALLS).fetchone() == (True,)
    seen = origin.connection.execute(look.query(origin, with_ids), values).fetchall()
    arrays = _arrays("seen_", ("named", "window_id", "started", "rows", "fingerprint"), seen)
    calls = _call_digests(ours, seen) if with_ids else [row[5] for row in seen]
    query = _COMPARE.format(scope=look.scope)
    found = ours.execute(query, {**values, **arrays, "seen_calls": calls, "origin": origin.name, "now": now}).fetchall()
    gone = {(named, window_id, started) for named, window_id, started, is_gone in found if is_gone}
    if gone and look.by_range:
        names = sorted({named for named, _, _ in gone})
        there = origin.connection.execute(THESE.query(origin), {"names": names})
        gone -= {(named, window_id, started) for named, window_id, started, *_ in there}
    if gone:
        keys = _arrays("", ("named", "window_id", "started"), sorted(gone))
        ours.execute(_FORGET, {**keys, "origin": origin.name})
    return {window_id for _, window_id, _, is_gone in found if not is_gone} | {window_id for _, window_id, _ in gone}


def anything_recorded(recordings: Recordings, first: str, last: str) -> bool:
    """Whether a row ended in the windows from first to last; there is no index for it, so this reads the tables."""
    start, end = (parse_window_id(window_id).replace(tzinfo=None) for window_id in (first, last))
    values = {"start": start, "end": end + WINDOW_LENGTH}
    return any(origin.first(_ENDED, values) for origin in origins_of(recordings))


def _call_digests(ours: psycopg.Connection, seen: Sequence[tuple[Any, ...]]) -> list[str]:
    """Of each bucket, the sum over its rows' calls: those that their own database logged and those recorded in ours."""
    pairs = [(number, trajectory_id) for number, row in enumerate(seen) for trajectory_id in row[6]]
    recorded = dict(ours.execute(RECORDED_CALLS, _arrays("", ("buckets", "ids"), pairs)).fetchall())
    return [str(int(row[5]) + int(recorded.get(number, 0))) for number, row in enumerate(seen)]


def _arrays(prefix: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {prefix + name: [row[index] for row in rows] for index, name in enumerate(names)}
