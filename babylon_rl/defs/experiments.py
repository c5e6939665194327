"""Looks at the experiment that runs, and the watch over what is served: a sensor and a job of each."""

from datetime import UTC, datetime

import dagster as dg

from babylon_rl.defs.automation import SENSOR_STATUS
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.experiments import experiment_metadata, watched_metadata
from babylon_rl.defs.publishing import publish_finished
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation import watch
from babylon_rl.evaluation.experiments import load_experiment
from babylon_rl.evaluation.looks import look_at_running, looks, worth_a_look
from babylon_rl.settings import get_settings


@dg.op(description="Looks at the experiment that runs, and ends it where that is decided.")
@typed_failures()
def look(context: dg.OpExecutionContext, database: DatabaseResource) -> dg.Output[str]:
    opened = database.open()
    with opened.connect() as connection:
        found = look_at_running(connection, datetime.now(UTC))
        if found is None:
            return dg.Output("none", metadata={"state": "no experiment runs"})
        experiment = load_experiment(connection, found.experiment_id)
        shown = experiment_metadata(experiment, looks(connection, found.experiment_id))
    context.log.info(f"{experiment.experiment_id}: {found.decision}. {found.reason}")
    if experiment.state == "promote":
        shown |= publish_finished(context.log, opened)
    return dg.Output(found.decision, metadata=shown)


@dg.op(description="Takes the promotion that stands back where a guardrail is breached.")
@typed_failures()
def guard(context: dg.OpExecutionContext, database: DatabaseResource) -> dg.Output[str]:
    opened = database.open()
    with opened.connect() as connection:
        found = watch.guard_what_is_served(connection, get_settings(), datetime.now(UTC))
    context.log.info(f"{found.state}. {found.said}")
    shown = watched_metadata(found)
    if found.state == "rolled_back":
        shown |= publish_finished(context.log, opened)
    return dg.Output(found.state, metadata=shown)


@dg.job(
    description=(
        "Looks at the experiment that runs and ends it where its evidence, a guardrail, the sample ratio or its "
        "horizon says so; what wins is promoted. The sensor experiment_watch requests it; by hand it does no harm: the "
        "same windows give the same look, which is stored once. No configuration."
    )
)
def look_at_experiments() -> None:
    look()


@dg.job(
    description=(
        "Compares the latest hours of what is served with the hours before its promotion (valid actions, drawdown, "
        "latency) and rolls back where a guardrail is breached; once, for a rollback is not taken back. The sensor "
        "served_watch requests it. No configuration; limits are BABYLON_RL_GUARD_*."
    )
)
def guard_what_is_served() -> None:
    guard()


@dg.sensor(
    job=look_at_experiments,
    minimum_interval_seconds=60,
    default_status=SENSOR_STATUS,
    description="Requests a look at the experiment that runs whenever another of its windows is scored.",
)
def experiment_watch(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.RunRequest | dg.SkipReason:
    """The run key carries what a look would see: the same windows give no second run."""
    with database.open().connect() as connection:
        key = worth_a_look(connection, datetime.now(UTC))
    return dg.SkipReason("No experiment runs.") if key is None else dg.RunRequest(run_key=key)


@dg.sensor(
    job=guard_what_is_served,
    minimum_interval_seconds=60,
    default_status=SENSOR_STATUS,
    description="Requests the way back where what was promoted breaches a guardrail in its latest hours.",
)
def served_watch(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.RunRequest | dg.SkipReason:
    """A run that failed is requested again with the next scored window."""
    with database.open().connect() as connection:
        found = watch.watch(connection, get_settings(), datetime.now(UTC))
    if found.state != "breached":
        return dg.SkipReason(found.said)
    return dg.RunRequest(run_key=f"{found.promotion_id}:{found.windows[-1]}")
