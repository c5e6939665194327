"""Runs that a command executes in its own process: of a job by its name, as the UI launches it, or of some assets."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

# As workspace.yaml has it.
MODULE, LOCATION = "babylon_rl.definitions", "babylon_rl"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


Config = Mapping[str, Mapping[str, Any]]  # of assets, by their names


def _run_config(config: Config | None) -> dict[str, Any]:
    return {**QUIET, "ops": {name: {"config": dict(own)} for name, own in config.items()}} if config else QUIET


def execute_selection(
    job: dg.JobDefinition, instance: dg.DagsterInstance, tags: Mapping[str, str], config: Config | None = None
) -> Any:
    """Run of the job's assets; the UI shows them, and no job."""
    return job.execute_in_process(
        instance=instance, tags=dict(tags), raise_on_error=False, run_config=_run_config(config)
    )


def execute_job(
    job: dg.JobDefinition, instance: dg.DagsterInstance, tags: Mapping[str, str], config: Config | None = None
) -> Any:
    """Run of the job under its name and with its code location, so that the UI links both and can run it again.

    Nobody tries it again by himself: whoever typed the command does.
    """
    run = instance.create_run_for_job(
        job_def=job,
        run_config=_run_config(config),
        tags={**job.run_tags, **tags, MAX_RETRIES_TAG: "0"},
        remote_job_origin=origin_of(job.name),
    )
    return execute_run(InMemoryJob(job), run, instance, raise_on_error=False)


def origin_of(job: str) -> RemoteJobOrigin:
    """Where the desk finds the job."""
    target = LoadableTargetOrigin(module_name=MODULE)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job)
