"""Dagster's instance as dagster_home/dagster.yaml configures it: storage, launcher, and what else must hold."""

import json
import logging
import os
import shutil
import subprocess
import sys
import uuid

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from babylon_rl.database.urls import with_driver
from babylon_rl.defs.instance import end_dead_runs, in_this_process
from babylon_rl.settings import REPOSITORY

HERE = {"host": "localhost", "socket": "/tmp/gone"}


@dg.asset
def one() -> int:
    return 1


@pytest.mark.parametrize("url", [lambda url: url, lambda url: with_driver(url, "psycopg")])
def test_a_run_is_written_whatever_driver_the_url_names(url, new_database, tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_PG_URL", url(new_database().url))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        result = dg.materialize([one], instance=instance, raise_on_error=False)
        assert result.success
        assert instance.get_run_by_id(result.run_id).status == dg.DagsterRunStatus.SUCCESS
        assert instance.get_latest_materialization_event(one.key) is not None


def test_an_url_that_cannot_be_read_is_said_so(tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_PG_URL", "mysql://nobody:secret-word@host/db")
    with pytest.raises(Exception) as caught, dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.get_runs_count()
    assert "Write it as postgresql://" in str(caught.value) and "secret-word" not in str(caught.value)


def test_the_instance_limits_what_runs_at_once_and_tells_nobody(instance):
    runs = instance.get_concurrency_config().run_queue_config
    assert runs.max_concurrent_runs == 2
    assert {"key": "dagster/backfill", "limit": 1} in [dict(limit) for limit in runs.tag_concurrency_limits]
    instance.event_log_storage.initialize_concurrency_limit_to_default("trainer")
    assert instance.event_log_storage.get_concurrency_info("trainer").slot_count == 1
    assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] > 0
    assert instance.run_retries_max_retries == 1 and not instance.run_retries_retry_on_asset_or_op_failure
    assert not instance.telemetry_enabled and not instance.nux_enabled and instance.freshness_enabled


def started_run(instance: dg.DagsterInstance, pid: int | None, server: dict[str, str] | None) -> dg.DagsterRun:
    """A run that is in progress in the process with this id, under this code server."""
    tags = {} if server is None else {GRPC_INFO_TAG: json.dumps(server)}
    run = instance.add_run(
        dg.DagsterRun(job_name="a job", run_id=str(uuid.uuid4()), tags=tags).with_status(dg.DagsterRunStatus.STARTED)
    )
    if pid is not None:
        instance.report_engine_event("Started process for run.", run, EngineEventData.in_process(pid))
    return run


def monitored(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    """The run's status after run monitoring has looked at it."""
    monitor_started_run(instance, None, instance.get_run_record_by_id(run.run_id), logging.getLogger())
    return instance.get_run_by_id(run.run_id).status


def ended_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_monitoring_ends_a_run_whose_process_and_code_server_are_gone(instance):
    assert monitored(instance, started_run(instance, ended_process(), HERE)) == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("other", [1, os.getpid()], ids=["init", "own"])
def test_a_process_that_took_the_number_over_is_not_the_run(other, instance, monkeypatch):
    run = started_run(instance, other, HERE)
    assert monitored(instance, run) == dg.DagsterRunStatus.STARTED
    monkeypatch.setattr("psutil.Process.create_time", lambda process: 4e9)
    assert monitored(instance, run) == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("pid", "code_server"),
    [
        (None, HERE),  # it has not said yet which process it is
        (1, {"host": "another.host", "port": 4000}),
        (1, None),  # executed by a command, without a code server
    ],
)
def test_monitoring_leaves_a_run_alone_where_it_cannot_know(pid, code_server, instance):
    run = started_run(instance, pid and ended_process(), code_server)
    assert monitored(instance, run) == dg.DagsterRunStatus.STARTED


def test_the_committed_file_needs_nothing_but_the_variable_of_the_storage():
    assert (REPOSITORY / "dagster_home" / "dagster.yaml").read_text().count("env:") == 1


def test_a_killed_commands_run_is_ended_by_the_next_command_and_its_slot_is_free(instance):
    instance.event_log_storage.initialize_concurrency_limit_to_default("trainer")
    dead, living = (
        instance.add_run(
            dg.DagsterRun(job_name="a job", run_id=str(uuid.uuid4()), tags=in_this_process()).with_status(
                dg.DagsterRunStatus.STARTED
            )
        )
        for _ in range(2)
    )
    for run, pid in ((dead, ended_process()), (living, os.getpid())):
        instance.report_engine_event("Executing steps in process.", run, EngineEventData.in_process(pid))
    assert instance.event_log_storage.claim_concurrency_slot("trainer", dead.run_id, "step").is_claimed
    end_dead_runs(instance)
    assert instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(living.run_id).status == dg.DagsterRunStatus.STARTED
    assert instance.event_log_storage.get_concurrency_info("trainer").active_slot_count == 0
    assert instance.event_log_storage.claim_concurrency_slot("trainer", living.run_id, "step").is_claimed


def test_what_a_run_over_a_range_announces_is_stored_as_dagster_stores_it(instance, monkeypatch):
    hours = dg.HourlyPartitionsDefinition("2025-01-15-00:00", end_offset=0)

    @dg.asset(partitions_def=hours, backfill_policy=dg.BackfillPolicy.single_run())
    def hourly() -> None:
        raise dg.Failure("nothing is materialized")

    def failed_partitions() -> tuple[set[str], int]:
        result = dg.materialize(
            [hourly],
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": "2025-01-15-00:00",
                "dagster/asset_partition_range_end": "2025-01-15-03:00",
            },
            raise_on_error=False,
        )
        found = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
            hourly.key
        )
        announced = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
        assert {run for run, _ in found.values()} == {result.run_id}
        assert instance.get_asset_records([hourly.key])[0].asset_entry.last_run_id == result.run_id
        return set(found), len(announced)

    one_by_one = failed_partitions()
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "500")
    assert failed_partitions() == one_by_one and one_by_one[1] == 4
