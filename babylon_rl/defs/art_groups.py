"""Asset `art_groups`: the group of each window as it will be trained."""

import dagster as dg
import pandas as pd

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.data import groups_described
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.groups.windows import group_windows
from babylon_rl.settings import get_settings

DESCRIPTION = """\
A row is an hour's group as it will be trained: the verbatim prompts, answers and tokens of its members, their
advantages, and a digest of all that. An advantage is the reward less what the agent earned in the week before
(`baselines`, shrunken) and less the others' mean. **A partition** holds one row; who was left out stands there with the
reason.

**Not trainable?** `status` says why: `not_ready` (see `windows`), `too_few_members` (runs without recorded tokens, see
`left out`), `no_spread` (all rewards alike, see `scored_trajectories`), `agent_bias` (rewards tell who the agent is,
and BABYLON_RL_AGENT_BASELINE is none). Such hours are skipped, and hold up no other.

Read by `trained_checkpoints`.
"""


@dg.asset(
    **declared("art_groups", "groups", hourly=True),
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="2",
    description=DESCRIPTION,
)
@typed_failures()
def art_groups(
    context: dg.AssetExecutionContext,
    database: DatabaseResource,
    windows: pd.DataFrame,
    scored_trajectories: pd.DataFrame,
    judge_calibration: pd.DataFrame,
) -> dg.Output[WindowRows]:
    opened = database.open()
    wanted = window_ids(context)
    rows = group_windows(opened, wanted, windows, scored_trajectories, judge_calibration, get_settings())
    with opened.connect() as connection:
        describe = groups_described(connection, wanted)
    return written(context, opened, rows, describe)
