"""The ledger of windows, `window_requests`: its entries, and what the assets' tables say of a window."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class Entry:
    """A window as the ledger knows it. `revision` is empty until the window was read.

    `look_at`: when time may change the state; a window that waits without one is the hourly sweep's.
    """

    window_id: str
    revision: str
    agents: int
    state: str
    reason: str
    run_key: str | None
    attempts: int
    look_at: datetime | None
    changed_at: datetime


_DUE = """
    SELECT window_id, revision, agents, state, reason, run_key, attempts, look_at, changed_at
    FROM babylon_rl.window_requests
    WHERE state <> 'materialized' AND state = %(state)s AND look_at <= %(now)s ORDER BY window_id LIMIT %(most)s
"""
_REQUESTED = """
    SELECT window_id, revision, agents, state, reason, run_key, attempts, look_at, changed_at
    FROM babylon_rl.window_requests WHERE state <> 'materialized' AND state = 'requested' ORDER BY window_id
"""
_SAVE = """
    INSERT INTO babylon_rl.window_requests
        (window_id, revision, agents, state, reason, run_key, attempts, look_at, changed_at)
    VALUES (%(window_id)s, %(revision)s, %(agents)s, %(state)s, %(reason)s, %(run_key)s, %(attempts)s, %(look_at)s,
            %(changed_at)s)
    ON CONFLICT (window_id) DO UPDATE
    SET revision = excluded.revision, agents = excluded.agents, state = excluded.state, reason = excluded.reason,
        run_key = excluded.run_key, attempts = excluded.attempts, look_at = excluded.look_at,
        changed_at = excluded.changed_at
"""
_CHANGED = """
    INSERT INTO babylon_rl.window_requests (window_id, revision, agents, state, reason, look_at, changed_at)
    VALUES (%(window_id)s, '', 0, 'changed', %(reason)s, %(look_at)s, %(now)s)
    ON CONFLICT (window_id) DO UPDATE
    SET state = 'changed', reason = excluded.reason, look_at = excluded.look_at, changed_at = excluded.changed_at
"""
# A group that does not say what it was built from is believed.
_MATERIALIZED = """
    SELECT w.window_id, w.revision, w.agents FROM babylon_rl.windows w
    JOIN babylon_rl.art_groups g ON g.window_id = w.window_id AND g.superseded_at IS NULL
    WHERE w.window_id = ANY(%(window_ids)s) AND w.superseded_at IS NULL AND w.status NOT IN ('open', 'waiting')
        AND (g.window_revision IS NULL OR g.window_revision = w.revision)
        AND NOT EXISTS (
            SELECT FROM babylon_rl.window_failures f
            WHERE f.window_id = w.window_id AND f.resolved_at IS NULL
                AND f.asset IN
                    ('windows', 'market_outcomes', 'scored_trajectories', 'judge_calibration', 'art_groups')
        )
"""
_FAILURES = """
    SELECT DISTINCT ON (window_id) window_id, asset || ': ' || detail FROM babylon_rl.window_failures
    WHERE window_id = ANY(%(window_ids)s) AND resolved_at IS NULL ORDER BY window_id, failed_at
"""
_WAITING = """
    SELECT count(*) OVER (), window_id, state, reason FROM babylon_rl.window_requests
    WHERE state <> 'materialized' ORDER BY window_id DESC LIMIT %(most)s
"""


def alone(connection: psycopg.Connection, *, wait: bool) -> bool:
    """Keep every other tick out until the transaction ends; False where one is at work and none is waited for."""
    if wait:
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('babylon_rl.readiness', 0))")
        return True
    found = connection.execute("SELECT pg_try_advisory_xact_lock(hashtextextended('babylon_rl.readiness', 0))")
    return bool((found.fetchone() or (False,))[0])


def due_entries(connection: psycopg.Connection, state: str, now: datetime, most: int) -> list[Entry]:
    """Windows in the state whose time has come, oldest first."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(_DUE, {"state": state, "now": now, "most": most}).fetchall()


def requested_entries(connection: psycopg.Connection) -> list[Entry]:
    """Windows that were requested and not heard of since; bounded, as requests are."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(_REQUESTED).fetchall()


def save(connection: psycopg.Connection, entries: Iterable[Entry]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_SAVE, [vars(entry) for entry in entries])


def mark_changed(connection: psycopg.Connection, windows: Iterable[tuple[str, str, datetime]], now: datetime) -> None:
    """Windows, with a reason and when they are to be read. What was known of their revision and requests stays."""
    rows = [{"window_id": w, "reason": reason, "look_at": at, "now": now} for w, reason, at in windows]
    with connection.cursor() as cursor:
        cursor.executemany(_CHANGED, rows)


def materialized(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Revision and agents of the windows that were materialized to the end, after their hour, without a failure."""
    rows = connection.execute(_MATERIALIZED, {"window_ids": list(window_ids)})
    return {window_id: (revision, agents) for window_id, revision, agents in rows}


def failures(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, str]:
    """What failed in each window, in one line, where something did."""
    rows = connection.execute(_FAILURES, {"window_ids": list(window_ids)})
    return {window_id: said.splitlines()[0][:200] for window_id, said in rows}


def confirmed(entry: Entry, found: tuple[str, int] | None, now: datetime) -> Entry | None:
    """The entry as materialized, where the tables hold its revision (or any, while it was never read)."""
    if found is None or (entry.revision and entry.revision != found[0]):
        return None
    reason = f"materialized, {found[1]} agents"
    return replace(
        entry, revision=found[0], agents=found[1], state="materialized", reason=reason, look_at=None, changed_at=now
    )


def waiting_lines(connection: psycopg.Connection, most: int = 3) -> list[str]:
    """What a person reads of the windows that are not known to be up to date: how many, and the latest of them."""
    rows: list[tuple[Any, ...]] = connection.execute(_WAITING, {"most": most}).fetchall()
    if not rows:
        return []
    return [f"{rows[0][0]} windows are not up to date", *(f"{w} {state}: {reason}" for _, w, state, reason in rows)]
