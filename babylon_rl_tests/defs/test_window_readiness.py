"""The readiness sensor on a real instance: what it asks Dagster for, and what Dagster's runs make of it."""

import os
import subprocess
import sys

import dagster as dg
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.definitions import build_defs
from babylon_rl.defs import readiness_runs
from babylon_rl.defs.readiness_runs import run_states, runs_in_flight
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl_tests.defs.ranges import materialize, record, span

SENSOR_TAG = {"dagster/sensor_name": "window_readiness"}


def tick(database: Database, instance: dg.DagsterInstance, cursor: str | None = None):
    resource = DatabaseResource(url=database.url)
    definitions = build_defs({"database": resource})
    # Left open, the context keeps its instance for whatever definitions are loaded next.
    with dg.build_sensor_context(
        instance, cursor, repository_def=definitions.get_repository_def(), resources={"database": resource}
    ) as context:
        return definitions.resolve_sensor_def("window_readiness").evaluate_tick(context)


def execute(database: Database, instance: dg.DagsterInstance, request: dg.RunRequest, **overrides):
    """The run that Dagster's daemon would start for the request, in this process."""
    resources = {"database": DatabaseResource(url=database.url), **overrides}
    job = build_defs(resources).resolve_job_def("materialize_windows")
    tags = {**request.tags, **SENSOR_TAG, "dagster/run_key": request.run_key}
    return job.execute_in_process(
        instance=instance, partition_key=request.partition_key, tags=tags, raise_on_error=False
    )


def test_a_ready_window_is_observed_requested_run_and_then_left_alone(database, instance):
    ids = record(database, 2)
    data = tick(database, instance)
    assert [request.partition_key for request in data.run_requests] == ids
    for event, request in zip(data.asset_events, data.run_requests, strict=True):
        revision = event.metadata["revision"].value
        assert (event.partition, event.metadata["agents"].value) == (request.partition_key, 8)
        assert request.run_key == f"{event.partition}:{revision}"
        assert event.tags == {"dagster/data_version": revision}
        assert all(len(f"{key}{value}") < 200 for key, value in request.tags.items())
        assert execute(database, instance, request).success
    quiet = tick(database, instance, data.cursor)
    assert not quiet.run_requests and not quiet.asset_events
    assert quiet.skip_message == "Every window is materialized."
    assert len(quiet.cursor) < 100


def test_late_data_give_a_run_of_their_window_under_another_key(database, instance):
    ids = record(database, 3)
    before = {r.partition_key: r.run_key for r in tick(database, instance).run_requests}
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    assert not tick(database, instance).run_requests
    with database.connect() as connection:
        connection.execute('DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', (ids[1], "agent-1"))
    (late,) = tick(database, instance).run_requests
    assert late.partition_key == ids[1] and late.run_key != before[ids[1]]


def test_a_run_that_failed_is_requested_again_under_a_key_of_its_own(database, instance):
    (window,) = record(database, 1)
    (first,) = tick(database, instance).run_requests
    broken = dg.IOManagerDefinition.hardcoded_io_manager(Broken())
    assert not execute(database, instance, first, postgres=broken).success
    assert run_states(instance)([first.run_key]) == {first.run_key: "failed"}
    assert not tick(database, instance).run_requests
    with database.connect() as connection:
        ((state, reason),) = connection.execute("SELECT state, reason FROM babylon_rl.window_requests").fetchall()
        assert state == "waiting" and "attempt 1 of 3 failed" in reason
        connection.execute("UPDATE babylon_rl.window_requests SET look_at = look_at - interval '1 hour'")
    (second,) = tick(database, instance).run_requests
    assert (second.partition_key, second.run_key) == (window, f"{first.run_key}:2")
    assert execute(database, instance, second).success
    assert not tick(database, instance).run_requests
    with database.connect() as connection:
        assert connection.execute("SELECT state FROM babylon_rl.window_requests").fetchall() == [("materialized",)]


class Broken(dg.IOManager):
    def handle_output(self, context, obj):
        raise OSError("the disk is full")

    def load_input(self, context):
        raise OSError("the disk is full")


def test_what_waits_is_said_in_the_tick(database, instance, monkeypatch):
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "9")
    readiness_runs.get_settings.cache_clear()
    (window,) = record(database, 1)
    data = tick(database, instance)
    assert not data.run_requests
    assert data.skip_message.startswith(f"1 windows are not up to date. {window} waiting: 8 of at least 9 agents")


def test_runs_are_counted_while_they_are_not_finished_and_one_success_is_enough(instance):
    def run(run_key: str, status: dg.DagsterRunStatus) -> None:
        run = dg.DagsterRun("materialize_windows", status=status, tags={**SENSOR_TAG, "dagster/run_key": run_key})
        instance.add_run(run)

    run("a", dg.DagsterRunStatus.STARTING)
    run("b", dg.DagsterRunStatus.FAILURE)
    run("b", dg.DagsterRunStatus.STARTED)
    run("c", dg.DagsterRunStatus.FAILURE)
    run("c", dg.DagsterRunStatus.SUCCESS)
    run("d", dg.DagsterRunStatus.CANCELED)
    run("e", dg.DagsterRunStatus.FAILURE)
    assert runs_in_flight(instance, "window_readiness") == 2
    assert run_states(instance)(list("abcdef")) == {
        "a": "running", "b": "running", "c": "succeeded", "d": "canceled", "e": "failed"
    }  # fmt: skip
    assert run_states(instance)([]) == {}


@pytest.mark.parametrize(("setting", "status"), [("on", "RUNNING"), ("off", "STOPPED")])
def test_sensors_run_from_the_start_where_the_setting_says_so(setting, status):
    code = (
        "from babylon_rl.definitions import build_defs; d = build_defs();"
        "print(d.resolve_sensor_def('window_readiness').default_status.name,"
        " d.resolve_schedule_def('hourly_window_sweep').default_status.name)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "BABYLON_RL_SENSORS": setting},
    )  # fmt: skip
    assert done.stdout.split() == [status, status]
