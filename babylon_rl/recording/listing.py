"""Windows with their readiness and the reason: as they were materialized, or as the recordings are at this moment.

Both tell the same numbers of the same rows. Rows that belong to no window stand in one entry without a window id.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import psycopg

from babylon_rl.database.connect import NOTHING_MATERIALIZED
from babylon_rl.errors import DatabaseError
from babylon_rl.windows import window_of

if TYPE_CHECKING:
    from babylon_rl.recording.survey import SurveyedRow

NO_WINDOW = "they belong to no window"
TOLD_EVERY = 1000  # rows between two calls of `progress`


class ListedWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window's rows by what they can be used for; `window_id` None: rows that belong to no window.

    `agents`: those with a scorable row. recorded = scorable + sum(rejected), scorable = trainable +
    sum(not_trainable).
    """

    window_id: str | None
    agents: int
    recorded: int
    scorable: int
    trainable: int
    rejected: dict[str, int]
    not_trainable: dict[str, int]
    ready: bool
    reason: str


class WindowTally:
    """Counts of one window's rows, one row after the other."""

    __slots__ = ("agents", "not_trainable", "recorded", "rejected", "trainable")

    def __init__(self) -> None:
        self.agents: set[str] = set()
        self.recorded = 0
        self.trainable = 0
        self.rejected: Counter[str] = Counter()
        self.not_trainable: Counter[str] = Counter()

    def add(self, row: "SurveyedRow") -> None:
        """Count a row of the window."""
        self.recorded += 1
        if row.reason is not None:
            self.rejected[row.reason] += 1
            return
        self.agents.add(row.agent_id)
        if row.not_trainable is None:
            self.trainable += 1
        else:
            self.not_trainable[row.not_trainable] += 1

    def listed(self, window_id: str | None, min_agents: int, open_window: str) -> ListedWindow:
        """The window's entry, as `listed`."""
        return listed(
            window_id,
            len(self.agents),
            self.recorded,
            self.recorded - self.rejected.total(),
            self.trainable,
            self.rejected,
            self.not_trainable,
            min_agents,
            open_window,
        )


def listed(
    window_id: str | None,
    agents: int,
    recorded: int,
    scorable: int,
    trainable: int,
    rejected: dict[str, int],
    not_trainable: dict[str, int],
    min_agents: int,
    open_window: str,
) -> ListedWindow:
    """The entry of a window with these counts. `open_window`: the one that holds the present; those before are over."""
    ready, reason = readiness(window_id, agents, recorded, scorable, min_agents, open_window)
    return ListedWindow(
        window_id=window_id,
        agents=agents,
        recorded=recorded,
        scorable=scorable,
        trainable=trainable,
        rejected=dict(sorted(rejected.items())),
        not_trainable=dict(sorted(not_trainable.items())),
        ready=ready,
        reason=reason,
    )


def readiness(
    window_id: str | None, agents: int, recorded: int, scorable: int, min_agents: int, open_window: str
) -> tuple[bool, str]:
    """Whether a window that is over has so many agents, and the reason for a person."""
    if window_id is None:
        return False, NO_WINDOW
    if window_id >= open_window:  # ids are in the order of time
        return False, "the hour is not over"
    if not scorable:
        return False, f"none of {recorded} recorded trajectories can be used" if recorded else "nothing was recorded"
    if agents < min_agents:
        return False, f"{agents} of at least {min_agents} agents"
    return True, f"{agents} agents"


# --- as materialized ------------------------------------------------------------------------------

# Decoded here: psycopg's own way costs more than the whole query.
_counts = msgspec.json.Decoder(dict[str, int])

# Current rows stand in the partial unique indexes, by window; superseded ones are not touched.
_MATERIALIZED = """
    SELECT window_id, agents, recorded, usable, trainable, reasons::text, not_trainable::text
    FROM babylon_rl.windows
    WHERE superseded_at IS NULL AND window_id >= %(first)s
    UNION ALL
    SELECT NULL, 0, sum(rows)::int, 0, 0, jsonb_object_agg(reason, rows)::text, '{}'
    FROM (
        SELECT reason, count(*) AS rows FROM babylon_rl.rejected_trajectories
        WHERE superseded_at IS NULL AND window_id IS NULL AND refused_for = 'scoring'
            AND (%(first)s = '' OR ended_in >= %(first)s)
        GROUP BY reason
    ) without_window
    HAVING count(*) > 0
"""


def materialized_windows(
    connection: psycopg.Connection, min_agents: int, now: datetime, lookback_hours: float | None = None
) -> list[ListedWindow]:
    """Windows as they were last materialized, by window id, the rows without a window last.

    `lookback_hours`: only windows that end after so many hours before `now`. DatabaseError without our schema.
    """
    there = connection.execute("SELECT to_regclass('babylon_rl.windows')").fetchone()
    if there == (None,):
        raise DatabaseError(NOTHING_MATERIALIZED)
    found = connection.execute(_MATERIALIZED, {"first": first_window(now, lookback_hours) or ""})
    open_window = window_of(now)
    return in_order(
        listed(*counts, _counts.decode(rejected), _counts.decode(not_trainable), min_agents, open_window)
        for *counts, rejected, not_trainable in found.fetchall()
    )


# --- as recorded ----------------------------------------------------------------------------------


def live_windows(
    rows: Iterable["SurveyedRow"], min_agents: int, now: datetime, progress: Callable[[int], None] = lambda _: None
) -> list[ListedWindow]:
    """Windows of the rows that a survey gave, by window id, the rows without a window last.

    `progress` is told the number of rows so far.
    """
    tallies: dict[str | None, WindowTally] = {}
    for number, row in enumerate(rows, start=1):
        if row.window_id not in tallies:
            tallies[row.window_id] = WindowTally()
        tallies[row.window_id].add(row)
        if number % TOLD_EVERY == 0:
            progress(number)
    open_window = window_of(now)
    return in_order(tally.listed(window_id, min_agents, open_window) for window_id, tally in tallies.items())


def first_window(now: datetime, lookback_hours: float | None) -> str | None:
    """The window that was open so many hours before `now`; None for all, and where there is no time so long ago."""
    if lookback_hours is None:
        return None
    try:
        return window_of(now - timedelta(hours=lookback_hours))
    except OverflowError:
        return None


def in_order(windows: Iterable[ListedWindow]) -> list[ListedWindow]:
    """The windows by id, the rows without one last."""
    return sorted(windows, key=lambda one: (one.window_id is None, one.window_id or ""))
