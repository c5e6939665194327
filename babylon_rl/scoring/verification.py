"""What is looked for in stored scores: rewards that are no numbers, windows whose rewards do not differ, and judges
that are set aside.
"""

from collections.abc import Sequence

import pandas as pd
import psycopg
import sqlalchemy as sa

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import judge_calibration, scored_trajectories
from babylon_rl.scoring.calibration import SET_ASIDE


def not_finite(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Scores whose reward is not a finite number: window_id, trajectory_id, agent_id, scorer, reward (as text)."""
    columns = scored_trajectories.c
    statement = (
        current_rows(scored_trajectories, window_ids)
        .where(sa.cast(columns.reward, sa.Text).in_(("NaN", "Infinity", "-Infinity")))
        .with_only_columns(
            columns.window_id, columns.trajectory_id, columns.agent_id, columns.scorer, sa.cast(columns.reward, sa.Text)
        )
    )
    return read_frame(connection, statement)


def without_spread(connection: psycopg.Connection, window_ids: Sequence[str], tolerance: float) -> pd.DataFrame:
    """Windows with at least two scores whose rewards are equal within `tolerance`: window_id, scores, reward."""
    query = """
        SELECT window_id, count(*), min(reward) FROM babylon_rl.scored_trajectories
        WHERE window_id = ANY(%s) AND superseded_at IS NULL
        GROUP BY window_id HAVING count(*) > 1 AND max(reward) - min(reward) <= %s ORDER BY window_id
    """
    rows = connection.execute(query, (list(window_ids), tolerance)).fetchall()
    return pd.DataFrame(rows, columns=["window_id", "scores", "reward"])


def set_aside(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Windows whose judge is set aside, and why: window_id, judge, reason."""
    columns = judge_calibration.c
    statement = (
        current_rows(judge_calibration, window_ids)
        .where(columns.verdict == SET_ASIDE)
        .with_only_columns(columns.window_id, columns.judge, columns.reason)
    )
    return read_frame(connection, statement)
