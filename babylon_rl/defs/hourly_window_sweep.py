"""The hourly sweep: a schedule."""

import dagster as dg

from babylon_rl.defs.automation import SCHEDULE_STATUS
from babylon_rl.defs.jobs import materialize_windows
from babylon_rl.defs.partitions import HOURS, range_tags
from babylon_rl.defs.readiness_runs import run_states, waits
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.readiness.sweep import Range, sweep


@dg.schedule(
    job=materialize_windows,
    cron_schedule="20 * * * *",
    execution_timezone="UTC",
    default_status=SCHEDULE_STATUS,
    description=(
        "Requests closed windows that nothing has requested, in ranges: hours in which nothing or too little was "
        "recorded, whose rows then say so."
    ),
)
def hourly_window_sweep(context: dg.ScheduleEvaluationContext, database: DatabaseResource):
    """One run a range; nothing where every hour is explained."""
    opened = database.open()
    with opened.connect() as connection, opened.recordings_beside(connection) as recordings:
        ranges = sweep(
            recordings,
            context.scheduled_execution_time,
            waits(),
            HOURS.get_first_partition_key() or "",
            run_states(context.instance),
        )
    if not ranges:
        return dg.SkipReason("Every closed window is requested or materialized.")
    return [_request(found) for found in ranges]


def _request(found: Range) -> dg.RunRequest:
    # The first sweeps may take years of empty hours: what somebody waits for goes before them in the queue.
    tags = {"dagster/priority": "-1"}
    if found.first == found.last:
        return dg.RunRequest(run_key=found.run_key, partition_key=found.first, tags=tags)
    return dg.RunRequest(run_key=found.run_key, tags=tags | range_tags(found.first, found.last))
