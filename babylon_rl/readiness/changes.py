"""Which windows changed since the last look at the application's table, found through the indexes that it has.

Rows are compared by bucket: the rows that name one window and ended in one hour. A bucket's fingerprint is a sum over
its rows' `xmin`, which any write of a row changes whoever made it, so that no time stamp is believed and no large text
is read. Rows without a `windowId` have no such index: their buckets also hold the hour in which they started, so that
a range of `(agentId, startTime)` finds whole buckets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from babylon_rl.errors import WindowIdError
from babylon_rl.windows import format_window_id, parse_window_id, shift_window, window_of

TICKS_A_ROUND = 50  # ticks come once a minute, a full comparison once an hour, and no slice is quite full
LEAST_SLICE, MOST_SLICE = 2_000, 50_000  # rows that the full comparison looks at in a tick
MOST_STEPS = 20  # ranges of starting hours that a tick tries for rows without an id
LONGEST_STEP = 24 * 366  # hours


@dataclass(frozen=True)
class Walk:
    """Where the full comparison stands: the last name that was compared, and the next starting hour of rows without.

    `hours`: width of the next range of starting hours.
    """

    named: str = ""
    started: str = ""
    hours: int = 24

    @classmethod
    def of(cls, cursor: str | None) -> "Walk":
        """From a sensor's cursor; from the start where there is none or it is another sensor's."""
        try:
            found = json.loads(cursor or "{}")
            walk = cls(str(found.get("named", "")), str(found.get("started", "")), int(found.get("hours", 24)))
            _hour(walk.started)
        except (ValueError, TypeError, AttributeError, WindowIdError):
            return cls()
        return replace(walk, hours=min(max(walk.hours, 1), LONGEST_STEP))

    def cursor(self) -> str:
        return json.dumps({"named": self.named, "started": self.started, "hours": self.hours})


# {source}: rows to compare with their starting hour and the digest of their calls; {scope}: the known buckets that
# hold all that the source can give, so that one without rows is gone.
_COMPARE = sql.SQL("""
    WITH seen AS MATERIALIZED (
        SELECT named, to_char(ended, 'YYYY-MM-DD"T"HH24:00') AS window_id, started, rows, fingerprint, calls
        FROM (
            SELECT coalesce("windowId", '') AS named, date_trunc('hour', "endTime") AS ended, started,
                   count(*)::integer AS rows, sum(call_sum)::text AS calls,
                   sum(hashtextextended("trajectoryId" || ' ' || row_version::text, 0))::text AS fingerprint
            FROM ({source}) source
            WHERE "endTime" >= '0001-01-01' AND "endTime" < '10000-01-01'
            GROUP BY 1, 2, 3
        ) buckets
    ), written AS (
        INSERT INTO babylon_rl.recorded_buckets AS known (named, window_id, started, rows, fingerprint, calls, seen_at)
        SELECT named, window_id, started, rows, fingerprint, calls, %(now)s FROM seen
        WHERE NOT EXISTS (
            SELECT FROM babylon_rl.recorded_buckets same
            WHERE (same.named, same.window_id, same.started) = (seen.named, seen.window_id, seen.started)
                AND same.fingerprint = seen.fingerprint
                AND (seen.calls IS NULL OR same.calls IS NOT DISTINCT FROM seen.calls)
        )
        ON CONFLICT (named, window_id, started) DO UPDATE
        SET rows = excluded.rows, fingerprint = excluded.fingerprint, calls = excluded.calls, seen_at = excluded.seen_at
        RETURNING named, window_id
    ), gone AS (
        DELETE FROM babylon_rl.recorded_buckets known
        WHERE {scope} AND NOT EXISTS (
            SELECT FROM seen
            WHERE (known.named, known.window_id, known.started) = (seen.named, seen.window_id, seen.started)
        )
        RETURNING named, window_id
    )
    SELECT named, window_id FROM written UNION SELECT named, window_id FROM gone
""")
_HOUR_OF_START = sql.SQL("""to_char(t."startTime", 'YYYY-MM-DD"T"HH24:00') AS started""")
_NO_CALLS = sql.SQL("NULL::bigint AS call_sum")
# Calls that come after their trajectory belong to what the agent wrote; both tables have an index on its id.
_CALLS = sql.SQL("""
    coalesce((SELECT sum(hashtextextended(c.call_id || ' ' || c.xmin::text, 0))
              FROM babylon_rl.recorded_calls c WHERE c.trajectory_id = t."trajectoryId"), 0)
    + coalesce((SELECT sum(hashtextextended(l."callId" || ' ' || l.xmin::text, 1))
                FROM llm_call_logs l WHERE l."trajectoryId" = t."trajectoryId"), 0) AS call_sum
""")
_NAMED = sql.SQL("""
    SELECT t."windowId", t."endTime", t."trajectoryId", t.xmin AS row_version, '' AS started, {calls}
    FROM trajectories t WHERE {names}
""")
_UNNAMED = sql.SQL("""
    SELECT t."windowId", t."endTime", t."trajectoryId", t.xmin AS row_version, {started}, {calls}
    FROM unnest(%(agents)s::text[]) agent
    JOIN trajectories t ON t."agentId" = agent AND t."startTime" >= %(since)s AND t."startTime" < %(until)s
    WHERE t."windowId" IS NULL
""")
_THESE = sql.SQL('t."windowId" = ANY(%(names)s)')
_RANGE = sql.SQL('t."windowId" > %(after)s AND t."windowId" <= %(last)s')

LOOK_BACK = _COMPARE.format(
    source=_NAMED.format(calls=_CALLS, names=_THESE),
    scope=sql.SQL("known.named = ANY(%(names)s) AND known.started = ''"),
)
WALK = _COMPARE.format(
    source=_NAMED.format(calls=_NO_CALLS, names=_RANGE),
    scope=sql.SQL("known.named > %(after)s AND known.named <= %(last)s AND known.started = ''"),
)
_STARTS = sql.SQL("known.named = '' AND known.started >= %(from)s AND known.started < %(to)s")
UNNAMED_LOOK_BACK = _COMPARE.format(source=_UNNAMED.format(started=_HOUR_OF_START, calls=_CALLS), scope=_STARTS)
UNNAMED_WALK = _COMPARE.format(source=_UNNAMED.format(started=_HOUR_OF_START, calls=_NO_CALLS), scope=_STARTS)

# The smallest value after another, again and again: as many looks into an index as there are agents.
AGENTS = """
    WITH RECURSIVE found AS (
        (SELECT "agentId" FROM trajectories WHERE "windowId" IS NULL ORDER BY "windowId", "agentId" LIMIT 1)
        UNION ALL
        SELECT (SELECT t."agentId" FROM trajectories t WHERE t."windowId" IS NULL AND t."agentId" > found."agentId"
                ORDER BY t."windowId", t."agentId" LIMIT 1)
        FROM found WHERE found."agentId" IS NOT NULL
    )
    SELECT "agentId" FROM found WHERE "agentId" IS NOT NULL
"""
SLICE_END = """
    SELECT "windowId" FROM trajectories WHERE "windowId" > %(after)s ORDER BY "windowId" OFFSET %(rows)s LIMIT 1
"""
LAST_NAME = """
    SELECT greatest((SELECT max("windowId") FROM trajectories), (SELECT max(named) FROM babylon_rl.recorded_buckets))
"""
NEXT_START = """
    SELECT min(first) FROM unnest(%(agents)s::text[]) agent CROSS JOIN LATERAL (
        SELECT "startTime" AS first FROM trajectories
        WHERE "agentId" = agent AND "startTime" >= %(since)s AND "startTime" < %(until)s
        ORDER BY "agentId", "startTime" LIMIT 1
    ) next
"""
# Rows with an id count as well: the index on starting times leads to them too.
ROWS_STARTED = """
    SELECT count(*) FROM (
        SELECT FROM unnest(%(agents)s::text[]) agent CROSS JOIN LATERAL (
            SELECT FROM trajectories
            WHERE "agentId" = agent AND "startTime" >= %(since)s AND "startTime" < %(until)s LIMIT %(most)s
        ) started LIMIT %(most)s
    ) counted
"""
MISNAMED_NAMED = """
    SELECT b.window_id, t."trajectoryId" FROM babylon_rl.recorded_buckets b
    JOIN trajectories t ON t."windowId" = b.named AND t."endTime" >= b.window_id::timestamp
        AND t."endTime" < b.window_id::timestamp + interval '1 hour'
    WHERE b.window_id = ANY(%(window_ids)s) AND b.started = '' AND b.named <> b.window_id
"""
MISNAMED_UNNAMED = """
    SELECT b.window_id, t."trajectoryId" FROM babylon_rl.recorded_buckets b
    CROSS JOIN unnest(%(agents)s::text[]) agent
    JOIN trajectories t ON t."agentId" = agent AND t."startTime" >= b.started::timestamp
        AND t."startTime" < b.started::timestamp + interval '1 hour'
    WHERE b.window_id = ANY(%(window_ids)s) AND b.named = '' AND b.started <> '' AND t."windowId" IS NULL
        AND t."endTime" >= b.window_id::timestamp AND t."endTime" < b.window_id::timestamp + interval '1 hour'
"""
_FIRST, _END = datetime(1, 1, 1), datetime(9999, 12, 31)  # rows that started or ended outside have no window


def changed_windows(
    connection: psycopg.Connection, walk: Walk, now: datetime, look_back_hours: int
) -> tuple[list[str], Walk]:
    """Windows in which a row was written, moved or deleted since the last look, sorted; where the walk goes on.

    What is seen is remembered in the caller's transaction. A tick looks at the windows of the look-back, at rows
    without an id that started in it, and at the next slice of everything else.
    """
    through_indexes(connection)
    found = _recent(connection, now, look_back_hours)
    agents = [agent for (agent,) in connection.execute(AGENTS)]
    since = parse_window_id(shift_window(window_of(now), -look_back_hours)).replace(tzinfo=None)
    found |= _unnamed(connection, UNNAMED_LOOK_BACK, agents, since, since, _END, now)
    rows = _slice_rows(connection)
    named, walk = _walk_named(connection, walk, rows, now)
    unnamed, walk = _walk_unnamed(connection, walk, agents, rows, now)
    return sorted(_affected(found | named | unnamed)), walk


def _recent(connection: psycopg.Connection, now: datetime, hours: int) -> set[tuple[str, str]]:
    names = [shift_window(window_of(now), -hour) for hour in range(hours + 1)]
    return set(connection.execute(LOOK_BACK, {"names": names, "now": now}).fetchall())


def _slice_rows(connection: psycopg.Connection) -> int:
    """Rows that a tick compares, so that a round takes an hour. By the server's estimate: counting takes longer."""
    found = connection.execute("SELECT reltuples FROM pg_class WHERE oid = 'trajectories'::regclass").fetchone()
    estimate = int(found[0]) if found else 0
    return min(max(LEAST_SLICE, -(-estimate // TICKS_A_ROUND)), MOST_SLICE)


def _walk_named(
    connection: psycopg.Connection, walk: Walk, rows: int, now: datetime
) -> tuple[set[tuple[str, str]], Walk]:
    """Compare the next names; all rows of a name are compared at once, however many they are."""
    found: set[tuple[str, str]] = set()
    if not walk.named:
        found |= set(connection.execute(LOOK_BACK, {"names": [""], "now": now}).fetchall())
    end = connection.execute(SLICE_END, {"after": walk.named, "rows": rows}).fetchone()
    last = end or connection.execute(LAST_NAME).fetchone()
    if last and last[0]:
        found |= set(connection.execute(WALK, {"after": walk.named, "last": last[0], "now": now}).fetchall())
    return found, replace(walk, named=end[0] if end else "")


def _walk_unnamed(
    connection: psycopg.Connection, walk: Walk, agents: list[str], rows: int, now: datetime
) -> tuple[set[tuple[str, str]], Walk]:
    """Compare rows without an id by ranges of the hour in which they started, as many as fit into a slice."""
    found: set[tuple[str, str]] = set()
    since, left = _hour(walk.started), rows
    for _ in range(MOST_STEPS):
        first = _next_start(connection, agents, since)
        if first is None:  # what is known to have started later is gone
            found |= _unnamed(connection, UNNAMED_WALK, [], since, since, _END, now)
            return found, replace(walk, started="")
        until = min(first, _END - timedelta(hours=walk.hours)) + timedelta(hours=walk.hours)
        started = _rows_started(connection, agents, first, until, left)
        if started > left and walk.hours > 1:
            if left < rows:
                break
            walk = replace(walk, hours=max(1, walk.hours // 2))
            continue
        found |= _unnamed(connection, UNNAMED_WALK, agents, since, first, until, now)
        since, left = until, left - started
        if started > rows // 4:  # the next range as wide as fills a slice, if rows lie as they do here
            walk = replace(walk, hours=min(max(1, walk.hours * rows // (started + started // 16)), LONGEST_STEP))
        else:
            walk = replace(walk, hours=min(walk.hours * 4, LONGEST_STEP))
        if left < rows // 4:
            break
    return found, replace(walk, started=_started(since))


def _next_start(connection: psycopg.Connection, agents: list[str], since: datetime) -> datetime | None:
    found = connection.execute(NEXT_START, {"agents": agents, "since": since, "until": _END}).fetchone()
    first = found[0] if found else None
    return None if first is None else first.replace(minute=0, second=0, microsecond=0)


def _rows_started(
    connection: psycopg.Connection, agents: list[str], since: datetime, until: datetime, most: int
) -> int:
    values = {"agents": agents, "since": since, "until": until, "most": most + 1}
    found = connection.execute(ROWS_STARTED, values).fetchone()
    return found[0] if found else 0


def _unnamed(
    connection: psycopg.Connection,
    comparison: sql.Composed,
    agents: list[str],
    known_from: datetime,
    since: datetime,
    until: datetime,
    now: datetime,
) -> set[tuple[str, str]]:
    """Compare rows that started from `since` to `until`; those known from `known_from` on and not seen are gone."""
    values = {"agents": agents, "since": since, "until": until, "from": _started(known_from), "to": _started(until)}
    return set(connection.execute(comparison, {**values, "now": now}).fetchall())


def _hour(started: str) -> datetime:
    return parse_window_id(started).replace(tzinfo=None) if started else _FIRST


def _started(hour: datetime) -> str:
    return format_window_id(hour.replace(tzinfo=UTC))


def _affected(buckets: set[tuple[str, str]]) -> set[str]:
    """The windows whose counts a bucket enters: the one it ended in, and the one it names, where it is rejected."""
    affected = {window_id for _, window_id in buckets}
    for named, window_id in buckets:
        if named != window_id and _is_window(named):
            affected.add(named)
    return affected


def _is_window(text: str) -> bool:
    try:
        parse_window_id(text)
    except WindowIdError:
        return False
    return True


def through_indexes(connection: psycopg.Connection) -> None:
    """Have the transaction's queries planned for indexes: a table that was never analyzed would be read whole."""
    connection.execute("SET LOCAL enable_seqscan = off")
    connection.execute("SET LOCAL jit = off")  # compiling takes longer than these queries do


def misnamed(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, list[str]]:
    """Trajectory ids by window of the rows that ended in it and name no window or another, as far as they were seen.

    The table has no index on when a row ended; the buckets know where to look.
    """
    through_indexes(connection)
    values = {"window_ids": list(window_ids), "agents": [agent for (agent,) in connection.execute(AGENTS)]}
    rows = [*connection.execute(MISNAMED_NAMED, values), *connection.execute(MISNAMED_UNNAMED, values)]
    found: dict[str, list[str]] = {window_id: [] for window_id in window_ids}
    for window_id, trajectory_id in rows:
        found[window_id].append(trajectory_id)
    return found
