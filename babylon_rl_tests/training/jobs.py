"""Jobs of the ledger for tests: of the bench's tiny snapshots, local or of a service."""

from babylon_rl.bench.submitting import BASE_MODEL, RECIPE, snapshot_of, start_chain
from babylon_rl.database.connect import Database
from babylon_rl.groups.snapshots import save_snapshot
from babylon_rl.settings import Settings
from babylon_rl.training import ledger
from babylon_rl.training.runs import base_checkpoint
from babylon_rl.training.trainer import TrainerRequest

MODEL = "http://there e/p/run"


def written_job(database: Database, place: int = 0, backend: str = "wandb", window_id: str | None = None) -> ledger.Job:
    """A job on top of the base model, as an update writes it down; another `place` is another training set."""
    with database.connect() as connection:
        run = start_chain(connection, 0, 0)
        snapshot = snapshot_of(0, place)
        save_snapshot(connection, snapshot)
        return ledger.open_job(
            connection,
            snapshot.snapshot_id,
            base_checkpoint(run),
            RECIPE.digest(),
            backend,
            step_before=0,
            window_id=window_id,
        )


def request_of(job: ledger.Job, settings: Settings) -> TrainerRequest:
    """What the trainer's process is given for the job."""
    return TrainerRequest(
        checkpoint_id="chain-0-0@1",
        snapshot_id=job.snapshot_id,
        parent_id=job.parent_id,
        parent_folder=None,
        parent_step=0,
        base_folder="",
        folder=str(settings.home / "checkpoint"),
        recipe=RECIPE,
        device="cpu",
        threads=1,
        backend=job.backend,
        job_id=job.job_id,
        training_run="chain-0-0",
        base_model=BASE_MODEL,
    )
