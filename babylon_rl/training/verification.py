"""What is looked for in checkpoints: snapshots that are what their id says, and weights that are what was booked."""

from collections.abc import Sequence

import pandas as pd
import psycopg

from babylon_rl.errors import TrainingError
from babylon_rl.groups.verification import check_rebuilds
from babylon_rl.training.checkpoint_store import stored_digest

_UPDATED = """
    SELECT t.window_id, t.checkpoint_id, t.snapshot_id, c.path, c.weights_sha256, c.state,
           c.inference_name
    FROM babylon_rl.trained_checkpoints t LEFT JOIN babylon_rl.checkpoints c ON c.checkpoint_id = t.checkpoint_id
    WHERE t.window_id = ANY(%s) AND t.superseded_at IS NULL AND t.updated ORDER BY t.window_id
"""
COLUMNS = ("window_id", "checkpoint_id", "what")


def altered_snapshots(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Updates whose snapshot is missing or does not rebuild to its id: window_id, checkpoint_id, what."""
    found = []
    for window_id, checkpoint, snapshot, *_ in connection.execute(_UPDATED, (list(window_ids),)).fetchall():
        try:
            check_rebuilds(connection, snapshot)
        except TrainingError as error:
            found.append((window_id, checkpoint, str(error)))
    return pd.DataFrame(found, columns=list(COLUMNS))


def altered_weights(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Updates whose weights are missing or have another hash: window_id, checkpoint_id, what.

    Weights that were deleted on purpose are said to be so in the checkpoint's state, and are not looked for; nor are
    those that a service keeps.
    """
    found = []
    rows = connection.execute(_UPDATED, (list(window_ids),)).fetchall()
    for window_id, checkpoint, _, path, sha256, state, hosted in rows:
        if state == "deleted" or (path is None and hosted is not None):
            continue
        try:
            if path is None or sha256 is None:
                raise TrainingError("no checkpoint with weights is booked under this id")
            if (made := stored_digest(path)) != sha256:
                raise TrainingError(f"the weights in {path} have the hash {made}, not the booked {sha256}")
        except (TrainingError, OSError) as error:
            found.append((window_id, checkpoint, str(error)))
    return pd.DataFrame(found, columns=list(COLUMNS))
