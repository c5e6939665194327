"""Which windows changed since the last look at the recordings, found through the indexes that their tables have.

A row counts in the hour in which it ended, whatever it names, and that hour alone is told of a change. A row whose name
is off the hour is of no window; the hour in which it ended tells of it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.errors import WindowIdError
from babylon_rl.readiness.buckets import (
    LOOK_BACK,
    UNNAMED_LOOK_BACK,
    UNNAMED_WALK,
    WALK,
    WALK_TO_THE_END,
    Look,
    Origin,
    changed_buckets,
    origins_of,
)
from babylon_rl.windows import format_window_id, parse_window_id, shift_window, window_of

TICKS_A_ROUND = 50  # ticks come once a minute, a full comparison once an hour, and no slice is quite full
LEAST_SLICE, MOST_SLICE = 2_000, 50_000  # rows of a table that the full comparison looks at in a tick
MOST_STEPS = 20  # ranges of starting hours that a tick tries for rows without an id
LONGEST_STEP = 24 * 366  # hours


@dataclass(frozen=True)
class Walk:
    """Where the full comparison stands: the last name that was compared, and the next starting hour of rows without.

    `hours`: width of the next range of starting hours. `ours`: the same of our own table, None at its start.
    """

    named: str = ""
    started: str = ""
    hours: int = 24
    ours: "Walk | None" = None

    @classmethod
    def of(cls, cursor: str | None) -> "Walk":
        """From a sensor's cursor; from the start where there is none or it is another sensor's."""
        try:
            found = json.loads(cursor or "{}")
            ours = found.get("ours")
            return replace(cls._read(found), ours=cls._read(ours) if ours else None)
        except (ValueError, TypeError, AttributeError, WindowIdError):
            return cls()

    @classmethod
    def _read(cls, found: dict[str, Any]) -> "Walk":
        walk = cls(str(found.get("named", "")), str(found.get("started", "")), int(found.get("hours", 24)))
        _hour(walk.started)
        return replace(walk, hours=min(max(walk.hours, 1), LONGEST_STEP))

    def cursor(self) -> str:
        return json.dumps(self._told())

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = {"named": self.named, "started": self.started, "hours": self.hours}
        return {**told, "ours": self.ours._told()} if self.ours else told


# The smallest value after another, again and again: as many looks into an index as there are agents.
AGENTS = sql.SQL("""
    WITH RECURSIVE found AS (
        (SELECT "agentId" FROM {trajectories} WHERE "windowId" IS NULL ORDER BY "windowId", "agentId" LIMIT 1)
        UNION ALL
        SELECT (SELECT t."agentId" FROM {trajectories} t WHERE t."windowId" IS NULL AND t."agentId" > found."agentId"
                ORDER BY t."windowId", t."agentId" LIMIT 1)
        FROM found WHERE found."agentId" IS NOT NULL
    )
    SELECT "agentId" FROM found WHERE "agentId" IS NOT NULL
""")
SLICE_END = sql.SQL("""
    SELECT "windowId" FROM {trajectories} WHERE "windowId" > %(after)s ORDER BY "windowId" OFFSET %(rows)s LIMIT 1
""")
NEXT_START = sql.SQL("""
    SELECT min(first) FROM unnest(%(agents)s::text[]) agent CROSS JOIN LATERAL (
        SELECT "startTime" AS first FROM {trajectories}
        WHERE "agentId" = agent AND "startTime" >= %(since)s AND "startTime" < %(until)s
        ORDER BY "agentId", "startTime" LIMIT 1
    ) next
""")
# Rows with an id count as well: the index on starting times leads to them too.
ROWS_STARTED = sql.SQL("""
    SELECT count(*) FROM (
        SELECT FROM unnest(%(agents)s::text[]) agent CROSS JOIN LATERAL (
            SELECT FROM {trajectories}
            WHERE "agentId" = agent AND "startTime" >= %(since)s AND "startTime" < %(until)s LIMIT %(most)s
        ) started LIMIT %(most)s
    ) counted
""")
MISNAMED_NAMED = sql.SQL("""
    SELECT b.window_id, t."trajectoryId"
    FROM unnest(%(named)s::text[], %(window_ids)s::text[]) b(named, window_id)
    JOIN {trajectories} t ON t."windowId" = b.named AND t."endTime" >= b.window_id::timestamp
        AND t."endTime" < b.window_id::timestamp + interval '1 hour'
""")
MISNAMED_UNNAMED = sql.SQL("""
    SELECT b.window_id, t."trajectoryId"
    FROM unnest(%(started)s::text[], %(window_ids)s::text[]) b(started, window_id)
    CROSS JOIN unnest(%(agents)s::text[]) agent
    JOIN {trajectories} t ON t."agentId" = agent AND t."startTime" >= b.started::timestamp
        AND t."startTime" < b.started::timestamp + interval '1 hour'
    WHERE t."windowId" IS NULL
        AND t."endTime" >= b.window_id::timestamp AND t."endTime" < b.window_id::timestamp + interval '1 hour'
""")
# By the server's estimate: counting takes longer.
_ESTIMATE = "SELECT reltuples FROM pg_class WHERE oid = %s::regclass"
_NOTHING_OF_OURS = """
    SELECT NOT EXISTS (SELECT FROM babylon_rl.trajectories)
        AND NOT EXISTS (SELECT FROM babylon_rl.recorded_buckets WHERE origin = 'ours')
"""
_KNOWN_ELSEWHERE = """
    SELECT named, window_id, started FROM babylon_rl.recorded_buckets
    WHERE window_id = ANY(%(window_ids)s) AND origin = %(origin)s AND (named <> window_id OR started <> '')
"""
_FIRST, _END = datetime(1, 1, 1), datetime(9999, 12, 31)  # rows that started or ended outside have no window


def changed_windows(recordings: Recordings, walk: Walk, now: datetime, look_back_hours: int) -> tuple[list[str], Walk]:
    """Windows in which a row was written, moved or deleted since the last look, sorted; where the walk goes on.

    What is seen is remembered in the transaction of `recordings.ours`. A tick looks at the windows of the look-back,
    at rows without an id that started in it, and at the next slice of everything else.
    """
    through_indexes(recordings)
    application, ours = origins_of(recordings)
    found, on = _look(recordings.ours, application, walk, now, look_back_hours)
    if recordings.ours.execute(_NOTHING_OF_OURS).fetchone() == (True,):
        return sorted(found), replace(on, ours=None)
    of_ours, ours_on = _look(recordings.ours, ours, walk.ours or Walk(), now, look_back_hours)
    return sorted(found | of_ours), replace(on, ours=None if ours_on == Walk() else ours_on)


def _look(
    ours: psycopg.Connection, origin: Origin, walk: Walk, now: datetime, look_back_hours: int
) -> tuple[set[str], Walk]:
    """As `changed_windows`, of one table."""
    table = Table(ours, origin, now)
    names = [shift_window(window_of(now), -hour) for hour in range(look_back_hours + 1)]
    found = table.changed(LOOK_BACK, {"names": names})
    agents = _agents(origin)
    since = parse_window_id(names[-1]).replace(tzinfo=None)
    found |= table.unnamed(UNNAMED_LOOK_BACK, agents, since, since, _END)
    rows = _slice_rows(origin)
    named, walk = _walk_named(table, walk, rows)
    unnamed, walk = _walk_unnamed(table, walk, agents, rows)
    return found | named | unnamed, walk


@dataclass(frozen=True)
class Table:
    """A table that is looked at, and the database of ours in which what is seen there is remembered."""

    ours: psycopg.Connection
    origin: Origin
    now: datetime

    def changed(self, look: Look, values: dict[str, Any]) -> set[str]:
        return changed_buckets(self.ours, self.origin, look, values, self.now)

    def unnamed(
        self, look: Look, agents: list[str], known_from: datetime, since: datetime, until: datetime
    ) -> set[str]:
        """Compare rows that started from `since` to `until`; those known from `known_from` on and not seen are gone."""
        started = {"from": _started(known_from), "to": _started(until)}
        return self.changed(look, {"agents": agents, "since": since, "until": until, **started})


def _agents(origin: Origin) -> list[str]:
    """Agents with a row that has no id."""
    return [agent for (agent,) in origin.connection.execute(origin.query(AGENTS))]


def _slice_rows(origin: Origin) -> int:
    """Rows that a tick compares, so that a round takes an hour."""
    name = origin.trajectories.as_string(origin.connection)
    found = origin.connection.execute(_ESTIMATE, (name,)).fetchone()
    estimate = int(found[0]) if found else 0
    return min(max(LEAST_SLICE, -(-estimate // TICKS_A_ROUND)), MOST_SLICE)


def _walk_named(table: Table, walk: Walk, rows: int) -> tuple[set[str], Walk]:
    """Compare the next names; all rows of a name are compared at once, however many they are."""
    found: set[str] = set()
    if not walk.named:
        found |= table.changed(LOOK_BACK, {"names": [""]})
    end = table.origin.first(SLICE_END, {"after": walk.named, "rows": rows})
    if end is None:
        found |= table.changed(WALK_TO_THE_END, {"after": walk.named})
    else:
        found |= table.changed(WALK, {"after": walk.named, "last": end})
    return found, replace(walk, named=end or "")


def _walk_unnamed(table: Table, walk: Walk, agents: list[str], rows: int) -> tuple[set[str], Walk]:
    """Compare rows without an id by ranges of the hour in which they started, as many as fit into a slice."""
    found: set[str] = set()
    since, left = _hour(walk.started), rows
    for _ in range(MOST_STEPS):
        first = _next_start(table.origin, agents, since)
        if first is None:  # what is known to have started later is gone
            found |= table.unnamed(UNNAMED_WALK, [], since, since, _END)
            return found, replace(walk, started="")
        until = min(first, _END - timedelta(hours=walk.hours)) + timedelta(hours=walk.hours)
        values = {"agents": agents, "since": first, "until": until, "most": left + 1}
        started = table.origin.first(ROWS_STARTED, values)
        if started > left and walk.hours > 1:
            if left < rows:
                break
            walk = replace(walk, hours=max(1, walk.hours // 2))
            continue
        found |= table.unnamed(UNNAMED_WALK, agents, since, first, until)
        since, left = until, left - started
        if started > rows // 4:  # the next range as wide as fills a slice, if rows lie as they do here
            walk = replace(walk, hours=min(max(1, walk.hours * rows // (started + started // 16)), LONGEST_STEP))
        else:
            walk = replace(walk, hours=min(walk.hours * 4, LONGEST_STEP))
        if left < rows // 4:
            break
    return found, replace(walk, started=_started(since))


def _next_start(origin: Origin, agents: list[str], since: datetime) -> datetime | None:
    first = origin.first(NEXT_START, {"agents": agents, "since": since, "until": _END})
    return None if first is None else first.replace(minute=0, second=0, microsecond=0)


def _hour(started: str) -> datetime:
    return parse_window_id(started).replace(tzinfo=None) if started else _FIRST


def _started(hour: datetime) -> str:
    return format_window_id(hour.replace(tzinfo=UTC))


def through_indexes(recordings: Recordings) -> None:
    """Have the transactions' queries planned for indexes: a table that was never analyzed would be read whole."""
    for connection in dict.fromkeys((recordings.application, recordings.ours)):
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL jit = off")  # compiling takes longer than these queries do


def misnamed(recordings: Recordings, window_ids: Sequence[str]) -> dict[str, list[str]]:
    """Trajectory ids by window of the rows that ended in it and name no window or another, as far as they were seen.

    The tables have no index on when a row ended; the buckets know where to look.
    """
    through_indexes(recordings)
    found: dict[str, dict[str, None]] = {window_id: {} for window_id in window_ids}
    for origin in origins_of(recordings):
        values = {"window_ids": list(window_ids), "origin": origin.name}
        known = recordings.ours.execute(_KNOWN_ELSEWHERE, values).fetchall()
        for window_id, trajectory_id in _rows_of(origin, known):
            found[window_id][trajectory_id] = None
    return {window_id: list(ids) for window_id, ids in found.items()}


def _rows_of(origin: Origin, buckets: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Window and trajectory id of the rows of these buckets."""
    named = [(name, window_id) for name, window_id, started in buckets if not started]
    unnamed = [(started, window_id) for _, window_id, started in buckets if started]
    rows: list[tuple[str, str]] = []
    if named:
        values = {"named": [name for name, _ in named], "window_ids": [window_id for _, window_id in named]}
        rows += origin.connection.execute(origin.query(MISNAMED_NAMED), values)
    if unnamed:
        values = {"started": [start for start, _ in unnamed], "window_ids": [window_id for _, window_id in unnamed]}
        rows += origin.connection.execute(origin.query(MISNAMED_UNNAMED), {**values, "agents": _agents(origin)})
    return rows
