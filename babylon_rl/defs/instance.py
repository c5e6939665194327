"""The parts of Dagster's instance that are ours, named in dagster_home/dagster.yaml: storage and run launcher."""

import json
from collections.abc import Mapping
from typing import Any

import psutil
from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from babylon_rl.database.urls import with_driver

STATEMENT_MILLISECONDS = 600_000
RECYCLE_SECONDS = 3_600
MOST_CONNECTIONS = 10  # beside the one that each part of the storage keeps open


class PostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage, whatever driver the URL names, with connections that stay open.

    A bare `postgresql://` means psycopg 3 to SQLAlchemy 2.1; with it every run fails at its first event.
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> DagsterPostgresStorage:
        """The storage over psycopg2; DatabaseError where the URL cannot be read."""
        url = with_driver(config_value["postgres_url"], "psycopg2")
        storage = super().from_config_value(inst_data, {**config_value, "postgres_url": url})
        # As Dagster's webserver does for itself. Elsewhere it connects anew for each event, which over a range of 100
        # windows took as long as the assets.
        for part in (storage.event_log_storage, storage.run_storage, storage.schedule_storage):
            part.optimize_for_webserver(
                statement_timeout=STATEMENT_MILLISECONDS, pool_recycle=RECYCLE_SECONDS, max_overflow=MOST_CONNECTIONS
            )
        return storage


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
        started = self._process_of(run) if _is_local(run) else None
        if started is None or _lives(*started):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its process {started[0]} is gone")

    def _process_of(self, run: DagsterRun) -> tuple[int, float] | None:
        """Id of the process that the run said it is, and when it said so."""
        for entry in self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
            pid = entry.get_dagster_event().engine_event_data.metadata.get("pid")
            if pid is not None:
                return int(str(pid.value)), entry.timestamp
        return None


def _is_local(run: DagsterRun) -> bool:
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return bool(server.get("socket")) or server.get("host") in ("localhost", "127.0.0.1")


def _lives(pid: int, reported: float) -> bool:
    """Whether the process that had this id at that time is there; one that began later has only taken its id over."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= reported + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
