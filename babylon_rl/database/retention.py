"""Deletion of superseded rows by age: the only place where rows of the asset tables go.

Current rows stay for ever. A superseded row stays too while a snapshot names it: its window was trained on, or looked
at for it, and the row was the current one when the snapshot was made.
"""

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from psycopg import sql

from babylon_rl.database.connect import Database
from babylon_rl.database.tables import metadata

BATCH = 1000  # rows a transaction


def history_tables() -> list[sa.Table]:
    """The tables that keep history, in the order of the data's way."""
    return [table for table in metadata.tables.values() if "superseded_at" in table.columns]


def count_superseded(database: Database, before: datetime) -> dict[str, int]:
    """How many rows `delete_superseded` would delete, by table."""
    counts = {}
    with database.connect() as connection:
        for table in history_tables():
            statement = sql.SQL("SELECT count(*) FROM {table} r WHERE {goes}").format(
                table=_identifier(table), goes=_goes(table)
            )
            row = connection.execute(statement, {"before": before}).fetchone()
            assert row is not None
            counts[table.name] = row[0]
    return counts


def delete_superseded(
    database: Database, before: datetime, progress: Callable[[str, int], None], batch: int = BATCH
) -> dict[str, int]:
    """Delete the rows that were superseded before the moment and that no snapshot names; how many, by table.

    In transactions of `batch` rows, so that no writer waits long; `progress` gets each one's table and number of rows.
    """
    counts = {}
    for table in history_tables():
        statement = sql.SQL(
            "DELETE FROM {table} WHERE row_id IN (SELECT row_id FROM {table} r WHERE {goes} LIMIT %(batch)s)"
        ).format(table=_identifier(table), goes=_goes(table))
        counts[table.name] = 0
        while True:
            with database.connect() as connection:
                deleted = connection.execute(statement, {"before": before, "batch": batch}).rowcount
            if not deleted:
                break
            counts[table.name] += deleted
            progress(table.name, deleted)
    return counts


# A snapshot's moment is its transaction's start, and a row's is later within its own: hence the hour.
_NAMED_BY_WINDOW = sql.SQL(
    """NOT EXISTS (SELECT FROM (
           SELECT created_at, unnest(window_ids) AS window_id FROM babylon_rl.snapshots
           UNION ALL SELECT created_at, jsonb_object_keys(made_from -> 'groups') FROM babylon_rl.snapshots
       ) s WHERE s.window_id = r.window_id
       AND r.created_at <= s.created_at + interval '1 hour' AND r.superseded_at > s.created_at)"""
)
_NAMED_BY_ID = sql.SQL("r.snapshot_id IS NULL")


def _goes(table: sa.Table) -> sql.Composed:
    """Condition on rows `r` that may be deleted."""
    named = _NAMED_BY_ID if "snapshot_id" in table.columns else _NAMED_BY_WINDOW
    return sql.SQL("r.superseded_at < %(before)s AND {}").format(named)


def _identifier(table: sa.Table) -> sql.Identifier:
    return sql.Identifier(*([table.schema] if table.schema else []), table.name)
