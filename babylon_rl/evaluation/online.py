"""What each checkpoint did in the hours that agents played with it, from the recorded trajectories alone.

Nothing is asked and nothing simulated. These are no comparisons by themselves: arms of one hour trade in one market,
and which agent had which checkpoint is chance only while an experiment runs.
"""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.kept import one_frame
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.row_reader import finite
from babylon_rl.recording.window import RecordedWindow, UsableTrajectory, revision_of_digests
from babylon_rl.scoring.features import features, market_of
from babylon_rl.scoring.scorers import behaviour_policy
from babylon_rl.windows import window_of

COLUMNS = (
    *("window_id", "checkpoint_id", "agents", "decisions", "pnl_mean", "reward_mean", "valid", "drawdown"),
    *("latency_p95_ms", "experiment_id", "window_revision", "scores_digest"),
)


def observe_windows(database: Database, window_ids: Sequence[str]) -> WindowRows:
    """Rows of `online_evaluations`: one a window and checkpoint that answered in it.

    A run that several checkpoints answered counts under their names together, for it is the doing of none of them.
    """
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, ("windows", "scored_trajectories"), window_ids)
        reader = RangeReader(recordings, window_ids)
        made, failed = each_window(sorted(window_ids), lambda w: observe_window(recordings, reader, w), waiting)
    return WindowRows(one_frame(made, COLUMNS), tuple(window_ids), failed)


def observe_window(recordings: Recordings, reader: RangeReader, window_id: str) -> pd.DataFrame:
    """The window's rows, by checkpoint; none where no call's checkpoint is recorded."""
    by_checkpoint: dict[str, list[UsableTrajectory]] = {}
    digests = []
    for row in reader.stream(window_id, texts=False):
        if row.digest:
            digests.append(row.digest)
        if isinstance(row, UsableTrajectory) and (checkpoint := behaviour_policy(row)) is not None:
            by_checkpoint.setdefault(checkpoint, []).append(row)
    scored = read_frame(recordings.ours, current_rows(scored_trajectories, [window_id]))
    rewards = dict(zip(scored["trajectory_id"], scored["reward"], strict=True))
    shared = {
        "window_id": window_id,
        "experiment_id": experiment_in(recordings.ours, window_id),
        "window_revision": revision_of_digests(digests),
        "scores_digest": scored["digest"].iloc[0] if len(scored) else None,
    }
    rows = [
        {"checkpoint_id": checkpoint, **shared, **_figures(window_id, own, rewards)}
        for checkpoint, own in sorted(by_checkpoint.items())
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def unobserved(connection: psycopg.Connection, now: datetime, days: int = 3) -> list[str]:
    """Windows of the last days that a checkpoint answered in, whose rows are missing or rest on other scores."""
    rows = connection.execute(
        """SELECT DISTINCT s.window_id FROM babylon_rl.scored_trajectories s
           WHERE s.superseded_at IS NULL AND s.checkpoint IS NOT NULL AND s.window_id >= %s AND NOT EXISTS (
               SELECT FROM babylon_rl.online_evaluations e WHERE e.window_id = s.window_id
               AND e.superseded_at IS NULL AND e.scores_digest = s.digest)
           ORDER BY 1""",
        (window_of(now - timedelta(days=days)),),
    )
    return [window_id for (window_id,) in rows]


def experiment_in(connection: psycopg.Connection, window_id: str) -> str | None:
    """The experiment that ran in the window; the latest where one ended and another began in it."""
    row = connection.execute(
        """SELECT experiment_id FROM babylon_rl.experiments
           WHERE first_window <= %(window)s AND (ended_at IS NULL
                 OR to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:00') >= %(window)s)
           ORDER BY created_at DESC LIMIT 1""",
        {"window": window_id},
    ).fetchone()
    return row[0] if row else None


def _figures(window_id: str, own: Sequence[UsableTrajectory], rewards: dict[str, float]) -> dict[str, Any]:
    """Figures of a checkpoint's runs; agents are averaged, decisions and latencies pooled."""
    pnls = RecordedWindow(window_id, list(own), []).pnl_by_agent()
    by_agent: dict[str, list[float]] = {}
    for run in own:
        if run.trajectory_id in rewards:
            by_agent.setdefault(run.agent_id, []).append(rewards[run.trajectory_id])
    decisions = sum(len(run.steps) for run in own)
    seen = [features(run, _NO_MARKET) for run in own]
    latencies = list(_latencies(own))
    losses = [loss for run, one in zip(own, seen, strict=True) if (loss := drawdown(run, one.capital)) is not None]
    return {
        "agents": len(pnls),
        "decisions": decisions,
        "pnl_mean": math.fsum(pnls.values()) / len(pnls),
        "reward_mean": _mean([math.fsum(one) / len(one) for one in by_agent.values()]),
        "valid": 1 - sum(one.malformed for one in seen) / decisions if decisions else None,
        "drawdown": max(losses, default=None),
        "latency_p95_ms": float(np.percentile(latencies, 95)) if latencies else None,
    }


_NO_MARKET = market_of(pd.DataFrame({"instrument": [], "kind": [], "change": [], "outcome": []}))


def drawdown(run: UsableTrajectory, capital: float | None) -> float | None:
    """Largest fall of the run's P&L from a peak inside the window, as a share of the capital at its start.

    The P&L at the start, at each step that tells it, and at the end. None where no capital is recorded.
    """
    if not capital:
        return None
    told = (finite(step.environment_state.get("agentPnL")) for step in run.steps)
    peak = fall = 0.0
    for pnl in (0.0, *(value - run.first_pnl for value in told if value is not None), run.window_pnl):
        peak = max(peak, pnl)
        fall = max(fall, peak - pnl)
    return fall / capital


def _latencies(own: Sequence[UsableTrajectory]) -> Iterator[float]:
    for run in own:
        for step in run.steps:
            for call in step.llm_calls:
                if call.latency_ms is not None and math.isfinite(call.latency_ms):
                    yield call.latency_ms


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
