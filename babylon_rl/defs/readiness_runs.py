"""What Dagster knows of the runs that the readiness sensor and the hourly sweep asked for."""

from collections.abc import Mapping, Sequence

import dagster as dg

from babylon_rl.defs.automation import RUN_KEY
from babylon_rl.readiness.requests import RunState, RunStates
from babylon_rl.readiness.verdict import Waits
from babylon_rl.settings import get_settings

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def run_states(instance: dg.DagsterInstance) -> RunStates:
    """Function that gives the state of the runs of each run key; one success is enough, however often it was tried."""

    def states(run_keys: Sequence[str]) -> Mapping[str, RunState]:
        if not run_keys:
            return {}
        found: dict[str, set[dg.DagsterRunStatus]] = {}
        for run in instance.get_runs(dg.RunsFilter(tags={RUN_KEY: list(run_keys)})):
            found.setdefault(run.tags[RUN_KEY], set()).add(run.status)
        return {run_key: _state(statuses) for run_key, statuses in found.items()}

    return states


def _state(statuses: set[dg.DagsterRunStatus]) -> RunState:
    if dg.DagsterRunStatus.SUCCESS in statuses:
        return "succeeded"
    if statuses & set(UNFINISHED):
        return "running"
    return "failed" if dg.DagsterRunStatus.FAILURE in statuses else "canceled"


def runs_in_flight(instance: dg.DagsterInstance, sensor: str) -> int:
    """Runs of the sensor that are queued or running."""
    return instance.get_runs_count(dg.RunsFilter(tags={"dagster/sensor_name": sensor}, statuses=UNFINISHED))


def waits() -> Waits:
    """What a window waits for, by the settings."""
    settings = get_settings()
    return Waits(settings.min_agents_per_window, settings.settling_minutes, settings.outcome_wait_hours)
