"""`babylon-rl bench listing`: what it takes to list the ready windows where very many were materialized."""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.recording.listing import materialized_windows

MOST_SECONDS = 0.05
MIN_AGENTS = 3
NOW = datetime(2030, 1, 1, tzinfo=UTC)  # after all of the windows

_WINDOWS = """
    INSERT INTO babylon_rl.windows
        (window_id, status, reason, agents, recorded, usable, rejected, trainable, reasons, not_trainable, revision,
         digest, superseded_at)
    SELECT to_char('2024-03-01'::timestamp + n * interval '1 hour', 'YYYY-MM-DD"T"HH24:00'),
           CASE WHEN n %% 10 = 0 THEN 'too_few_agents' ELSE 'ready' END, 'made',
           CASE WHEN n %% 10 = 0 THEN 2 ELSE 20 END, 500, 480, 20, 300,
           '{"invalid_json": 15, "unfinished": 5}', '{"no_llm_call": 180}', md5(n::text), md5(n::text),
           CASE WHEN version < %(versions)s THEN now() END
    FROM generate_series(0, %(windows)s - 1) n, generate_series(1, %(versions)s) version
"""
_REJECTED = """
    INSERT INTO babylon_rl.rejected_trajectories (window_id, trajectory_id, agent_id, reason, detail, digest)
    SELECT to_char('2024-03-01'::timestamp + n %% %(windows)s * interval '1 hour', 'YYYY-MM-DD"T"HH24:00'), 't-' || n,
           'agent-' || n %% 200, 'invalid_json', 'made', md5(n::text)
    FROM generate_series(0, %(rows)s - 1) n
"""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each listing."""

    windows: int
    rejected: int
    found: int
    seconds: list[float]

    @property
    def reached(self) -> bool:
        """Whether the median is within the limit."""
        return statistics.median(self.seconds) <= MOST_SECONDS

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "median": statistics.median(self.seconds), "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        ms = [1000 * seconds for seconds in self.seconds]
        return (
            f"{'reached' if self.reached else 'MISSED'}: listing {self.found:,} ready of {self.windows:,} windows "
            f"beside {self.rejected:,} rejected rows: median {statistics.median(ms):.0f} ms, {min(ms):.0f} - "
            f"{max(ms):.0f} of {len(ms)}, at most {1000 * MOST_SECONDS:.0f}"
        )


def measure_listing(count: int, rejected: int, rounds: int, say: Callable[[str], None]) -> Listed:
    """List the ready windows among so many, each of which was materialized three times."""
    with scratch_server() as (_, database):
        say(f"filling {count:,} windows and {rejected:,} rejected rows")
        with database.connect() as connection:
            connection.execute(_WINDOWS, {"windows": count, "versions": 3})
            connection.execute(_REJECTED, {"windows": count, "rows": rejected})
        with database.connect() as connection:
            connection.execute("ANALYZE babylon_rl.windows, babylon_rl.rejected_trajectories")
        _list_ready(database)
        seconds = []
        for _ in range(rounds):
            begun = time.monotonic()
            found = _list_ready(database)
            seconds.append(time.monotonic() - begun)
    return Listed(windows=count, rejected=rejected, found=found, seconds=seconds)


def _list_ready(database: Database) -> int:
    """The one place that calls what `babylon-rl windows --ready` calls; how many windows are ready."""
    with database.connect() as connection:
        return sum(window.ready for window in materialized_windows(connection, MIN_AGENTS, NOW))
