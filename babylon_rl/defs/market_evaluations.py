"""Asset `market_evaluations`: a checkpoint in the simulated market, beside what it must beat."""

import logging

import dagster as dg
from pydantic import Field

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.evaluations import market_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.market_evaluation import SEED, WINDOWS, MarketPlan, evaluate_in_market
from babylon_rl.settings import get_settings

LOG = logging.getLogger("babylon_rl.evaluation")  # the run's log takes it up, and so does the command line

DESCRIPTION = """\
A row is a comparison in the simulated market: the checkpoint that an hour's update made against its base model, its
parent, what is promoted, a fixed policy, or the informed ceiling `follow_news`, with the effect in dollars and its
95 % interval. All play the same simulated hours with the same seeds, and nothing of it is recorded. **A partition**
holds the comparisons of the update that ended in the hour; hours without an update have none.

**Nothing here?** Nobody asked yet: this starts an endpoint and takes minutes, so nothing runs it by itself. Launch
`evaluate_in_market`, or `babylon-rl evaluate CHECKPOINT --market`. **Good enough?** An interval that holds zero is no
evidence; and the simulated market is not the live one: an experiment decides.

Made from `trained_checkpoints`. The same weights, hours and seeds are not played twice.
Read by `loop_report`.
"""


class MarketEvaluationConfig(dg.Config):
    """The hours that all arms play."""

    windows: int = Field(WINDOWS, ge=2, description="simulated hours; more narrow the intervals and take longer")
    seed: int = Field(SEED, ge=0, description="what the hours and the calls' seeds are made of")


@dg.asset(
    **declared("market_evaluations", "evaluation", rerun="asks"),
    deps=["trained_checkpoints"],
    pool="endpoint",
    group_name="models",
    kinds={"postgres", "pytorch"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def market_evaluations(
    context: dg.AssetExecutionContext, config: MarketEvaluationConfig, database: DatabaseResource
) -> dg.Output[WindowRows]:
    opened, plan = database.open(), MarketPlan(config.seed, config.windows)
    rows = evaluate_in_market(opened, get_settings(), window_ids(context), plan, LOG.info)
    return written(context, opened, rows, market_metadata)
