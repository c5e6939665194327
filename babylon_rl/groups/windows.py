"""Groups of a range of windows, the texts of one window's members in memory at a time."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import EmptyWindowError
from babylon_rl.groups.build import COLUMNS, build_group
from babylon_rl.groups.searching import LeakGuard
from babylon_rl.recording.reader import RangeReader


def group_windows(
    database: Database, window_ids: Sequence[str], windows: pd.DataFrame, scored: pd.DataFrame
) -> WindowRows:
    """Rows of `art_groups`; `windows` and `scored` are the rows of all the windows."""
    by_id = {row["window_id"]: row for row in windows.to_dict("records")}
    scores = dict(iter(scored.groupby("window_id"))) if len(scored) else {}
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, ("windows", "market_outcomes", "scored_trajectories"), window_ids)
        reader, guard = RangeReader(recordings, window_ids), LeakGuard(recordings, window_ids)

        def build(window_id: str) -> dict[str, Any]:
            if window_id not in by_id:
                raise EmptyWindowError(
                    f"Window {window_id} is not materialized yet: materialize windows before art_groups."
                )
            recorded, own = reader.trainable(window_id), scores.get(window_id, scored.iloc[:0])
            return build_group(by_id[window_id], recorded, own, leaks=guard.leaks(recorded, own.to_dict("records")))

        rows, failed = each_window(window_ids, build, waiting)
    return WindowRows(pd.DataFrame(rows, columns=list(COLUMNS)), tuple(window_ids), failed)
