"""Asset `scored_trajectories`: features and reward of each usable run."""

import dagster as dg
import pandas as pd

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.scores import scores_described
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import get_settings

DESCRIPTION = """\
A row is an agent's run under a scorer: its reward and what that is made of, rank in the hour, a reason in one line,
and where its tokens come from (`provenance`). **A partition** holds every usable run of the hour, the best first.

**Who and why?** `best`, `worst` and both side by side stand with each window; `babylon-rl score --window` also shows
what they saw and answered.

**Looks wrong?** `reason` and `parts` show how the reward came about; prices are in `market_outcomes`, missing runs in
`windows`. Another scorer or version (`BABYLON_RL_SCORER`) adds rows; those before it are superseded and stay to be
read; `babylon-rl rescore` does that for a range. All rewards equal is a result: nothing is learned from such an hour.

Read by `judge_calibration`, `art_groups` and `online_evaluations`.
"""


@dg.asset(
    **declared("scored_trajectories", "scoring", hourly=True),
    deps=["windows"],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def scored_trajectories(
    context: dg.AssetExecutionContext, database: DatabaseResource, market_outcomes: pd.DataFrame
) -> dg.Output[WindowRows]:
    opened = database.open()
    settings = get_settings()
    rows = score_windows(
        opened, window_ids(context), market_outcomes, settings.scorer, workers=settings.workers, settings=settings
    )
    return written(context, opened, rows, scores_described(market_outcomes))
