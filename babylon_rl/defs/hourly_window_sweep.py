"""The hourly sweep: a schedule."""

import dagster as dg

from babylon_rl.defs.automation import SCHEDULE_STATUS
from babylon_rl.defs.jobs import materialize_windows
from babylon_rl.defs.partitions import HOURS, range_tags
from babylon_rl.defs.readiness_runs import run_states, waits
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.outcomes.sync import late_windows
from babylon_rl.readiness.requests import SWEEP
from babylon_rl.readiness.sweep import MOST_RANGES, MOST_WINDOWS, Range, sweep
from babylon_rl.windows import neighbours


@dg.schedule(
    job=materialize_windows,
    cron_schedule="20 * * * *",
    execution_timezone="UTC",
    default_status=SCHEDULE_STATUS,
    description=(
        "Requests closed windows that nothing has requested, in ranges: hours in which nothing or too little was "
        "recorded, whose rows then say so. And windows in which a question resolved since they were materialized."
    ),
)
def hourly_window_sweep(context: dg.ScheduleEvaluationContext, database: DatabaseResource):
    """One run a range; nothing where every hour is explained and no outcome came late."""
    opened, now, begin = database.open(), context.scheduled_execution_time, HOURS.get_first_partition_key() or ""
    with opened.connect() as connection, opened.recordings_beside(connection) as recordings:
        ranges = sweep(
            recordings,
            now,
            waits(),
            begin,
            run_states(context.instance),
        )
        late = [w for w in late_windows(recordings.application, recordings.ours, now) if w >= begin]
    settled = neighbours(late, MOST_WINDOWS)[:MOST_RANGES]
    ranges += [Range(first, last, f"{SWEEP}late:{first}:{last}:{now:%Y%m%dT%H%M}") for first, last in settled]
    if not ranges:
        return dg.SkipReason("Every closed window is requested or materialized, and no outcome came late.")
    return [_request(found) for found in ranges]


def _request(found: Range) -> dg.RunRequest:
    # The first sweeps may take years of empty hours: what somebody waits for goes before them in the queue.
    tags = {"dagster/priority": "-1"}
    if found.first == found.last:
        return dg.RunRequest(run_key=found.run_key, partition_key=found.first, tags=tags)
    return dg.RunRequest(run_key=found.run_key, tags=tags | range_tags(found.first, found.last))
