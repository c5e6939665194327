"""A recorded window in one row: its counts, its P&L, and whether it is ready to be trained on; its rejected rows."""

import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.tables import rejected_trajectories
from babylon_rl.database.window_rows import WindowRows, each_window, one_frame
from babylon_rl.recording.accounting import count_recorded
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.window import RecordedWindow
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

REJECTED = ("window_id", "trajectory_id", "agent_id", "reason", "detail")


def window_summary(recorded: RecordedWindow, min_agents: int, now: datetime) -> dict[str, Any]:
    """Row of table `windows`. `now` (aware) decides whether the hour is over; P&L is in dollars, by agent."""
    status, reason = _status(recorded, min_agents, now)
    pnls = list(recorded.pnl_by_agent().values())
    return {
        "window_id": recorded.window_id,
        "status": status,
        "reason": reason,
        "agents": recorded.agents,
        "recorded": recorded.recorded,
        "usable": len(recorded.usable),
        "rejected": len(recorded.rejected),
        "trainable": sum(t.provenance != "no_text" for t in recorded.usable),
        "reasons": dict(Counter(sorted(r.reason for r in recorded.rejected))),
        "not_trainable": dict(Counter(sorted(t.provenance for t in recorded.usable if t.provenance == "no_text"))),
        "misnamed": 0,
        "pnl_mean": statistics.fmean(pnls) if pnls else None,
        "pnl_std": statistics.stdev(pnls) if len(pnls) > 1 else None,
        "pnl_min": min(pnls, default=None),
        "pnl_max": max(pnls, default=None),
        "revision": recorded.revision,
    }


def rejected_frame(recorded: RecordedWindow) -> pd.DataFrame:
    """Rows of table `rejected_trajectories`."""
    rows = [(recorded.window_id, r.trajectory_id, r.agent_id, r.reason, r.detail) for r in recorded.rejected]
    return pd.DataFrame(rows, columns=list(REJECTED), dtype=object)


def summarize_windows(database: Database, window_ids: Sequence[str], min_agents: int) -> WindowRows:
    """Rows of table `windows`, beside them those of `rejected_trajectories`.

    One window's steps are in memory at a time. `recorded` is what the database counts in the snapshot that is read.
    """
    now = datetime.now(UTC)
    # One snapshot: a row that comes between reading and counting would look like one that was lost.
    with database.recordings() as recordings:
        counts, reader = count_recorded(recordings.application, window_ids), RangeReader(recordings, window_ids)

        def summarize(window_id: str) -> tuple[dict[str, Any], pd.DataFrame]:
            recorded = reader.read(window_id)
            row = {**window_summary(recorded, min_agents, now), "recorded": counts[window_id]}
            return row, rejected_frame(recorded)

        made, failed = each_window(window_ids, summarize)
    rejected = one_frame([frame for _, frame in made], REJECTED)
    rows = pd.DataFrame([row for row, _ in made])
    return WindowRows(rows, tuple(window_ids), failed, {rejected_trajectories.name: rejected})


def _status(recorded: RecordedWindow, min_agents: int, now: datetime) -> tuple[str, str]:
    if now < parse_window_id(recorded.window_id) + WINDOW_LENGTH:
        return "open", "the hour is not over"
    if not recorded.usable:
        if recorded.rejected:
            return "empty", f"none of {len(recorded.rejected)} recorded trajectories can be used"
        return "empty", "nothing was recorded"
    if recorded.agents < min_agents:
        return "too_few_agents", f"{recorded.agents} of at least {min_agents} agents"
    return "ready", f"{recorded.agents} agents"
