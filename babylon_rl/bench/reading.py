"""`babylon-rl bench reading`: recorded rows to scores, against the first system's way and a COPY to nowhere.

Ours is what a run of `scored_trajectories` does with recordings: read, decode, features, score, write.
The COPY is the server's own, of the same columns to /dev/null: no reader can be faster than that.
"""

import time
from collections.abc import Callable, Sequence

import pandas as pd
import psycopg

from babylon_rl.bench.first_system import SCORES, score_as_it_did
from babylon_rl.bench.made_rows import empty, fill_recorded
from babylon_rl.bench.pairs import Compared, Limit, take_turns
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.database.window_rows import encode_rows, write_rows
from babylon_rl.scoring.windows import score_windows
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
# Of the first system's way 3 is wanted; this is the floor.
LEAST_FASTER, MOST_OF_COPY, LEAST_OF_TWO = 2.5, 4.0, 1.3
ONE, TWO, FIRST_SYSTEM, COPY = "one worker", "two workers", "the first system's way", "server COPY to /dev/null"

_COPY = """
    COPY (SELECT "trajectoryId", "agentId", "startTime", "endTime", "windowId", "stepsJson" FROM trajectories)
    TO '/dev/null'
"""


def measure_reading(rows: int, windows: int, pairs: int, say: Callable[[str], None]) -> Compared:
    """Seconds of ours, of the first system's way and of the COPY, on the same rows."""
    window_ids = [shift_window(FIRST, number) for number in range(windows)]
    with scratch_server() as (_, database):
        _fill(database, window_ids, rows)
        with database.connect() as connection:
            connection.execute(SCORES)
        ways = {
            ONE: lambda: _ours(database, window_ids, rows, 1),
            FIRST_SYSTEM: lambda: _theirs(database, window_ids, rows),
            COPY: lambda: _copied(database),
        }
        seconds = take_turns(ways, pairs, say)
    limits = [
        Limit(of=ONE, against=FIRST_SYSTEM, least=LEAST_FASTER),
        Limit(of=ONE, against=COPY, most=MOST_OF_COPY),
    ]
    return Compared(title=_title(rows, windows), rows=rows, seconds=seconds, limits=limits)


def measure_workers(rows: int, windows: int, pairs: int, say: Callable[[str], None]) -> Compared:
    """Seconds of ours with one worker and with two, on the same rows.

    Two pay where a range is long: what the second process imports is imported once, in the round that is not counted.
    """
    window_ids = [shift_window(FIRST, number) for number in range(windows)]
    with scratch_server() as (_, database):
        _fill(database, window_ids, rows)
        ways = {
            ONE: lambda: _ours(database, window_ids, rows, 1),
            TWO: lambda: _ours(database, window_ids, rows, 2),
        }
        seconds = take_turns(ways, pairs, say)
    limits = [Limit(of=TWO, against=ONE, least=LEAST_OF_TWO)]
    return Compared(title=_title(rows, windows), rows=rows, seconds=seconds, limits=limits)


def _title(rows: int, windows: int) -> str:
    return f"{rows:,} recorded rows of 20 steps, {windows} windows"


def _fill(database: Database, window_ids: Sequence[str], rows: int) -> None:
    with database.connect() as connection:
        fill_recorded(connection, window_ids, rows)


def score_and_write(database: Database, window_ids: Sequence[str], workers: int = 1) -> int:
    """What a run of `scored_trajectories` does with recordings that no market was recorded beside; the rows written."""
    outcomes = pd.DataFrame(columns=["window_id", "instrument", "kind", "change", "revision"])
    rows = score_windows(database, window_ids, outcomes, "alpha", workers=workers)
    if rows.failed:
        raise AssertionError(f"windows failed: {dict(rows.failed)}")
    rows = encode_rows(scored_trajectories, rows)
    with database.connect() as connection:
        return write_rows(connection, scored_trajectories, rows).written


def _ours(database: Database, window_ids: Sequence[str], rows: int, workers: int) -> float:
    with database.connect() as connection:
        empty(connection, scored_trajectories)
    begun = time.monotonic()
    written = score_and_write(database, window_ids, workers)
    took = time.monotonic() - begun
    if written != rows:
        raise AssertionError(f"{written} rows were written instead of {rows}")
    return took


def _theirs(database: Database, window_ids: Sequence[str], rows: int) -> float:
    with database.connect() as connection:
        connection.execute("TRUNCATE babylon_rl.first_system_scores")
    begun = time.monotonic()
    written = score_as_it_did(database.url, window_ids)
    took = time.monotonic() - begun
    if written != rows:
        raise AssertionError(f"the first system's way wrote {written} rows instead of {rows}")
    return took


def _copied(database: Database) -> float:
    with psycopg.connect(database.url) as connection:
        begun = time.monotonic()
        connection.execute(_COPY)
        return time.monotonic() - begun
