"""Asset `windows`: each window's statistics and readiness; rejected rows go beside it."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import windows_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.settings import get_settings

recorded_trajectories = dg.AssetSpec(
    RECORDED,
    description="Runs of agents as the application records them; observed, never written by this pipeline.",
    group_name="recordings",
    kinds={"postgres"},
    partitions_def=SHARED["partitions_def"],
)


@dg.asset(
    **SHARED,
    deps=[RECORDED],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description="One row a window: agents, usable and rejected runs, P&L spread, and whether it is ready and why not.",
)
@typed_failures()
def windows(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    rows = summarize_windows(opened, window_ids(context), get_settings().min_agents_per_window)
    return written(context, opened, rows, windows_metadata)
