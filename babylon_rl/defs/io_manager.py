"""The IO manager between assets: DataFrames in memory, in PostgreSQL the current rows of one table an asset."""

from collections.abc import Sequence

import dagster as dg
import pandas as pd
import sqlalchemy as sa

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import SCHEMA, metadata
from babylon_rl.database.window_rows import WindowRows, write_rows
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.errors import DatabaseError


class PostgresIOManager(dg.ConfigurableIOManager):
    """Keeps a partitioned asset in the table of its name; partition keys are window ids. It creates no tables.

    A run's partitions are written in one transaction: windows whose content is the same are left alone, the rows of
    others are superseded. Rows of windows outside the run are refused; windows that failed keep what they have.
    """

    database: DatabaseResource

    def handle_output(self, context: dg.OutputContext, obj: WindowRows | pd.DataFrame | None) -> None:
        """Write the run's windows; None writes nothing, a frame without rows empties them."""
        if obj is None:
            return
        if isinstance(obj, pd.DataFrame):
            obj = WindowRows(obj, tuple(_windows(context)))
        if not isinstance(obj, WindowRows):
            raise DatabaseError(
                f"{_name(context)} must return WindowRows, a pandas DataFrame or None, not {type(obj).__name__}."
            )
        table = _table(context)
        if set(obj.window_ids) != set(_windows(context)):
            raise DatabaseError(f"{_name(context)} returned other windows than those of the run.")
        with self.database.open().connect() as connection:
            replaced = write_rows(connection, table, obj)
        context.add_output_metadata(
            {
                "dagster/row_count": obj.count,
                "run: rows written": replaced.written,
                "run: rows superseded": replaced.superseded,
                "run: windows unchanged": len(replaced.unchanged),
                "run: windows failed": len(obj.failed),
            }
        )

    def load_input(self, context: dg.InputContext) -> pd.DataFrame:
        """Current rows of the run's windows: the table's data columns, the window and its digest."""
        table, window_ids = _table(context), _windows(context)
        with self.database.open().connect() as connection:
            return read_frame(connection, current_rows(table, window_ids))


def _name(context: dg.OutputContext | dg.InputContext) -> str:
    return context.asset_key.path[-1]


def _table(context: dg.OutputContext | dg.InputContext) -> sa.Table:
    name = _name(context)
    table = metadata.tables.get(f"{SCHEMA}.{name}")
    if table is None or "superseded_at" not in table.columns:
        raise DatabaseError(
            f"The asset {name} has no table. Add an asset_table of that name to babylon_rl/database/tables.py with a "
            "migration, or give the asset another IO manager."
        )
    return table


def _windows(context: dg.OutputContext | dg.InputContext) -> Sequence[str]:
    if not context.has_asset_partitions:
        raise DatabaseError(
            f"The asset {_name(context)} is not partitioned here, and its rows belong to windows. Give it the hourly "
            "partitions, or read its table through babylon_rl.database."
        )
    return list(context.asset_partition_keys)
