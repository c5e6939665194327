"""The ops of the jobs `promote_checkpoint` and `roll_back`."""

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
        False, description="promote although no evaluation says so; to go back there is the job roll_back"
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


class Rollback(dg.Config):
    """What the launchpad asks for."""

    who: str = Field(description="who decides")
    why: str = Field(description="the reason, kept with the rollback")
    to: str = Field(
        "",
        description="id of a checkpoint that was served earlier, or of a run's step 0; empty: what was served before "
        "the promotion that stands now",
    )


@dg.op(description="Books the way back to what was served before, after looking at its weights.")
@typed_failures()
def go_back(context: dg.OpExecutionContext, config: Rollback, database: DatabaseResource) -> dg.Output[str]:
    opened = database.open()
    with opened.connect() as connection:
        made = promotion.roll_back(connection, config.who, config.why, config.to or None)
    change = f"{made.before} -> {made.after}"
    context.log.info(f"{change}. {made.said}".strip())
    shown = {"served": change, "booked": made.booked, "passed over": made.said or "nothing", "why": config.why}
    return dg.Output(change, metadata={**shown, **publish_finished(context.log, opened)})
