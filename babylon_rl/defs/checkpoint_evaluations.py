"""Asset `checkpoint_evaluations`: candidates against what they started from, on later windows."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import evaluations_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.schedule import evaluate_windows


@dg.asset(
    **SHARED,
    deps=["trained_checkpoints", RECORDED],
    group_name="models",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="One row a comparison, under its evaluation's last window: effect with interval, decision.",
)
@typed_failures()
def checkpoint_evaluations(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    with opened.connect() as connection:
        rows = evaluate_windows(connection, window_ids(context))
    return written(context, opened, rows, evaluations_metadata)
