"""Asset `replay_evaluations`: checkpoints asked again what agents were asked in a recorded hour."""

import logging

import dagster as dg
from pydantic import Field

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.evaluations import replay_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.replay import replay_windows
from babylon_rl.settings import get_settings

LOG = logging.getLogger("babylon_rl.evaluation")  # the run's log takes it up, and so does the command line

DESCRIPTION = """\
A row is a comparison on an hour's recorded prompts: a checkpoint against what was done, against no trade, its base
model, its parent, or what is promoted. Each answers the prompts again, verbatim, and its answers are valued at what
the market then did, in reward `alpha`, agents averaged. **A partition** holds the comparisons of an hour: of what is
promoted, the running experiment's candidate, the newest checkpoint, and those named in the run's configuration.

**No row?** The hour has no prompt whose answers have a value (one decision a run, with choices and quotes), or every
checkpoint was trained on it or on later hours: none is asked about what it was told. **No interval?** One hour says
nothing of how hours differ; `babylon-rl evaluate CHECKPOINT` shows the interval over hours.

Made from `windows`, `market_outcomes` and the recorded runs. What was asked with the same weights is not asked
twice. Read by `loop_report`.
"""


class ReplayConfig(dg.Config):
    """Whom to ask beside those that are asked by themselves."""

    checkpoints: list[str] = Field([], description="ids of further checkpoints, trained on earlier hours only")


@dg.asset(
    **declared("replay_evaluations", "evaluation", rerun="asks"),
    deps=["windows", "market_outcomes", RECORDED],
    pool="endpoint",
    group_name="models",
    kinds={"postgres", "pytorch"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def replay_evaluations(
    context: dg.AssetExecutionContext, config: ReplayConfig, database: DatabaseResource
) -> dg.Output[WindowRows]:
    opened = database.open()
    rows = replay_windows(opened, get_settings(), window_ids(context), config.checkpoints, LOG.info)
    return written(context, opened, rows, replay_metadata)
