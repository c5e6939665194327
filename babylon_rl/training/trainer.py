"""The trainer's work: one request in, one checkpoint folder out. Runs in a process of its own.

The result's folder appears by a rename when everything in it is written; a request whose result is already there is
answered from it, so that a crash between writing and booking costs no second update.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.training.recipe import Recipe

WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"

Report = Callable[[dict[str, float]], None]


class TrainerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to train: a snapshot on top of a parent. Holds no secret; the database's URL travels apart."""

    checkpoint_id: str
    snapshot_id: str
    parent_id: str
    parent_folder: str | None
    parent_step: int
    base_folder: str
    folder: str  # where the checkpoint goes
    recipe: Recipe
    device: str
    threads: int
    backend: str = "torch"
    job_id: str = ""
    training_run: str = ""
    base_model: str = ""


class TrainerResult(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint as written. `metrics`: means over the steps; `steps`: each optimizer step's metrics.

    `folder`: folder or fsspec URL of the weights, and `weights_sha256` theirs; None where a service keeps them, which
    then answers at `inference_url` under `inference_name`. `step`: of the remote model, None where there is none.
    """

    folder: str | None
    weights_sha256: str | None
    metrics: dict[str, float]
    steps: list[dict[str, float]]
    base_sha256: str | None = None
    tokenizer_sha256: str | None = None
    inference_url: str | None = None
    inference_name: str | None = None
    step: int | None = None


def train_update(request: TrainerRequest, database: Database, report: Report) -> TrainerResult:
    """Make the update, or hand out the one that is already there. TrainingError and ModelError say how to mend."""
    folder = Path(request.folder)
    done = finished(request)
    if done is not None:
        return done
    with database.connect() as connection:
        snapshot = load_snapshot(connection, request.snapshot_id)
    _stay_local()
    import asyncio

    from babylon_rl.training.backend import update
    from babylon_rl.training.policy import use_threads

    use_threads(request.threads)
    work = folder.with_name(f".{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    steps: list[dict[str, float]] = []

    def record(metrics: dict[str, float]) -> None:
        steps.append(metrics)
        report({**metrics, "step": float(len(steps)), "of": float(request.recipe.minibatches * request.recipe.epochs)})

    try:
        work.mkdir(parents=True)
        made = asyncio.run(
            update(
                snapshot,
                request.recipe,
                Path(request.base_folder),
                Path(request.parent_folder) if request.parent_folder else None,
                request.parent_step,
                work,
                request.device,
                record,
            )
        )
        weights = weights_digest(made.folder)
        metrics = {key: value for key, value in made.metrics.items() if "/" not in key}
        result = TrainerResult(folder=str(folder), weights_sha256=weights, metrics=metrics, steps=steps)
        manifest = {"request": msgspec.to_builtins(request), "result": msgspec.to_builtins(result)}
        (made.folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        made.folder.rename(folder)
    except OSError as error:
        raise TrainingError(
            f"The checkpoint could not be written to {folder} ({error}). The parent {request.parent_id} stays; free "
            "some disk space and run the command again."
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def _stay_local() -> None:
    """Keep the libraries off the network: a user's key must not start a hosted run, for this backend is local."""
    os.environ.pop("WANDB_API_KEY", None)
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"  # art reads a .env at import, which may hold the key again
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm asks the network at import otherwise
    os.environ["HF_HUB_OFFLINE"] = "1"


def finished(request: TrainerRequest) -> TrainerResult | None:
    """The result of the same request from an earlier attempt; None (and the folder cleared) where there is none."""
    folder = Path(request.folder)
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        stored = json.loads(manifest.read_text())
        earlier = msgspec.convert(stored["request"], TrainerRequest)
        same = ("snapshot_id", "parent_id", "recipe")
        if all(getattr(earlier, field) == getattr(request, field) for field in same):
            result = msgspec.convert(stored["result"], TrainerResult)
            if weights_digest(folder) == result.weights_sha256:
                return result
    if folder.exists():
        shutil.rmtree(folder)
    return None


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's adapter weights; TrainingError where they are missing."""
    try:
        return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise TrainingError(f"The checkpoint in {folder} has no {WEIGHTS_FILE}; train it again.") from None
