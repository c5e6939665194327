"""Asset `market_outcomes`: what the market did in each hour."""

import dagster as dg
import pandas as pd

from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import outcomes_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.outcomes.outcomes import outcomes_of


@dg.asset(
    **SHARED,
    deps=[RECORDED],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="An instrument and window a row: prices at the hour's edges, change, outcome, settled, source.",
)
@typed_failures()
def market_outcomes(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[pd.DataFrame]:
    with database.open().connect() as connection:
        frame = outcomes_of(connection, window_ids(context))
    return written(context, frame, outcomes_metadata)
