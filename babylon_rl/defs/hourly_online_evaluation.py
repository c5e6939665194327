"""The hourly look for windows that were scored and whose checkpoints' figures are not there: a schedule."""

import dagster as dg

from babylon_rl.defs.automation import SCHEDULE_STATUS
from babylon_rl.defs.jobs import evaluate_online
from babylon_rl.defs.partitions import HOURS, range_tags
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.online import unobserved
from babylon_rl.readiness.sweep import MOST_RANGES, MOST_WINDOWS
from babylon_rl.windows import neighbours


@dg.schedule(
    job=evaluate_online,
    cron_schedule="40 * * * *",
    execution_timezone="UTC",
    default_status=SCHEDULE_STATUS,
    description=(
        "Requests the windows of the last days that a checkpoint answered in and whose online_evaluations are missing "
        "or rest on other scores, in ranges. What agents did shows in the hour after the one it was scored in."
    ),
)
def hourly_online_evaluation(context: dg.ScheduleEvaluationContext, database: DatabaseResource):
    """One run a range; nothing where every scored window is observed."""
    begin = HOURS.get_first_partition_key() or ""
    with database.open().connect() as connection:
        found = [w for w in unobserved(connection, context.scheduled_execution_time) if w >= begin]
    if not found:
        return dg.SkipReason("Every scored window of the last days is observed.")
    moment = f"{context.scheduled_execution_time:%Y%m%dT%H%M}"
    return [
        dg.RunRequest(run_key=f"online:{first}:{last}:{moment}", partition_key=first)
        if first == last
        else dg.RunRequest(run_key=f"online:{first}:{last}:{moment}", tags=range_tags(first, last))
        for first, last in neighbours(found, MOST_WINDOWS)[:MOST_RANGES]
    ]
