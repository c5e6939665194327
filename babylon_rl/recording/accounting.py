"""The books of a window: every recorded row is used, rejected or an evaluation's, counted apart from the reader."""

from collections.abc import Sequence
from datetime import datetime

import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import windows
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, window_of

CHUNK = 500  # windows a scan of the application's table, which has no index on its times

# A row counts where it is named and where it ended: the reader tells of it in both.
_NAMED = """SELECT "windowId", count(*) FROM trajectories WHERE "windowId" = ANY(%s) GROUP BY 1"""
_ENDED = """
    SELECT date_trunc('hour', "endTime"), count(*) FROM trajectories
    WHERE "endTime" >= %s AND "endTime" < %s
      AND "windowId" IS DISTINCT FROM to_char("endTime", 'YYYY-MM-DD"T"HH24":00"')
    GROUP BY 1
"""


def count_recorded(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, int]:
    """Rows of the application's table that belong to each window or name it, counted by the database."""
    counts = dict.fromkeys(sorted(set(window_ids)), 0)
    wanted = list(counts)
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        for window_id, rows in connection.execute(_NAMED, (chunk,)):
            counts[window_id] += rows
        first, last = (_naive(window_id) for window_id in (chunk[0], chunk[-1]))
        for hour, rows in connection.execute(_ENDED, (first, last + WINDOW_LENGTH)):
            if (window_id := window_of(hour)) in counts:
                counts[window_id] += rows
    return counts


def unaccounted(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Windows whose stored counts do not add up: window_id, recorded, usable, rejected, rejected_rows.

    `recorded` was counted by the database in the snapshot that the reader read, so that rows which came since are no
    error; `rejected_rows` are those of `rejected_trajectories`.
    """
    books = read_frame(connection, current_rows(windows, window_ids))
    query = (
        "SELECT window_id, count(*) FROM babylon_rl.rejected_trajectories "
        "WHERE window_id = ANY(%s) AND superseded_at IS NULL GROUP BY window_id"
    )
    rejected = dict(connection.execute(query, (list(window_ids),)).fetchall())
    books["rejected_rows"] = [rejected.get(window_id, 0) for window_id in books["window_id"]]
    told = books["usable"] + books["rejected"]
    wrong = (told != books["recorded"]) | (books["rejected"] != books["rejected_rows"])
    columns = ["window_id", "recorded", "usable", "rejected", "rejected_rows"]
    return books.loc[wrong, columns].reset_index(drop=True)


def not_ready(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Windows that are not ready and why: window_id, status, reason."""
    statement = current_rows(windows, window_ids).where(windows.c.status != "ready")
    return read_frame(connection, statement)[["window_id", "status", "reason"]]


def _naive(window_id: str) -> datetime:
    return parse_window_id(window_id).replace(tzinfo=None)
