"""Materializing all assets over a range of windows in this process, and the environment that Dagster needs for it."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import DAGSTER_DATABASE, EmbeddedServer, default_home
from babylon_rl.database.urls import with_driver
from babylon_rl.errors import TrainingError
from babylon_rl.settings import REPOSITORY, Settings, get_settings
from babylon_rl.windows import window_range

ASSETS = (
    "windows",
    "market_outcomes",
    "scored_trajectories",
    "judge_calibration",
    "art_groups",
    "trained_checkpoints",
    "checkpoint_evaluations",
)

# Starts a stage of so many steps; the result is called for each step that is done.
Stage = Callable[[str, int], Callable[[], None]]


def dagster_environment(settings: Settings, home: Path | None = None) -> dict[str, str]:
    """Environment of Dagster's processes: its home and its storage, the second database of the embedded server."""
    server = EmbeddedServer(default_home(settings))
    server.up()
    return {
        "DAGSTER_HOME": str(home or REPOSITORY / "dagster_home"),
        "DAGSTER_PG_URL": with_driver(server.url(DAGSTER_DATABASE), "psycopg2"),
        # A run over a range stores an event an asset and window; one by one they cost more than the assets.
        "DAGSTER_EVENT_BATCH_SIZE": "500",
    }


def migrate_dagster(settings: Settings) -> None:
    """Bring Dagster's storage on the embedded server to the installed version; a second time changes nothing."""
    import dagster as dg

    with environment(dagster_environment(settings)), dg.DagsterInstance.get() as instance:
        instance.upgrade()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables and read the settings from them, and put back what was there."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    get_settings.cache_clear()
    try:
        yield
    finally:
        get_settings.cache_clear()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


class Materializer:
    """Materializes assets over a range of windows in one Dagster run of this process.

    `ASSETS`, those named, or a job's; `config`: of the assets that take one, by their names.
    """

    named = False  # whether it runs a job by its name
    config: Mapping[str, Mapping[str, Any]] = {}

    def __init__(
        self,
        database: Database,
        stage: Stage,
        assets: Sequence[str] | None = None,
        checks: bool = True,
        job: str | None = None,
        config: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        import dagster as dg

        from babylon_rl.definitions import build_defs
        from babylon_rl.defs.instance import end_dead_runs

        self.stage, self.database, self.named = stage, database, job is not None
        self.config = config or {}
        self.instance = dg.DagsterInstance.get()
        end_dead_runs(self.instance)
        if job is not None:
            self.job = build_defs().resolve_job_def(job)
            return
        job = build_defs().resolve_implicit_global_asset_job_def()
        keys = frozenset(map(dg.AssetKey, ASSETS if assets is None else assets))
        looked_for = [key for key in job.asset_layer.asset_graph.asset_check_keys if key.asset_key in keys]
        self.job = job.get_subset(
            asset_selection=keys, asset_check_selection=frozenset(looked_for) if checks else frozenset()
        )

    def materialize(self, first: str, last: str, title: str, again: bool = False) -> None:
        """Materialize the windows from first to last, unless all are (or `again`).

        TrainingError if it fails, KeyboardInterrupt if it is interrupted.
        """
        import dagster as dg

        from babylon_rl.defs.in_process import execute_job, execute_selection
        from babylon_rl.defs.instance import in_this_process
        from babylon_rl.defs.partitions import ONE, range_tags

        if not again and self._complete(first, last):
            return
        done = self.stage(title, 1)
        self._observe(first, last)
        where = {ONE: first} if first == last else range_tags(first, last)
        # By the environment and not as the resource's config, which Dagster stores: the URL may hold a password.
        with environment(self.database.variables()), warnings.catch_warnings():
            # Dagster warns of its own use of its own preview functions.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            execute = execute_job if self.named else execute_selection
            result = execute(self.job, self.instance, {**where, **in_this_process()}, self.config)
        if not result.success:
            if _interrupted(result):
                raise KeyboardInterrupt
            raise TrainingError(_failure(result))
        done()

    def _observe(self, first: str, last: str) -> None:
        """Report on the external asset that these windows were recorded: one event a range, under its last window."""
        import dagster as dg

        self.instance.report_runless_asset_event(
            dg.AssetObservation(
                dg.AssetKey("recorded_trajectories"),
                partition=last,
                metadata={"first window": first, "last window": last},
            )
        )

    def _complete(self, first: str, last: str) -> bool:
        import dagster as dg

        wanted = set(window_range(first, last))
        return all(wanted <= self.instance.get_materialized_partitions(dg.AssetKey(name)) for name in ASSETS)


def _interrupted(result: object) -> bool:
    """Whether a step ended by Ctrl-C, which Dagster takes for a failure of the step."""
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]  # type: ignore[attr-defined]
    while errors := [error for error in errors if error is not None]:
        if any(error.cls_name == "DagsterExecutionInterruptedError" for error in errors):
            return True
        errors = [error.cause for error in errors]
    return False


def _failure(result: object) -> str:
    """The message of the step that failed, without Dagster's stack trace."""
    for event in result.all_events:  # type: ignore[attr-defined]
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return f"{event.step_key}: {data.user_failure_data.description}"
            error = data.error
            while error.cause is not None:
                error = error.cause
            return f"{event.step_key}: {error.message.strip()}"
    return "The Dagster run failed before its first step; see it with `make ui`."
