"""Asset `market_outcomes`: what the market did in each hour."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import outcomes_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.outcomes.windows import outcome_windows


@dg.asset(
    **SHARED,
    deps=[RECORDED],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="An instrument and window a row: prices at the hour's edges, change, outcome, settled, source.",
)
@typed_failures()
def market_outcomes(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    return written(context, opened, outcome_windows(opened, window_ids(context)), outcomes_metadata)
