"""Asset `windows`: each window's statistics and readiness; rejected rows go beside it."""

import dagster as dg

from babylon_rl.database.application_tables import trajectories
from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared, table_metadata
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.data import windows_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import HOURS, OWNERS, RECORDED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.settings import get_settings

DESCRIPTION = """\
A row is an hour: how many agents finished in it, usable and rejected runs, the spread of their P&L, and whether the
hour is ready to be trained on. **A partition** holds one row, also for an hour in which nothing was recorded. Rejected
runs stand in `rejected_trajectories`, each with its reason.

**Not ready?** `status` and `reason` say why: `open` (the hour is not over), `too_few_agents` (`MIN_AGENTS_PER_WINDOW`),
`empty`. These are results and no errors: later stages leave such hours out. When late runs arrive, materialize again.

Read by `scored_trajectories`, `art_groups` and `replay_evaluations`.
"""

RECORDED_DESCRIPTION = """\
A row is a run of an agent as the application recorded it: prompts, answers, actions, balances. **A partition** is
the hour in which a run ended. This pipeline observes the rows and never writes them; the sensor `window_readiness`
reports here what it found.

**Nothing new?** Ask whether the game runs and whether the sensor is on.

Read by `windows`, `market_outcomes`, `checkpoint_evaluations`, `replay_evaluations` and `online_evaluations`.
"""

recorded_trajectories = dg.AssetSpec(
    RECORDED,
    description=RECORDED_DESCRIPTION,
    group_name="recordings",
    kinds={"postgres"},
    partitions_def=HOURS,
    owners=OWNERS,
    tags={"stage": "recording"},
    metadata=table_metadata(trajectories),
)


@dg.asset(
    **declared("windows", "recording", hourly=True),
    deps=[RECORDED],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def windows(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    settings = get_settings()
    rows = summarize_windows(opened, window_ids(context), settings.min_agents_per_window, workers=settings.workers)
    return written(context, opened, rows, windows_metadata)
