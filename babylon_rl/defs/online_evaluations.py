"""Asset `online_evaluations`: what each checkpoint did in an hour that agents played with it."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.evaluations import online_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.online import observe_windows

DESCRIPTION = """\
A row is a checkpoint in an hour in which it answered agents: how many agents and decisions, their mean P&L and reward,
the share of legal actions, the worst fall from a peak, latency. **A partition** holds a row for each checkpoint that
answered; a run that several answered counts under their names together.

**No row?** No call of the hour has its checkpoint recorded; agents that play through the gateway have. **Better than
another?** Not by this alone: all arms of an hour trade in one market, and who had which checkpoint is chance only while
an experiment runs (`experiment_id`).

Made from the recorded runs and `scored_trajectories`. Read by `loop_report`.
"""


@dg.asset(
    **declared("online_evaluations", "evaluation"),
    deps=["scored_trajectories", RECORDED],
    group_name="models",
    kinds={"postgres", "pandas"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def online_evaluations(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    return written(context, opened, observe_windows(opened, window_ids(context)), online_metadata)
