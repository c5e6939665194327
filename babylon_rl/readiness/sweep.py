"""The hourly sweep: closed windows that nothing requested, in bounded ranges, so that no hour stays unexplained.

An hour in which nothing or too little was recorded is a result, which its row of `windows` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from psycopg import sql
from psycopg.rows import class_row

from babylon_rl.database.connect import Recordings
from babylon_rl.readiness.buckets import origins_of
from babylon_rl.readiness.ledger import Entry, alone, save
from babylon_rl.readiness.requests import SWEEP, RunStates, follow, requested
from babylon_rl.readiness.verdict import Waits
from babylon_rl.windows import shift_window, window_of

MOST_WINDOWS = 168  # a range
MOST_RANGES = 20  # a sweep
FORGOTTEN = timedelta(days=1)  # after which a changed window that no tick has read is taken unread


@dataclass(frozen=True)
class Range:
    """Windows from first to last, both included, that one run shall materialize."""

    first: str
    last: str
    run_key: str


MOST_MISNAMED = 1_000  # rows that name another hour than they ended in, passed over to find the first that does not
# What the buckets do not know yet: the first row that names the hour in which it ended.
_FIRST_NAMED = sql.SQL("""
    SELECT "windowId" FROM (
        SELECT "windowId", "endTime" FROM {trajectories}
        WHERE "windowId" >= %(first)s AND "windowId" <= %(last)s ORDER BY "windowId" LIMIT %(most)s
    ) firsts
    WHERE to_char("endTime", 'YYYY-MM-DD"T"HH24:00') = "windowId" ORDER BY "windowId" LIMIT 1
""")
_FIRST_SEEN = "SELECT min(window_id) FROM babylon_rl.recorded_buckets WHERE window_id >= %(first)s"
# A window that waits without a time set waits for the sweep.
_LEFT_OVER = """
    SELECT hours.window_id, coalesce(r.revision, '') AS revision, coalesce(r.agents, 0) AS agents,
           coalesce(r.state, 'waiting') AS state, coalesce(r.reason, '') AS reason, r.run_key,
           coalesce(r.attempts, 0) AS attempts, r.look_at, coalesce(r.changed_at, %(now)s) AS changed_at
    FROM (
        SELECT to_char(hour, 'YYYY-MM-DD"T"HH24:00') AS window_id
        FROM generate_series(%(first)s::timestamp, %(last)s::timestamp, interval '1 hour') hour
    ) hours
    LEFT JOIN babylon_rl.window_requests r ON r.window_id = hours.window_id
    LEFT JOIN babylon_rl.windows w ON w.window_id = hours.window_id AND w.superseded_at IS NULL
    WHERE (r.window_id IS NULL AND (w.window_id IS NULL OR w.status IN ('open', 'waiting')))
        OR (r.state = 'waiting' AND r.look_at IS NULL)
        OR (r.state = 'changed' AND r.changed_at < %(forgotten)s)
    ORDER BY hours.window_id LIMIT %(most)s
"""


def sweep(recordings: Recordings, now: datetime, waits: Waits, first_window: str, run_states: RunStates) -> list[Range]:
    """Ranges to materialize, oldest first, in the transaction of `recordings.ours`; a tick of the sensor is waited for.

    `first_window`: earlier ones are no partitions. `now` names the runs: a sweep that is tried again asks for the same.
    """
    connection = recordings.ours
    alone(connection, wait=True)
    follow(connection, now, run_states, prefix=SWEEP)
    wait = max(timedelta(minutes=waits.settling_minutes), timedelta(hours=waits.outcome_wait_hours))
    last = shift_window(window_of(now - wait), -1)
    first = first_recorded_window(recordings, first_window, last)
    if first is None or first > last:
        return []
    values = {"first": first, "last": last, "now": now, "forgotten": now - FORGOTTEN}
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        found = cursor.execute(_LEFT_OVER, {**values, "most": MOST_WINDOWS * MOST_RANGES}).fetchall()
    ranges = []
    for entries in _contiguous(found)[:MOST_RANGES]:
        begin, end = entries[0].window_id, entries[-1].window_id
        ranges.append(Range(begin, end, f"{SWEEP}{begin}:{end}:{now:%Y%m%dT%H%M}"))
        # What is not read has no revision: any that the run finds will do.
        read = [replace(e, revision="" if e.state == "changed" else e.revision) for e in entries]
        save(connection, [requested(entry, ranges[-1].run_key, now) for entry in read])
    return ranges


def first_recorded_window(recordings: Recordings, first_window: str, last: str) -> str | None:
    """The earliest window from `first_window` to `last` that something was recorded in, by indexes; None without."""
    values = {"first": first_window, "last": last, "most": MOST_MISNAMED}
    named = [origin.first(_FIRST_NAMED, values) for origin in origins_of(recordings)]
    seen = recordings.ours.execute(_FIRST_SEEN, {"first": first_window}).fetchone()
    return min(filter(None, [*named, *(seen or ())]), default=None)


def _contiguous(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The windows in runs of neighbours, none longer than a range may be."""
    runs: list[list[Entry]] = []
    for entry in entries:
        fits = runs and len(runs[-1]) < MOST_WINDOWS and shift_window(runs[-1][-1].window_id, 1) == entry.window_id
        if fits:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs
