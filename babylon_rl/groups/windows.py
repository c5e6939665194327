"""Groups of a range of windows, one window's recordings in memory at a time."""

from collections.abc import Sequence

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.errors import EmptyWindowError
from babylon_rl.groups.build import COLUMNS, build_group
from babylon_rl.recording.reader import read_window


def group_windows(
    database: Database, window_ids: Sequence[str], windows: pd.DataFrame, scored: pd.DataFrame
) -> pd.DataFrame:
    """Rows of `art_groups`; `windows` and `scored` are the rows of all the windows."""
    by_id = {row["window_id"]: row for row in windows.to_dict("records")}
    if missing := [window_id for window_id in window_ids if window_id not in by_id]:
        raise EmptyWindowError(f"Window {missing[0]} is not materialized yet: materialize windows before art_groups.")
    with database.connect() as connection:
        rows = [build_group(by_id[w], read_window(connection, w), scored) for w in window_ids]
    return pd.DataFrame(rows, columns=list(COLUMNS))
