"""The trainer's work: one request in, one checkpoint folder out. Runs in a process of its own.

The result's folder appears by a rename when everything in it is written; a request whose result is already there is
answered from it, so that a crash between writing and booking costs no second update. What happens until then lies in a
work folder beside it, which one process at a time holds.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import SnapshotHeader, load_header, stream_groups
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.canaries import Likely
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
    `canaries`: what the weights say on the canary set, where the trainer computed it.
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
    canaries: list[Likely] | None = None


class _Manifest(msgspec.Struct, frozen=True):
    """What lies in a checkpoint's folder: what was asked for, and what it is."""

    request: TrainerRequest
    result: TrainerResult


def train_update(request: TrainerRequest, database: Database, report: Report) -> TrainerResult:
    """Make the update, or hand out the one that is already there. TrainingError and ModelError say how to mend.

    An attempt that was killed is continued from the state that it left beside the checkpoint's folder.
    """
    folder = Path(request.folder)
    done = finished(request)
    if done is not None:
        return done
    with database.connect() as connection:
        header = load_header(connection, request.snapshot_id)
    _stay_local()

    from babylon_rl.training.backends.torch.resume import sync_folder, work_folder, work_name
    from babylon_rl.training.policy import use_threads

    use_threads(request.threads)
    try:
        with work_folder(folder.with_name(work_name(folder.name))) as work:
            done = finished(request)  # by the attempt that held the folder until now
            if done is not None:
                return done
            made, result = _trained(request, database, header, work, report)
            manifest = {"request": msgspec.to_builtins(request), "result": msgspec.to_builtins(result)}
            (made / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            made.rename(folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise TrainingError(
            f"The checkpoint could not be written to {folder} ({error}). The parent {request.parent_id} stays; free "
            "some disk space and run the command again."
        ) from None
    return result


def _trained(
    request: TrainerRequest, database: Database, header: SnapshotHeader, work: Path, report: Report
) -> tuple[Path, TrainerResult]:
    """The checkpoint's folder inside `work`, and what it will be when it has its own name."""
    from babylon_rl.training.backends.torch.update import Start, update

    def groups() -> Iterator[Group]:
        with database.connect() as connection:
            yield from stream_groups(connection, request.snapshot_id)

    def record(metrics: dict[str, float], number: int, of: int) -> None:
        report({**metrics, "step": float(number), "of": float(of)})

    made = update(
        header,
        groups(),
        request.recipe,
        Start(
            base_folder=Path(request.base_folder),
            parent_folder=Path(request.parent_folder) if request.parent_folder else None,
            step=request.parent_step,
            device=request.device,
        ),
        work,
        record,
        request_key(request),
    )
    weights = weights_digest(made.folder)
    return made.folder, TrainerResult(
        folder=request.folder,
        weights_sha256=weights,
        metrics=made.metrics,
        steps=made.steps,
        canaries=made.canaries,
    )


def request_key(request: TrainerRequest) -> str:
    """Digest of all that the numbers of an update depend on: its request, and the code and libraries that make it.

    Where it differs, what an earlier attempt left is not continued. Threads are part of it, for float sums depend on
    their number.
    """
    own = {"snapshot_id", "parent_id", "parent_folder", "parent_step", "base_folder", "recipe", "device", "threads"}
    asked = {name: value for name, value in msgspec.to_builtins(request).items() if name in own}
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "openpipe-art")]
    text = json.dumps([asked, code, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
        try:
            stored = msgspec.json.decode(manifest.read_bytes(), type=_Manifest)
        except msgspec.DecodeError:  # damaged, and so the checkpoint is made again
            stored = None
        same = ("snapshot_id", "parent_id", "recipe")
        if stored and all(getattr(stored.request, field) == getattr(request, field) for field in same):
            if (folder / WEIGHTS_FILE).is_file() and weights_digest(folder) == stored.result.weights_sha256:
                return stored.result
    if folder.exists():
        shutil.rmtree(folder)
    return None


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's adapter weights; TrainingError where they are missing."""
    try:
        return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise TrainingError(f"The checkpoint in {folder} has no {WEIGHTS_FILE}; train it again.") from None
