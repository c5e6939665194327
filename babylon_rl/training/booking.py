"""Booking a checkpoint: the row that an update comes to, with what its weights say on the canary set."""

import psycopg

from babylon_rl.code_version import code_version
from babylon_rl.groups.snapshots import load_header
from babylon_rl.training.backends.hosted import result_of
from babylon_rl.training.canaries import Canaries, save_canaries
from babylon_rl.training.ledger import Job
from babylon_rl.training.runs import (
    Checkpoint,
    TrainingRun,
    load_checkpoint,
    load_run,
    precision_of_run,
    save_checkpoint,
)
from babylon_rl.training.trainer import TrainerResult


def id_after(training_run: str, parent: Checkpoint, job_id: str) -> str:
    """Id of the checkpoint that the job makes on top of the parent."""
    return f"{training_run}@{parent.step + 1}-{job_id[:8]}"


def book(
    connection: psycopg.Connection,
    run: TrainingRun,
    parent: Checkpoint,
    snapshot_id: str,
    checkpoint_id: str,
    result: TrainerResult,
    window_id: str,
) -> None:
    """Store what an update that ended with the window came to; a second time nothing changes."""
    save_checkpoint(
        connection,
        Checkpoint(
            checkpoint_id=checkpoint_id,
            training_run=run.training_run,
            parent_id=parent.checkpoint_id,
            snapshot_id=snapshot_id,
            base_model=run.base_model,
            step=parent.step + 1,
            path=result.folder,
            weights_sha256=result.weights_sha256,
            last_window=window_id,
            metrics=result.metrics,
            state="ready",
            backend=run.backend,
            base_sha256=result.base_sha256,
            tokenizer_sha256=result.tokenizer_sha256,
            inference_url=result.inference_url,
            inference_name=result.inference_name,
            code_version=code_version(),
        ),
    )
    if result.canaries is not None and result.weights_sha256 is not None:
        save_canaries(
            connection,
            Canaries(
                checkpoint_id=checkpoint_id,
                precision=precision_of_run(run),
                prompts=result.canaries,
                made_by="trainer",
                weights_sha256=result.weights_sha256,
            ),
        )


def book_adopted(connection: psycopg.Connection, job: Job) -> Checkpoint | None:
    """Book the checkpoint of a service's job that a person has adopted, from the ledger and the snapshot alone.

    Its window may since have other groups, or be of a later run: computing it again would not come by this job. None
    where the job does not say which window its update ended with.
    """
    if job.state != "done" or not job.hosted or job.window_id is None:
        return None
    parent = load_checkpoint(connection, job.parent_id)
    # The parent may be another run's, on which this one goes on.
    named = (load_header(connection, job.snapshot_id).training_run, parent.training_run)
    run = next((found for name in named if (found := load_run(connection, name)) is not None), None)
    if run is None:
        return None
    checkpoint_id = id_after(run.training_run, parent, job.job_id)
    book(connection, run, parent, job.snapshot_id, checkpoint_id, result_of(job), job.window_id)
    return load_checkpoint(connection, checkpoint_id)
