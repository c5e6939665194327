"""Scores of a range of windows, one window's recordings in memory at a time."""

from collections.abc import Sequence

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.recording.reader import read_window
from babylon_rl.scoring.scorers import COLUMNS, score_window


def score_windows(database: Database, window_ids: Sequence[str], outcomes: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """Rows of `scored_trajectories`; `outcomes` are those of all the windows."""
    frames = [pd.DataFrame(columns=list(COLUMNS))]
    with database.connect() as connection:
        for window_id in window_ids:
            scored = score_window(read_window(connection, window_id), outcomes, scorer)
            if len(scored):
                frames.append(scored)
    return pd.concat(frames[1:] or frames, ignore_index=True)
