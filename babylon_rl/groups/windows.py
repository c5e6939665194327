"""Groups of a range of windows, the texts of one window's members in memory at a time."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import EmptyWindowError
from babylon_rl.groups.build import COLUMNS, build_group
from babylon_rl.recording.reader import RangeReader
from babylon_rl.settings import Settings

EARLIER = ("windows", "market_outcomes", "scored_trajectories", "judge_calibration")


def group_windows(
    database: Database,
    window_ids: Sequence[str],
    windows: pd.DataFrame,
    scored: pd.DataFrame,
    calibration: pd.DataFrame | None = None,
    settings: Settings | None = None,
) -> WindowRows:
    """Rows of `art_groups`; `windows`, `scored` and `calibration` (of the judge) are the rows of all the windows."""
    verdicts = {} if calibration is None else dict(zip(calibration["window_id"], calibration["verdict"], strict=True))
    by_id = {row["window_id"]: row for row in windows.to_dict("records")}
    scores = dict(iter(scored.groupby("window_id"))) if len(scored) else {}
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, EARLIER, window_ids)
        reader = RangeReader(recordings, window_ids)

        def build(window_id: str) -> dict[str, Any]:
            if window_id not in by_id:
                raise EmptyWindowError(
                    f"Window {window_id} is not materialized yet: materialize windows before art_groups."
                )
            row = build_group(by_id[window_id], reader.trainable(window_id), scores.get(window_id, scored.iloc[:0]))
            return {**row, "judge_verdict": verdicts.get(window_id)}

        rows, failed = each_window(window_ids, build, waiting)
    return WindowRows(pd.DataFrame(rows, columns=list(COLUMNS)), tuple(window_ids), failed)
