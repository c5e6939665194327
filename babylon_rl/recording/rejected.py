"""Rows of table `rejected_trajectories`: what was refused, for what, and why.

The rows of a window are replaced with it. Those that belong to no window are kept here, one current row each.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.values import clean_text
from babylon_rl.recording.catalog import Elsewhere
from babylon_rl.recording.reasons import TEXTS, Reason
from babylon_rl.recording.window import RecordedWindow

SCORING, TRAINING = "scoring", "training"
COLUMNS = ("window_id", "trajectory_id", "agent_id", "reason", "detail", "refused_for")


def rejected_frame(recorded: RecordedWindow) -> pd.DataFrame:
    """The window's rows: those refused for scoring, and the usable ones that are refused for training."""
    window_id = recorded.window_id
    rows = [(window_id, r.trajectory_id, r.agent_id, r.reason, r.detail, SCORING) for r in recorded.rejected]
    rows += [
        (window_id, t.trajectory_id, t.agent_id, t.not_trainable, t.detail, TRAINING)
        for t in recorded.usable
        if t.not_trainable is not None
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def keep_without_window(connection: psycopg.Connection, window_ids: Sequence[str], rows: Iterable[Elsewhere]) -> int:
    """Make `rows` the current ones that belong to no window and ended in one of these hours, or at no time.

    Within the caller's transaction; the number written. A row that is gone or reads otherwise is superseded.
    """
    hours = set(window_ids)
    told = [row for row in rows if row.ended_in is None or row.ended_in in hours]
    made = {row.trajectory_id: (row.trajectory_id, row.agent_id, *_why(row), row.ended_in) for row in told}
    digests = {name: hashlib.sha256(msgspec.json.encode(values)).hexdigest() for name, values in made.items()}
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('babylon_rl.rejected_trajectories:none', 0))")
    current = {
        trajectory_id: (row_id, digest)
        for row_id, trajectory_id, digest in connection.execute(
            "SELECT row_id, trajectory_id, digest FROM babylon_rl.rejected_trajectories "
            "WHERE window_id IS NULL AND superseded_at IS NULL "
            "AND (ended_in IS NULL OR ended_in = ANY(%s) OR trajectory_id = ANY(%s))",
            (sorted(hours), list(made)),
        )
    }
    gone = [row_id for name, (row_id, digest) in current.items() if digests.get(name) != digest]
    added = sorted(name for name, digest in digests.items() if name not in current or current[name][1] != digest)
    if gone:
        connection.execute(
            "UPDATE babylon_rl.rejected_trajectories SET superseded_at = clock_timestamp() WHERE row_id = ANY(%s)",
            (gone,),
        )
    if added:
        columns = [list(column) for column in zip(*((*made[name], digests[name]) for name in added), strict=True)]
        connection.execute(
            """INSERT INTO babylon_rl.rejected_trajectories
                   (trajectory_id, agent_id, reason, detail, ended_in, digest, refused_for, created_at)
               SELECT *, 'scoring', clock_timestamp()
               FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])""",
            columns,
        )
    return len(added)


def _why(row: Elsewhere) -> tuple[str, str]:
    reason = Reason(row.attribution.reason)
    named = clean_text(f"; its windowId is {row.named!r}") if reason is Reason.OFF_HOUR_WINDOW else ""
    return reason.value, f"{TEXTS[reason]}{named}"
