"""`babylon-rl bench overhead`: what Dagster adds to the domain functions, in pairs of equal windows.

Each pair materializes fresh windows twice: by the domain functions alone, with their writes and what the checks look
for, and as the run of the five data assets that a user gets, with its events and metadata. The order alternates, so
that a busy moment hits both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import art_groups, judge_calibration, market_outcomes, scored_trajectories, windows
from babylon_rl.database.window_rows import WindowRows, write_rows
from babylon_rl.defs.checks.data import DATA_CHECKS
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.groups.windows import group_windows
from babylon_rl.market.play import play_fixed
from babylon_rl.market.world import make_window
from babylon_rl.materializing import Materializer, dagster_environment, environment
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.scoring.calibrated_windows import calibrate_windows, floors_of
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import Settings, get_settings
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
AGENTS = 8
MOST_RANGE, MOST_SINGLE = 3.0, 0.3  # seconds of Dagster's own that the design allows


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each pair for runs of so many windows: the domain functions' own, and the whole run's."""

    windows: int
    checks: bool
    own: list[float]
    run: list[float]
    limit: float | None  # None: shown beside the others

    @property
    def added(self) -> float:
        """Median over pairs of what the run took beyond the domain functions."""
        return statistics.median(run - own for own, run in zip(self.own, self.run, strict=True))

    @property
    def reached(self) -> bool:
        """Whether the median is within the limit."""
        return self.limit is None or self.added <= self.limit

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; seconds."""
        return {
            "windows": self.windows,
            "checks": self.checks,
            "pairs": len(self.run),
            "own": statistics.median(self.own),
            "run": statistics.median(self.run),
            "added": self.added,
            "limit": self.limit,
            "reached": self.reached,
        }


def measure_overhead(settings: Settings, windows_a_range: int, pairs: int, say: Callable[[str], None]) -> list[Pairs]:
    """Pairs for a range of windows and for a single one, of the five data assets alone and with their checks."""
    found = []
    with scratch_server() as (server, database), _dagster(settings, server, database):
        bench = _Bench(database, Path(server.home) / "spool.jsonl")
        for checks in (False, True):
            bench.with_checks(checks)
            bench.pair(2)  # imports and first connections
            for count, limit in ((windows_a_range, MOST_RANGE), (1, MOST_SINGLE)):
                timed = [bench.pair(count, run_first=number % 2 == 1) for number in range(pairs)]
                own, run = ([pair[place] for pair in timed] for place in (0, 1))
                found.append(Pairs(windows=count, checks=checks, own=own, run=run, limit=None if checks else limit))
                say(f"{count} windows, checks {checks}: {found[-1].added:.2f} s added")
    return found


def _dagster(settings: Settings, server: EmbeddedServer, database: Database) -> Any:
    """Environment in which Dagster stores its events on the bench's server."""
    scratch = settings.model_copy(update={"database_home": server.home})
    return environment({**dagster_environment(scratch), **database.variables()})


class _Bench:
    """Records and materializes windows that follow each other, none of them twice."""

    def __init__(self, database: Database, spool: Path) -> None:
        self.database, self.spool = database, spool
        self.first = FIRST

    def with_checks(self, checks: bool) -> None:
        """Whether the following pairs look for what the checks look for."""
        self.checks = checks
        self.materializer = Materializer(self.database, _silent, DATA_ASSETS, checks)

    def pair(self, count: int, run_first: bool = False) -> tuple[float, float]:
        """Seconds of the domain functions alone and of a run, on equal windows."""
        ids = [self._record(count), self._record(count)]
        timed = {}
        for way in (self._run, self._domain) if run_first else (self._domain, self._run):
            begun = time.monotonic()
            way(ids.pop())
            timed[way.__name__] = time.monotonic() - begun
        return timed["_domain"], timed["_run"]

    def _record(self, count: int) -> list[str]:
        ids = [shift_window(self.first, i) for i in range(count)]
        self.first = shift_window(ids[-1], 2)  # a gap, so that no range touches the next
        with Recorder(self.database, self.spool) as recorder:
            pairs = [(window_id, make_window(0, "train", index)) for index, window_id in enumerate(ids)]
            play_fixed(self.database, recorder, "random", pairs, split=None, agents=AGENTS)
        return ids

    def _run(self, ids: Sequence[str]) -> None:
        self.materializer.materialize(ids[0], ids[-1], "", again=True)

    def _domain(self, ids: Sequence[str]) -> None:
        settings, database = get_settings(), self.database
        self._write(windows, ids, summarize_windows(database, ids, settings.min_agents_per_window))
        self._write(market_outcomes, ids, outcome_windows(database, ids))
        scored = score_windows(database, ids, _current(database, market_outcomes, ids), settings.scorer)
        self._write(scored_trajectories, ids, scored)
        scores = _current(database, scored_trajectories, ids)
        self._write(judge_calibration, ids, calibrate_windows(database, ids, scores, floors_of(settings)).rows)
        inputs = (_current(database, table, ids) for table in (windows, scored_trajectories, judge_calibration))
        self._write(art_groups, ids, group_windows(database, ids, *inputs, settings))

    def _write(self, table: Any, ids: Sequence[str], rows: WindowRows) -> None:
        """Write the rows of an asset, and look for what its checks look for."""
        with self.database.connect() as connection:
            write_rows(connection, table, rows)
        if self.checks:
            with self.database.connect() as connection:
                for check in DATA_CHECKS[table.name]:
                    check.find(Recordings.of(connection), ids)


def _current(database: Database, table: Any, ids: Sequence[str]) -> Any:
    with database.connect() as connection:
        return read_frame(connection, current_rows(table, ids))


def _silent(title: str, steps: int) -> Callable[[], None]:
    return lambda: None
