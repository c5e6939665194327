"""Asset `checkpoint_evaluations`: candidates against what they started from, on later windows."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.models import evaluations_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.schedule import evaluate_windows

DESCRIPTION = """\
A row is a comparison: a candidate against what it started from or against a fixed policy, on windows later than all
it was trained on, with the effect in dollars and its 95 % interval. **A partition** holds the comparisons of the
evaluation that ended in the hour, which most hours have none of.

**Not promoted?** `reason` says which comparison was not won. An interval that holds zero is no evidence either way:
more windows narrow it.

Made from `trained_checkpoints` and the runs recorded for evaluation. Read by `loop_report`.
"""


@dg.asset(
    **declared("checkpoint_evaluations", "evaluation"),
    deps=["trained_checkpoints", RECORDED],
    group_name="models",
    kinds={"postgres", "pandas"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def checkpoint_evaluations(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    with opened.connect() as connection:
        rows = evaluate_windows(connection, window_ids(context))
    return written(context, opened, rows, evaluations_metadata)
