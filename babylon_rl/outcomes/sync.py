"""Bringing outcomes up to date: the last closed hours, and older windows in which something settled since."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.database.window_rows import WindowError, WindowRows, book_windows
from babylon_rl.outcomes.sources import MOST_WINDOWS, readable
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.windows import shift_window, window_of

# Ids have one form, so that their order as texts is that of time.
_ASKED = """
    SELECT DISTINCT instrument FROM babylon_rl.market_outcomes
    WHERE superseded_at IS NULL AND NOT settled AND kind = 'question' AND window_id COLLATE "C" < %s
"""
_LATE = """
    SELECT DISTINCT window_id FROM babylon_rl.market_outcomes
    WHERE superseded_at IS NULL AND NOT settled AND window_id COLLATE "C" < %(open)s
        AND (kind = 'ticker' OR instrument = ANY(%(resolved)s))
    ORDER BY window_id
"""
_LATE_FROZEN = """
    SELECT window_id, instrument FROM babylon_rl.market_outcomes
    WHERE superseded_at IS NULL AND NOT settled AND kind = 'question' AND window_id = ANY(%s)
"""
_RESOLVED = 'SELECT id FROM "Market" WHERE id = ANY(%s) AND resolved AND resolution IS NOT NULL'
_FROZEN_YES = """
    SELECT "windowId", "predictionMarketId" FROM market_outcomes
    WHERE "predictionMarketId" = ANY(%s) AND upper(trim(outcome)) = 'YES'
"""


@dataclass(frozen=True)
class Synced:
    """What a sync did. `sources`: rows of the windows looked at, by where they come from; `late`: older windows."""

    windows: tuple[str, ...]
    late: tuple[str, ...]
    changed: tuple[str, ...]
    written: int
    sources: dict[str, int]
    unsettled: int
    failed: dict[str, WindowError]


def late_windows(application: psycopg.Connection, ours: psycopg.Connection, now: datetime | None = None) -> list[str]:
    """Windows of ours with rows that are not settled and would be, computed anew: in order.

    A question of theirs has resolved since, or their rows were computed while the hour was open.
    """
    open_hour = window_of(now or datetime.now(UTC))
    asked = sorted(instrument for (instrument,) in ours.execute(_ASKED, (open_hour,)))
    tables = readable(application) if asked else frozenset()
    resolved: list[str] = []
    if "Market" in tables:
        resolved = [market_id for (market_id,) in application.execute(_RESOLVED, (asked,))]
    late = {window_id for (window_id,) in ours.execute(_LATE, {"open": open_hour, "resolved": resolved})}
    if "Market" not in tables and "market_outcomes" in tables:
        known = set(application.execute(_FROZEN_YES, (asked,)))
        unsettled = ours.execute(_LATE_FROZEN, (sorted({w for w, _ in known if w < open_hour}),))
        late |= {window_id for window_id, instrument in unsettled if (window_id, instrument) in known}
    return sorted(late)


def sync_outcomes(
    database: Database,
    hours: int,
    all_unsettled: bool = True,
    now: datetime | None = None,
    progress: Callable[[int, int], None] = lambda done, windows: None,
) -> Synced:
    """Compute and write the outcomes of the last closed hours, and with `all_unsettled` of `late_windows`.

    A chunk of windows is one transaction: what is interrupted is whole as far as it came, and a second run writes
    nothing. The open hour is left alone.
    """
    now = now or datetime.now(UTC)
    open_hour = window_of(now)
    recent = [shift_window(open_hour, -back) for back in range(hours, 0, -1)]
    late: list[str] = []
    if all_unsettled:
        with database.connect_application() as application, database.connect() as ours:
            late = [window_id for window_id in late_windows(application, ours, now) if window_id not in set(recent)]
    windows = sorted({*recent, *late})
    done, changed, written = [], [], 0
    for at in range(0, len(windows), MOST_WINDOWS):
        part = windows[at : at + MOST_WINDOWS]
        rows = outcome_windows(database, part, now)
        new, count = _write(database, rows)
        done.append(rows)
        changed += new
        written += count
        progress(at + len(part), len(windows))
    return Synced(
        windows=tuple(windows),
        late=tuple(late),
        changed=tuple(changed),
        written=written,
        sources=dict(Counter(_source(said) for rows in done for said in rows.frame["source"]).most_common()),
        unsettled=sum(int((~rows.frame["settled"].astype(bool)).sum()) for rows in done),
        failed={window_id: error for rows in done for window_id, error in rows.failed.items()},
    )


def _write(database: Database, rows: WindowRows) -> tuple[Sequence[str], int]:
    """The windows that have other rows than before, and the rows written."""
    with database.connect() as connection:
        replaced = replace_windows(connection, market_outcomes, rows.computed, rows.frame)
        book_windows(connection, market_outcomes.name, rows.computed, rows.failed)
    unchanged = set(replaced.unchanged)
    return [window_id for window_id in sorted(rows.computed) if window_id not in unchanged], replaced.written


def _source(said: str) -> str:
    """The table that a row's source begins with."""
    return said.split(",")[0].split(";")[0]
