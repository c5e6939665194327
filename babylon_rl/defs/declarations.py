"""What each asset is declared with: its place, its table with columns and a query, and when it counts as late.

The columns come from the tables' own definitions. The texts that explain an asset stand beside it, in its own file.
"""

from datetime import timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from babylon_rl.database.tables import SCHEMA, metadata
from babylon_rl.defs.partitions import SHARED
from babylon_rl.settings import get_settings

# What every asset's table has beside its own columns.
HISTORY = {
    "row_id": "one a row as written, also of superseded rows",
    "window_id": "the hour, UTC: 2025-01-15T10:00; the partition's key",
    "created_at": "when the row was written",
    "superseded_at": "when a later run replaced it; null while the row is current",
}

_DIALECT = postgresql.dialect()


def declared(name: str, stage: str, *, rerun: str = "cheap", hourly: bool = False) -> dict[str, Any]:
    """Arguments of the asset's decorator, beside its description, kinds and dependencies.

    `stage` and `rerun` become tags to select by: `rerun` says what materializing again costs (cheap, asks: it starts
    an endpoint, trains).
    `hourly`: a closed hour is owed every hour, so a long silence is a fault.
    """
    table = metadata.tables[f"{SCHEMA}.{name}"]
    return {
        **SHARED,
        "tags": {"stage": stage, "rerun": rerun},
        "metadata": table_metadata(table),
        "freshness_policy": hourly_freshness() if hourly else None,
    }


def hourly_freshness() -> dg.FreshnessPolicy | None:
    """Late when nothing was materialized for hours; None while sensors and schedules are off.

    It counts from the last materialization, whichever window that was: every hour one closes, and the sweep takes it
    even when it is empty. Windows of the past say nothing about it, and while nobody promises to materialize anything
    it would only be red.
    """
    if get_settings().sensors == "off":
        return None
    return dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=2), fail_window=timedelta(hours=4))


def table_metadata(table: sa.Table) -> dict[str, Any]:
    """Name and columns of the table where Dagster looks for them, and a query for a terminal."""
    name = f"{table.schema}.{table.name}" if table.schema else table.name
    return {
        "dagster/table_name": name,
        "dagster/column_schema": column_schema(table),
        "look at a window": dg.MetadataValue.md(f"```sql\n{_query(table, name)}\n```"),
    }


def column_schema(table: sa.Table) -> dg.TableSchema:
    """The table's columns with type, whether null is allowed, and comment."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                column.type.compile(dialect=_DIALECT).lower(),
                column.comment or HISTORY.get(column.name),
                dg.TableColumnConstraints(nullable=bool(column.nullable), unique=column.primary_key),
            )
            for column in table.columns
        ]
    )


def _query(table: sa.Table, name: str) -> str:
    """Shown to a person and never run."""
    if "superseded_at" in table.columns:
        return f"SELECT * FROM {name}\nWHERE window_id = '2025-01-15T10:00' AND superseded_at IS NULL;"
    return f"SELECT * FROM {name}\nWHERE \"windowId\" = '2025-01-15T10:00';"
