"""Asset `judge_calibration`: how far the judge of a window can be trusted, and whether its scores are used."""

import functools

import dagster as dg
import pandas as pd

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.calibration import calibration_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.scoring.calibrated_windows import calibrate_windows, floors_of
from babylon_rl.settings import get_settings

DESCRIPTION = """\
A row is an hour's judge held against what was earned: rank correlation of its scores with alpha and with its own
repeats, with the place in the prompt and the length of the text, over this hour and the earlier ones of the same judge.
**A partition** holds one row, also where no judge ran.

**Judge set aside?** `reason` names the figure, its interval and its floor (`BABYLON_RL_JUDGE_FLOOR`,
`BABYLON_RL_JUDGE_REPEAT_FLOOR`); the hour's group then takes the rewards of alpha. Change the judge's model or rubric:
another judge is counted anew. `unproven` means fewer judged hours than `BABYLON_RL_JUDGE_LEAST_WINDOWS`; its scores
are used. Figures of later hours follow those of earlier ones when they are materialized again, the earliest first.

Read by `art_groups`.
"""


@dg.asset(
    **declared("judge_calibration", "scoring", hourly=True),
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def judge_calibration(
    context: dg.AssetExecutionContext, database: DatabaseResource, scored_trajectories: pd.DataFrame
) -> dg.Output[WindowRows]:
    opened = database.open()
    found = calibrate_windows(opened, window_ids(context), scored_trajectories, floors_of(get_settings()))
    return written(context, opened, found.rows, functools.partial(calibration_metadata, found.courses))
