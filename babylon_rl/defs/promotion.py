"""The op of the job `promote_checkpoint`."""

import dagster as dg
from pydantic import Field

from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.publishing import publish_finished
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation import promotion


class Promotion(dg.Config):
    """What the launchpad asks for."""

    checkpoint: str = Field(description="id of the checkpoint to serve from now on, as trained_checkpoints names it")
    who: str = Field(description="who decides")
    why: str = Field(description="the reason, kept with the promotion")
    despite_evidence: bool = Field(
        False, description="promote although no evaluation says so; going back to an earlier checkpoint needs it too"
    )


@dg.op(description="Books the promotion after looking at the evaluation and the weights.")
@typed_failures()
def promote(context: dg.OpExecutionContext, config: Promotion, database: DatabaseResource) -> dg.Output[str]:
    opened = database.open()
    with opened.connect() as connection:
        made = promotion.promote_checkpoint(
            connection, config.checkpoint, config.who, config.why, config.despite_evidence
        )
    change = f"{made.before or 'nothing'} -> {made.after}"
    context.log.info(f"{change if made.booked else f'{made.after} is served already'}. {made.said}")
    shown = {"served": change, "booked": made.booked, "evaluation": made.said, "why": config.why}
    return dg.Output(change, metadata={**shown, **publish_finished(context.log, opened)})
