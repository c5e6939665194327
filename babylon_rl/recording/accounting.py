"""The books of a window: every recorded row is used or rejected, counted by the database apart from the reader."""

from collections.abc import Sequence

import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import windows
from babylon_rl.recording.catalog import count_recorded
from babylon_rl.recording.rejected import SCORING, TRAINING

__all__ = ["count_recorded", "not_ready", "unaccounted"]

BOOKS = ["window_id", "recorded", "usable", "trainable", "rejected", "rejected_rows", "not_trainable_rows"]


def unaccounted(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Windows whose stored counts do not add up: window_id, recorded, usable, trainable, rejected and the rows told.

    recorded = usable + rejected, by reason too; usable = trainable + what is refused for training; and as many rows of
    `rejected_trajectories` tell of both. `recorded` was counted by the database in the snapshot that the reader read,
    so that rows which came since are no error.
    """
    books = read_frame(connection, current_rows(windows, window_ids))
    query = (
        "SELECT window_id, refused_for, count(*) FROM babylon_rl.rejected_trajectories "
        "WHERE window_id = ANY(%s) AND superseded_at IS NULL GROUP BY window_id, refused_for"
    )
    told = {(w, what): rows for w, what, rows in connection.execute(query, (list(window_ids),))}
    books["rejected_rows"] = [told.get((w, SCORING), 0) for w in books["window_id"]]
    books["not_trainable_rows"] = [told.get((w, TRAINING), 0) for w in books["window_id"]]
    reasons = books["reasons"].map(lambda counts: sum(counts.values()))
    not_trainable = books["not_trainable"].map(lambda counts: sum(counts.values()))
    wrong = (
        (books["usable"] + books["rejected"] != books["recorded"])
        | (books["usable"] != books["trainable"] + not_trainable)
        | (books["rejected"] != reasons)
        | (books["rejected"] != books["rejected_rows"])
        | (not_trainable != books["not_trainable_rows"])
    )
    return books.loc[wrong, BOOKS].reset_index(drop=True)


def not_ready(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Windows that are not ready and why: window_id, status, reason."""
    statement = current_rows(windows, window_ids).where(windows.c.status != "ready")
    return read_frame(connection, statement)[["window_id", "status", "reason"]]
