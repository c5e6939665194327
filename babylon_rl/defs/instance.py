"""The parts of Dagster's instance that are ours, named in dagster_home/dagster.yaml: storage and run launcher."""

import functools
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultRunLauncher,
    EventLogEntry,
    RunsFilter,
)
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config

from babylon_rl.database.urls import with_driver

HOST_TAG = "babylon_rl/host"
PLANNED = DagsterEventType.ASSET_MATERIALIZATION_PLANNED
STATEMENT_MILLISECONDS = 600_000
RECYCLE_SECONDS = 3_600
MOST_CONNECTIONS = 10  # beside the one that each part of the storage keeps open


class EventLogStorage(PostgresEventLogStorage):
    """Dagster's event log in PostgreSQL, in which a run over a range announces its windows at once.

    Dagster stores an event an asset and window before such a run starts, each in transactions of its own.
    """

    @functools.cache  # noqa: B019  one storage a process
    def has_asset_key_col(self, column_name: str) -> bool:
        """Dagster reads the table's columns from the catalogue for each event; they do not change under a process."""
        return super().has_asset_key_col(column_name)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store the events; of those that announce a materialization, the asset's entry gets the last."""
        planned = [event for event in events if event.dagster_event_type == PLANNED]
        if len(planned) < 2:
            super().store_event_batch(events)
            return
        insert = self.prepare_insert_event_batch(planned).returning(SqlEventLogStorageTable.c.id)
        with self._connect() as connection:
            ids = [event_id for (event_id,) in connection.execute(insert)]
        last = {event.get_dagster_event().asset_key: (event, at) for event, at in zip(planned, ids, strict=True)}
        with self.index_transaction() as connection:
            for event, event_id in last.values():
                self._store_asset_event(connection, event, event_id)
        for event in events:
            if event.dagster_event_type != PLANNED:
                self.store_event(event)


class PostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage, whatever driver the URL names, with connections that stay open.

    A bare `postgresql://` means psycopg 3 to SQLAlchemy 2.1; with it every run fails at its first event.
    """

    def __init__(self, postgres_url: str, should_autocreate_tables: bool = True, **options: Any) -> None:
        super().__init__(postgres_url, should_autocreate_tables, **options)
        self._event_log_storage = EventLogStorage(
            postgres_url, should_autocreate_tables, token_provider=options.get("token_provider")
        )
        # As Dagster's webserver does for itself. Elsewhere it connects anew for each event, which over a range of 100
        # windows took as long as the assets.
        for part in (self._event_log_storage, self._run_storage, self._schedule_storage):
            part.optimize_for_webserver(
                statement_timeout=STATEMENT_MILLISECONDS, pool_recycle=RECYCLE_SECONDS, max_overflow=MOST_CONNECTIONS
            )

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PostgresStorage":
        """The storage over psycopg2; DatabaseError where the URL cannot be read."""
        return cls(
            with_driver(config_value["postgres_url"], "psycopg2"),
            config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
            token_provider=get_token_provider_from_config(config_value),
        )


class LocalRunLauncher(DefaultRunLauncher):
    """Starts a run as a process of the code server, as Dagster does by default, and can tell whether it still lives.

    Dagster's own notices a killed run only as long as the run's code server lives. After a crash of the machine or of
    the daemon the run would stay started for ever, in the queue's and the pool's way; here run monitoring ends it.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED only where the run's process is surely gone: another machine's cannot be seen from here."""
        started = dead_process(self._instance, run)
        if started is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its process {started} is gone")


def in_this_process() -> dict[str, str]:
    """Tag of a run that a command executes in its own process, by which it is known whether the run still lives."""
    return {HOST_TAG: socket.gethostname()}


def end_dead_runs(instance: DagsterInstance) -> None:
    """Fail the runs whose command was killed, and free their slots, for which a run would wait for ever.

    Under `babylon-rl ui` run monitoring does this; a command needs no daemon.
    """
    begun = RunsFilter(statuses=[DagsterRunStatus.STARTED], tags={HOST_TAG: socket.gethostname()})
    for run in instance.get_runs(begun):
        if process := dead_process(instance, run):
            instance.report_run_failed(run, f"Its process {process} is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def dead_process(instance: DagsterInstance, run: DagsterRun) -> int | None:
    """Id of the process that the run said it is, where that was here and is surely gone."""
    if not _is_local(run):
        return None
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        pid = entry.get_dagster_event().engine_event_data.metadata.get("pid")
        if pid is not None:
            return None if _lives(int(str(pid.value)), entry.timestamp) else int(str(pid.value))
    return None


def _is_local(run: DagsterRun) -> bool:
    if run.tags.get(HOST_TAG) == socket.gethostname():
        return True
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return bool(server.get("socket")) or server.get("host") in ("localhost", "127.0.0.1")


def _lives(pid: int, reported: float) -> bool:
    """Whether the process that had this id at that time is there; one that began later has only taken its id over."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= reported + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
