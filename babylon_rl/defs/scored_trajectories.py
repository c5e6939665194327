"""Asset `scored_trajectories`: features and reward of each usable run."""

import dagster as dg
import pandas as pd

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import scores_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import get_settings


@dg.asset(
    **SHARED,
    deps=["windows"],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="One row a run and scorer: reward and its parts, rank in the window, reason in one line, provenance.",
)
@typed_failures()
def scored_trajectories(
    context: dg.AssetExecutionContext, database: DatabaseResource, market_outcomes: pd.DataFrame
) -> dg.Output[WindowRows]:
    opened = database.open()
    rows = score_windows(opened, window_ids(context), market_outcomes, get_settings().scorer)
    return written(context, opened, rows, scores_metadata)
