"""What a tick of the readiness sensor costs on a large table of the application's, on a server of its own.

The table is filled by one statement and the ledger is primed by another: reading each window once would take hours and
is not what is measured.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import psutil
import psycopg

from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.readiness.changes import Walk
from babylon_rl.readiness.requests import Tick, tick
from babylon_rl.readiness.verdict import Waits
from babylon_rl.windows import format_window_id

NOW = datetime(2025, 6, 1, 10, 30, tzinfo=UTC)
MOST_SECONDS = 0.3  # a tick when nothing changed
MOST_GROWTH = 16_000_000  # bytes of memory over all measured ticks
LEAST_TICKS = 10
LOOK_BACK_HOURS = 48
FIRST = "0001-01-01T00:00"
AGENTS = 200

_AGENTS = """
    INSERT INTO "User" (id, "updatedAt") SELECT 'agent-' || n, now() FROM generate_series(0, %(agents)s - 1) n
"""
_ROWS = """
    INSERT INTO trajectories
        (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "stepsJson",
         "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
         "finalPnL", "createdAt", "updatedAt")
    SELECT n::text, 't-' || n, 'agent-' || n %% %(agents)s, hour + interval '1 minute', hour + interval '50 minutes', 1,
           CASE WHEN %(named)s THEN to_char(hour, 'YYYY-MM-DD"T"HH24:00') END,
           '[{"stepNumber": 0, "timestamp": 0, "environmentState": {"agentBalance": 1000, "agentPnL": 0}, '
           '"providerAccesses": [], "llmCalls": [], "action": {"actionType": "hold", "parameters": {}, '
           '"success": true}, "reward": 0}]',
           '{}', '{}', '{}', 0, 1, 'completed', 1.0, hour, hour
    FROM (
        SELECT n, %(last)s::timestamp - (%(windows)s - 1 - n %% %(windows)s) * interval '1 hour' AS hour
        FROM generate_series(0, %(rows)s - 1) n
    ) numbered
"""
# What a deployment that ran for years knows: every window materialized under its revision.
_PRIME = """
    UPDATE babylon_rl.window_requests SET state = 'materialized', revision = 'primed', agents = 20, look_at = NULL
"""
_LATE = """
    UPDATE trajectories SET "finalPnL" = 2.0 WHERE "trajectoryId" = %(id)s
"""


class SensorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes. `quiet`: ticks when nothing changed; `late`: one with a row that was written since.

    `round_ticks`: ticks of a full comparison, `round_seconds` what they took together.
    """

    windows: int
    rows: int
    named: bool
    fill_seconds: float
    first_round_seconds: float
    quiet: list[float]
    round_ticks: int
    round_seconds: float
    late_seconds: float
    late_found: bool
    growth_bytes: int

    @property
    def reached(self) -> bool:
        """Whether the figure is reached; the slowest tick decides."""
        return max(self.quiet) <= MOST_SECONDS and self.growth_bytes <= MOST_GROWTH and self.late_found


def measure_sensor(windows: int, rows: int, named: bool, say: Callable[[str], None]) -> SensorFigures:
    """Fill, prime and measure. `named`: whether the rows have their windowId."""
    with scratch_server() as (_, database):
        say(f"filling {rows:,} trajectories of {windows:,} windows")
        fill_seconds = _seconds(lambda: _fill(database, windows, rows, named))
        say("the first round: every window is new")
        first_round, _ = _round(database)
        with database.connect() as connection:
            connection.execute(_PRIME)
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE babylon_rl.recorded_buckets, babylon_rl.window_requests")
        say("ticks when nothing changed, through a whole round")
        _tick(database, Walk())
        process = psutil.Process()
        before = process.memory_info().rss
        quiet_round, ticks = _round(database)
        while len(quiet_round) < LEAST_TICKS:
            quiet_round.append(_tick(database, Walk())[0])
        growth = process.memory_info().rss - before
        with database.connect() as connection:
            connection.execute(_LATE, {"id": f"t-{windows - 3}"})  # two hours before the last window
        late_seconds, late = _tick(database, Walk())
        return SensorFigures(
            windows=windows, rows=rows, named=named, fill_seconds=fill_seconds, first_round_seconds=sum(first_round),
            quiet=quiet_round, round_ticks=ticks, round_seconds=sum(quiet_round[:ticks]), late_seconds=late_seconds,
            late_found=len(late.observed) == 1, growth_bytes=growth,
        )  # fmt: skip


def table(figures: SensorFigures) -> str:
    """The figures as a person reads them."""
    ids = "with" if figures.named else "without"
    ms = [1000 * seconds for seconds in figures.quiet]
    lines = [
        ("table", f"{figures.rows:,} trajectories {ids} windowId, {figures.windows:,} windows"),
        ("filled in", f"{figures.fill_seconds:.0f} s"),
        ("first round, every window new", f"{figures.first_round_seconds:.1f} s in all"),
        ("tick when nothing changed", f"median {statistics.median(ms):.0f} ms, slowest {max(ms):.0f} ms of {len(ms)}"),
        ("full comparison", f"{figures.round_ticks} ticks, {figures.round_seconds:.1f} s in all"),
        (
            "tick with one late row",
            f"{1000 * figures.late_seconds:.0f} ms" + ("" if figures.late_found else ", MISSED"),
        ),
        ("memory grew by", f"{figures.growth_bytes / 1e6:.1f} MB"),
        ("figure", f"{'reached' if figures.reached else 'MISSED'}: slowest at most {1000 * MOST_SECONDS:.0f} ms"),
    ]
    return "\n".join(f"{name:<32}{value}" for name, value in lines)


def as_json(figures: SensorFigures) -> dict[str, object]:
    return {**msgspec.to_builtins(figures), "reached": figures.reached}


def _fill(database: Database, windows: int, rows: int, named: bool) -> None:
    last = format_window_id(NOW.replace(minute=0) - timedelta(hours=1))
    with database.connect() as connection:
        connection.execute(_AGENTS, {"agents": AGENTS})
        connection.execute(_ROWS, {"agents": AGENTS, "rows": rows, "windows": windows, "last": last, "named": named})
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE trajectories")


def _round(database: Database) -> tuple[list[float], int]:
    """Ticks until the full comparison came round: what each took, and how many they were."""
    took, walk = [], Walk()
    named = unnamed = False
    while not (named and unnamed):
        seconds, found = _tick(database, walk)
        took.append(seconds)
        # A half that is through stands still, so that the round is measured once.
        named, unnamed = named or not found.walk.named, unnamed or not found.walk.started
        walk = dataclasses.replace(found.walk, named="" if named else found.walk.named)
    return took, len(took)


def _tick(database: Database, walk: Walk) -> tuple[float, Tick]:
    began = time.monotonic()
    with database.connect() as connection, database.recordings_beside(connection) as recordings:
        found = tick(recordings, walk, NOW, Waits(3, 0, 0), LOOK_BACK_HOURS, FIRST, lambda keys: {}, 0)
    assert found is not None
    return time.monotonic() - began, found


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
