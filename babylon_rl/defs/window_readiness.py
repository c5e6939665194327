"""The readiness sensor."""

from datetime import UTC, datetime

import dagster as dg

from babylon_rl.defs.automation import SENSOR_STATUS
from babylon_rl.defs.jobs import materialize_windows
from babylon_rl.defs.partitions import HOURS, RECORDED
from babylon_rl.defs.readiness_runs import run_states, runs_in_flight, waits
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.readiness.changes import Walk
from babylon_rl.readiness.requests import Observed, tick
from babylon_rl.settings import get_settings


@dg.sensor(
    job=materialize_windows,
    minimum_interval_seconds=60,
    default_status=SENSOR_STATUS,
    description=(
        "Requests each window that is ready: its hour and the delay after it are over, enough agents finished, and its "
        "outcomes are settled or waited for long enough. Again when what agents wrote there has changed."
    ),
)
def window_readiness(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult:
    """The run key carries the window's revision: the same data give no second run, late data do."""
    opened = database.open()
    with opened.connect() as connection, opened.recordings_beside(connection) as recordings:
        found = tick(
            recordings,
            Walk.of(context.cursor),
            datetime.now(UTC),
            waits(),
            get_settings().look_back_hours,
            HOURS.get_first_partition_key() or "",
            run_states(context.instance),
            runs_in_flight(context.instance, "window_readiness"),
        )
    if found is None:
        return dg.SensorResult(skip_reason="Another tick is at work.", cursor=context.cursor)
    requests = [dg.RunRequest(run_key=r.run_key, partition_key=r.window_id) for r in found.requests]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else ". ".join(found.waiting) or "Every window is materialized.",
        asset_events=[_observation(observed) for observed in found.observed],
        cursor=found.walk.cursor(),
    )


def _observation(observed: Observed) -> dg.AssetObservation:
    return dg.AssetObservation(
        RECORDED,
        partition=observed.window_id,
        metadata={"agents": observed.agents, "recorded": observed.recorded, "revision": observed.revision},
        # What Dagster's staleness compares.
        tags={"dagster/data_version": observed.revision},
    )
