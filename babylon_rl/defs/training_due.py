"""The training sensor: requests the update that is due, one at a time."""

from datetime import UTC, datetime

import dagster as dg

from babylon_rl.defs.automation import RUN_KEY, SENSOR_STATUS
from babylon_rl.defs.jobs import train_checkpoint
from babylon_rl.defs.partitions import HOURS, RANGE_LAST, range_tags
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.training.due import MOST_ATTEMPTS, Attempt, DueUpdate, due_updates, next_attempt

ASSET = dg.AssetKey("trained_checkpoints")
# A request that found nothing to train on does not count as a failure; those are as many as hours with new groups.
MOST_KEYS = 10 * MOST_ATTEMPTS

ENDED = {
    dg.DagsterRunStatus.SUCCESS: "done",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}


@dg.sensor(
    job=train_checkpoint,
    minimum_interval_seconds=120,
    default_status=SENSOR_STATUS,
    description=(
        "Requests the update of a training run without an end once enough new trainable groups have gathered "
        "(BABYLON_RL_GROUPS_PER_UPDATE when the run was started). One at a time, never twice over the same groups; a "
        "failed one is tried three times."
    ),
)
def training_due(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.RunRequest | dg.SkipReason:
    training = running(context.instance)
    if training is not None:
        return dg.SkipReason(f"Run {training.run_id[:8]} computes trained_checkpoints; one update at a time.")
    now = datetime.now(UTC)
    with database.open().connect() as connection:
        due, others = due_updates(connection, now, HOURS.get_first_partition_key() or "")
    for update in due:
        number = next_attempt(update, attempts_at(context.instance, update), now)
        if isinstance(number, int):
            context.log.info(f"{update.said}: windows {update.first} to {update.last}, attempt {number}")
            return dg.RunRequest(run_key=f"{update.key}:{number}", tags=range_tags(update.first, update.last))
        others.append(number)
    return dg.SkipReason("\n".join(others))


def running(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """A run that computes `trained_checkpoints`, or will; None where there is none."""
    waiting = [status for status in dg.DagsterRunStatus if status not in ENDED]
    runs = instance.get_runs(dg.RunsFilter(statuses=waiting))
    return next((run for run in runs if trains(run)), None)


def trains(run: dg.DagsterRun) -> bool:
    """Whether the run computes `trained_checkpoints`: it was selected, or the whole job holds it."""
    if run.asset_selection is not None:
        return ASSET in run.asset_selection
    return run.job_name in (train_checkpoint.name, "__ASSET_JOB")


def attempts_at(instance: dg.DagsterInstance, update: DueUpdate) -> list[Attempt]:
    """The runs that were requested for the update; of a run that Dagster tried again by itself, the latest."""
    keys = {f"{update.key}:{number}": number for number in range(1, MOST_KEYS + 1)}
    records = instance.get_run_records(dg.RunsFilter(tags={RUN_KEY: list(keys)}), ascending=True)
    found: dict[int, Attempt] = {}
    for record in records:
        run = record.dagster_run
        number = keys[run.tags[RUN_KEY]]
        state = ENDED.get(run.status, "running")
        found[number] = Attempt(
            number=number,
            run_id=run.run_id,
            last=run.tags.get(RANGE_LAST, update.last),
            state=state,
            ended=None if state == "running" else record.update_timestamp.replace(tzinfo=UTC),
        )
    return list(found.values())
