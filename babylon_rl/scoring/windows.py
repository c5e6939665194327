"""Scores of a range of windows, one window's recordings in memory at a time."""

from collections.abc import Sequence

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import WindowRows, each_window, one_frame, waiting_for
from babylon_rl.recording.reader import RangeReader
from babylon_rl.scoring.scorers import COLUMNS, score_window, scorer_of


def score_windows(database: Database, window_ids: Sequence[str], outcomes: pd.DataFrame, scorer: str) -> WindowRows:
    """Rows of `scored_trajectories`; `outcomes` are those of all the windows."""
    scorer_of(scorer)
    by_window = dict(iter(outcomes.groupby("window_id"))) if len(outcomes) else {}
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, ("windows", "market_outcomes"), window_ids)
        reader = RangeReader(recordings, window_ids)
        frames, failed = each_window(
            window_ids, lambda w: score_window(reader.read(w), by_window.get(w, outcomes.iloc[:0]), scorer), waiting
        )
    return WindowRows(one_frame(frames, COLUMNS), tuple(window_ids), failed)
