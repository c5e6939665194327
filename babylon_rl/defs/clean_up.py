"""The op of the job `clean_up`: old runs with their events, old ticks, superseded rows.

What the UI still shows is kept. Dagster knows a partition only from the events of runs: `delete_run` deletes them, and
the partition would be missing again. So a run stays while one of its materializations is its partition's latest, or
while it is the attempt by which a partition is shown as failed.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from babylon_rl.database.retention import count_superseded, delete_superseded
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.resources import DatabaseResource

PAGE = 100
MOST_TICKS = 10_000  # counted for a dry run, a sensor or schedule
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION


class CleanUp(dg.Config):
    """What the launchpad asks for."""

    dry_run: bool = Field(True, description="only say what would go")
    run_days: int = Field(90, ge=1, description="days for which ended runs and their events are kept")
    tick_days: int = Field(30, ge=1, description="days for which ticks of sensors and schedules are kept")
    row_days: int = Field(90, ge=1, description="days for which rows that were replaced are kept")
    most_runs: int = Field(500, ge=1, description="runs deleted at most; the next clean-up goes on")


@dg.op(description="Deletes what is older than the configuration says and is shown nowhere any more.")
@typed_failures()
def clean(context: dg.OpExecutionContext, config: CleanUp, database: DatabaseResource) -> dg.Output[dict[str, int]]:
    now = datetime.now(UTC)
    said = "would go" if config.dry_run else "deleted"
    counts = {
        **_clean_runs(context, config, now - timedelta(days=config.run_days)),
        "ticks": _clean_ticks(context.instance, config.dry_run, now - timedelta(days=config.tick_days)),
    }
    before = now - timedelta(days=config.row_days)
    if config.dry_run:
        rows = count_superseded(database.open(), before)
    else:
        rows = delete_superseded(
            database.open(), before, lambda table, deleted: context.log.info(f"{table}: {deleted} rows deleted")
        )
    counts |= {f"rows of {table}": number for table, number in rows.items()}
    context.log.info(f"{said}: {', '.join(f'{number} {name}' for name, number in counts.items())}")
    return dg.Output(counts, metadata={"dry run": config.dry_run, **counts})


def _clean_runs(context: dg.OpExecutionContext, config: CleanUp, before: datetime) -> dict[str, int]:
    """Delete the old runs that nothing is shown by; how many went and how many were kept for what they show."""
    instance = context.instance
    shown = Shown(instance)
    deleted, kept = 0, 0
    for run in old_runs(instance, before):
        if shown.by(run):
            kept += 1
            continue
        if not config.dry_run:
            instance.delete_run(run.run_id)
        deleted += 1
        if deleted % PAGE == 0:
            context.log.info(f"{deleted} runs {'would go' if config.dry_run else 'deleted'} so far")
        if deleted >= config.most_runs:
            context.log.info(f"{deleted} runs are as many as one clean-up takes (most_runs); the next goes on.")
            break
    return {"runs": deleted, "runs kept for what they show": kept}


def old_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[dg.DagsterRun]:
    """Runs that ended before the moment, the oldest first; never one that is queued or running."""
    filters = dg.RunsFilter(statuses=ENDED, updated_before=before)
    held: list[dg.DagsterRun] = []
    while True:
        # The next page is found by the last run of the one before, which may be deleted once it is handed out.
        cursor = held[0].run_id if held else None
        runs = list(instance.get_runs(filters, cursor=cursor, limit=PAGE, ascending=True))
        yield from held
        yield from runs[:-1]
        held = runs[-1:]
        if not held:
            return


class Shown:
    """What the UI shows of runs: the latest materialization of each partition, and the latest failed attempt at one."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.latest: dict[dg.AssetKey, set[int]] = {}
        storage = instance.event_log_storage
        self.failed = {
            run_id
            for key in instance.all_asset_keys()
            for run_id, _ in storage.get_latest_asset_partition_materialization_attempts_without_materializations(
                key
            ).values()
        }

    def by(self, run: dg.DagsterRun) -> bool:
        """Whether something that is shown would be gone with the run."""
        if run.run_id in self.failed:
            return True
        cursor, more = None, True
        while more:
            page = self.instance.get_records_for_run(run.run_id, cursor, of_type=MATERIALIZED, limit=PAGE)
            if any(self._is_latest(record) for record in page.records):
                return True
            cursor, more = page.cursor, page.has_more
        return False

    def _is_latest(self, record: dg.EventLogRecord) -> bool:
        key = record.asset_key
        if key is None or record.partition_key is None:
            return True
        if key not in self.latest:
            self.latest[key] = set(self.instance.get_latest_storage_id_by_partition(key, MATERIALIZED).values())
        return record.storage_id in self.latest[key]


def _clean_ticks(instance: dg.DagsterInstance, dry_run: bool, before: datetime) -> int:
    """Delete the ticks of sensors and schedules that ended before the moment; how many there are."""
    counted = 0
    for state in instance.all_instigator_state():
        named = (state.instigator_origin_id, state.selector_id)
        counted += len(instance.get_ticks(*named, before=before.timestamp(), limit=MOST_TICKS))
        if not dry_run:
            instance.purge_ticks(*named, before=before.timestamp())
    return counted
