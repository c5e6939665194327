"""A recorded window in one row: its counts, its P&L, and whether it is ready to be trained on; its rejected rows."""

import functools
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.kept import KeptFrames
from babylon_rl.database.tables import rejected_trajectories
from babylon_rl.database.window_rows import WindowError, WindowRows, each_window
from babylon_rl.recording.accounting import count_recorded
from babylon_rl.recording.catalog import Elsewhere
from babylon_rl.recording.parallel import by_parts
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.rejected import COLUMNS, keep_without_window, rejected_frame
from babylon_rl.recording.window import RecordedWindow
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id


def window_summary(recorded: RecordedWindow, min_agents: int, now: datetime) -> dict[str, Any]:
    """Row of table `windows`. `now` (aware) decides whether the hour is over; P&L is in dollars, by agent."""
    status, reason = _status(recorded, min_agents, now)
    pnls = list(recorded.pnl_by_agent().values())
    not_trainable = Counter(sorted(t.not_trainable for t in recorded.usable if t.not_trainable is not None))
    return {
        "window_id": recorded.window_id,
        "status": status,
        "reason": reason,
        "agents": recorded.agents,
        "recorded": recorded.recorded,
        "usable": len(recorded.usable),
        "trainable": len(recorded.usable) - not_trainable.total(),
        "rejected": len(recorded.rejected),
        "reasons": dict(Counter(sorted(r.reason for r in recorded.rejected))),
        "not_trainable": dict(not_trainable),
        "misnamed": sum(row.misnamed for row in (*recorded.usable, *recorded.rejected)),
        "pnl_mean": statistics.fmean(pnls) if pnls else None,
        "pnl_std": statistics.stdev(pnls) if len(pnls) > 1 else None,
        "pnl_min": min(pnls, default=None),
        "pnl_max": max(pnls, default=None),
        "revision": recorded.revision,
    }


@dataclass(frozen=True)
class _Part:
    """What one process found of its windows."""

    rows: list[dict[str, Any]]
    rejected: KeptFrames
    failed: dict[str, WindowError]
    without_window: dict[str, Elsewhere] = field(default_factory=dict)


def summarize_windows(
    database: Database, window_ids: Sequence[str], min_agents: int, *, workers: int = 1
) -> WindowRows:
    """Rows of table `windows`, beside them those of `rejected_trajectories`.

    Of each row only its figures are kept. `recorded` is what the database counts in the snapshot that is read.
    """
    work = functools.partial(_summarize, database, min_agents, datetime.now(UTC))
    rows: list[dict[str, Any]] = []
    rejected = KeptFrames(COLUMNS)
    failed: dict[str, WindowError] = {}
    without_window: dict[str, Elsewhere] = {}
    for part in by_parts(work, window_ids, workers):
        rows += part.rows
        rejected.take(part.rejected)
        failed |= part.failed
        without_window |= part.without_window
    computed = [window_id for window_id in window_ids if window_id not in failed]
    return WindowRows(
        pd.DataFrame(rows),
        tuple(window_ids),
        failed,
        {rejected_trajectories.name: rejected},
        (functools.partial(keep_without_window, window_ids=computed, rows=list(without_window.values())),),
    )


def _summarize(database: Database, min_agents: int, now: datetime, window_ids: Sequence[str]) -> _Part:
    # One snapshot: a row that comes between reading and counting would look like one that was lost.
    with database.recordings() as recordings:
        counts, reader = count_recorded(recordings, window_ids), RangeReader(recordings, window_ids)

        rejected = KeptFrames(COLUMNS)

        def summarize(window_id: str) -> dict[str, Any]:
            recorded = reader.brief(window_id)
            row = {**window_summary(recorded, min_agents, now), "recorded": counts[window_id]}
            rejected.add(rejected_frame(recorded))
            return row

        rows, failed = each_window(window_ids, summarize)
    return _Part(rows, rejected, failed, reader.without_window)


def _status(recorded: RecordedWindow, min_agents: int, now: datetime) -> tuple[str, str]:
    if now - WINDOW_LENGTH < parse_window_id(recorded.window_id):
        return "open", "the hour is not over"
    if not recorded.usable:
        if recorded.rejected:
            return "empty", f"none of {len(recorded.rejected)} recorded trajectories can be used"
        return "empty", "nothing was recorded"
    if recorded.agents < min_agents:
        return "too_few_agents", f"{recorded.agents} of at least {min_agents} agents"
    return "ready", f"{recorded.agents} agents"
