"""How an asset hands its rows over: the output for the IO manager, with what a person sees of each window beside it."""

import dagster as dg
import sqlalchemy as sa

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import SCHEMA, metadata
from babylon_rl.database.window_rows import WindowRows, book_windows, encode_rows
from babylon_rl.defs.metadata.windows import Describe, describe_windows

MOST_SHOWN = 5


def written(
    context: dg.AssetExecutionContext, database: Database, rows: WindowRows, describe: Describe
) -> dg.Output[WindowRows]:
    """The run's rows as the asset's output; `describe` says what a person sees of a window's own rows.

    dg.Failure where every window failed. A window that failed keeps the rows that it has; its materialization says so,
    for Dagster has one for each window.

    The data version is the content's: the same rows have the same one, whenever they are computed. Dagster stores one
    version for all partitions of a run, so a window has another after a run of its own than after a run of a range,
    and past 100 partitions it does not look at the versions of inputs at all; neither does it for an asset that depends
    on itself. Its staleness is a hint. `babylon_rl.staleness` tells by rows, and check `rows_are_current` shows it.
    """
    asset = context.asset_key.path[-1]
    table = metadata.tables[f"{SCHEMA}.{asset}"]
    rows = encode_rows(table, rows)
    if rows.failed and not rows.computed:
        with database.connect() as connection:
            book_windows(connection, asset, [], rows.failed)
        raise dg.Failure(failure_text(rows), allow_retries=False)
    _tell_failed(context, database, table, rows)
    assert rows.encoded is not None
    version = next(encoded.version for encoded in rows.encoded if encoded.table is table)
    shown = describe_windows(context, rows.computed, rows.frames, describe)
    return dg.Output(rows, metadata=shown, data_version=dg.DataVersion(version))


def _tell_failed(context: dg.AssetExecutionContext, database: Database, table: sa.Table, rows: WindowRows) -> None:
    """What a person sees of the windows that were not computed, and how many rows stand there from before."""
    if not rows.failed:
        return
    with database.connect() as connection:
        standing = read_frame(connection, current_rows(table, list(rows.failed)))["window_id"].value_counts()
    for window_id, error in rows.failed.items():
        said = f"{error.error}: {error.detail} Rows from before stand."
        context.add_asset_metadata(
            {"status": "not computed", "reason": said, "dagster/row_count": int(standing.get(window_id, 0))},
            partition_key=window_id,
        )


def failure_text(rows: WindowRows) -> str:
    """What went wrong in the windows that failed; of one alone, just that."""
    if len(rows.window_ids) == 1:
        return rows.failed[rows.window_ids[0]].detail
    shown = [f"{w}: {rows.failed[w].detail}" for w in sorted(rows.failed)[:MOST_SHOWN]]
    return f"None of the {len(rows.failed)} windows could be computed. " + "\n".join(shown)
