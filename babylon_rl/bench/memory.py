"""`babylon-rl bench memory`: peak memory and evenness of speed while large ranges of windows are materialized.

A child process does what runs of the data assets do with recordings, run after run: it summarizes and scores windows
and writes their rows. The tables are filled by the server itself, on one of the bench's own.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.made_rows import fill_copies
from babylon_rl.bench.reading import score_and_write
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.database.tables import windows as windows_table
from babylon_rl.database.window_rows import encode_rows, write_rows
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.windows import shift_window

FIRST = "2024-03-01T00:00"
MOST_BYTES = 1_000_000_000
MOST_UNEVEN = 1.25
MIN_AGENTS = 3


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A table to work through: so many rows of so many steps in so many windows, so many windows a run."""

    name: str
    rows: int
    windows: int
    steps: int
    windows_a_run: int


class Worked(msgspec.Struct, frozen=True, kw_only=True):
    """What a case came to; `seconds`: of each run."""

    case: Case
    peak_bytes: int
    seconds: list[float]

    @property
    def uneven(self) -> float | None:
        """Time of the last tenth of the runs over that of the first; None where there are too few runs."""
        tenth = len(self.seconds) // 10
        if not tenth:
            return None
        return sum(self.seconds[-tenth:]) / sum(self.seconds[:tenth])

    @property
    def reached(self) -> bool:
        """Whether memory and evenness are within their limits."""
        even = self.uneven is None or self.uneven <= MOST_UNEVEN
        return even and self.peak_bytes <= MOST_BYTES

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "uneven": self.uneven, "reached": self.reached}


def cases(share: float) -> list[Case]:
    """The four cases, or that share of their rows and windows."""

    def part(number: int, least: int) -> int:
        return max(round(number * share), least)

    return [
        Case(name="small rows", rows=part(1_000_000, 100), windows=part(2_000, 20), steps=1,
             windows_a_run=part(100, 2)),
        Case(name="one run of all", rows=part(1_000_000, 100), windows=part(2_000, 20), steps=1,
             windows_a_run=part(2_000, 20)),
        Case(name="large rows", rows=part(50_000, 100), windows=part(100, 20), steps=20, windows_a_run=part(10, 2)),
        Case(name="one window", rows=part(10_000, 100), windows=1, steps=20, windows_a_run=1),
    ]  # fmt: skip


def measure_memory(wanted: Sequence[Case], say: Callable[[str], None]) -> list[Worked]:
    """Each case on a server of its own, in a process of its own."""
    found = []
    for case in wanted:
        with scratch_server() as (_, database):
            say(f"{case.name}: filling {case.rows:,} rows")
            with database.connect() as connection:
                fill_copies(connection, FIRST, case.windows, case.rows, case.steps)
            say(f"{case.name}: {case.windows} windows, {case.windows_a_run} a run")
            # A fresh process: one that was forked would begin with this one's memory.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak, seconds = pool.apply(_work, (database.url, case))
        found.append(Worked(case=case, peak_bytes=peak, seconds=seconds))
    return found


def table(found: Sequence[Worked]) -> str:
    """The cases as a person reads them."""
    lines = []
    for each in found:
        uneven = "-" if each.uneven is None else f"{each.uneven:.2f}"
        lines.append(
            f"{'reached' if each.reached else 'MISSED'}: {each.case.name}: {each.case.rows:,} rows, "
            f"{each.case.windows:,} windows: peak {each.peak_bytes / 1e6:,.0f} MB (at most {MOST_BYTES / 1e6:,.0f}), "
            f"{each.case.rows / sum(each.seconds):,.0f} rows/s, last tenth takes {uneven} of the first "
            f"(at most {MOST_UNEVEN})"
        )
    return "\n".join(lines)


def _work(url: str, case: Case) -> tuple[int, list[float]]:
    database = Database(url, embedded=True)
    ids = [shift_window(FIRST, number) for number in range(case.windows)]
    seconds = []
    for start in range(0, len(ids), case.windows_a_run):
        run = ids[start : start + case.windows_a_run]
        begun = time.monotonic()
        rows = encode_rows(windows_table, summarize_windows(database, run, MIN_AGENTS))
        with database.connect() as connection:
            write_rows(connection, windows_table, rows)
        written = score_and_write(database, run)
        seconds.append(time.monotonic() - begun)
        if written != rows.frame["usable"].sum():
            raise AssertionError(f"{written} rows were scored and {rows.frame['usable'].sum()} are usable")
    return peak_bytes(), seconds


def peak_bytes() -> int:
    """Most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux counts the parent's memory from before exec.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
