"""Updates of a database from before snapshots of format 2, which are kept where nothing they were made of changed.

The same groups have another snapshot id in each format, so a window that is only materialized again would be a new job:
trained a second time, into a branch.
"""

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.training.checkpoint_store import exists
from babylon_rl.training.runs import TrainingRun

# A snapshot of format 1 has its groups in its content, and no rows of them.
_UPDATE = """
SELECT t.training_run, t.updated, t.reason, t.checkpoint_id, t.parent_id, t.snapshot_id, t.step, t.groups_trained,
       t.groups_left_out, t.metrics, t.group_digests, c.path
FROM babylon_rl.trained_checkpoints t JOIN babylon_rl.checkpoints c USING (checkpoint_id)
WHERE t.window_id = %(window)s AND t.superseded_at IS NULL AND t.updated AND t.training_run = %(run)s
  AND t.parent_id = %(parent)s AND t.group_digests = %(digests)s AND c.state = 'ready'
  AND EXISTS (SELECT FROM babylon_rl.snapshots s WHERE s.snapshot_id = t.snapshot_id)
  AND NOT EXISTS (SELECT FROM babylon_rl.snapshot_groups g WHERE g.snapshot_id = t.snapshot_id)
"""


def kept_update(
    connection: psycopg.Connection,
    run: TrainingRun,
    parent_id: str,
    window_id: str,
    group_digests: Mapping[str, str | None],
) -> dict[str, Any] | None:
    """The window's row of `trained_checkpoints` where its update was made from a snapshot of format 1, of the same
    groups and on the same parent, and its weights are there; None where an update is to be made."""
    values = {"window": window_id, "run": run.training_run, "parent": parent_id, "digests": Jsonb(dict(group_digests))}
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_UPDATE, values).fetchone()
    if row is None:
        return None
    path = row.pop("path")
    return {"window_id": window_id, **row} if path is not None and exists(path) else None
