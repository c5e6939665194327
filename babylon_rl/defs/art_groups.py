"""Asset `art_groups`: the group of each window as it will be trained."""

import dagster as dg
import pandas as pd

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import groups_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.groups.windows import group_windows


@dg.asset(
    **SHARED,
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="One row a window: the trained view (verbatim prompts, answers, tokens), its digest, who was left out.",
)
@typed_failures()
def art_groups(
    context: dg.AssetExecutionContext,
    database: DatabaseResource,
    windows: pd.DataFrame,
    scored_trajectories: pd.DataFrame,
) -> dg.Output[WindowRows]:
    opened = database.open()
    rows = group_windows(opened, window_ids(context), windows, scored_trajectories)
    return written(context, opened, rows, groups_metadata)
