"""Backend `art-local`: an update made by ART's own runtime on this machine's GPU, unsloth for the step and vLLM.

ART tokenizes, weighs, steps and writes the adapter; here stands what it needs to be there, what of a recipe and a
snapshot it cannot do, and where its checkpoint goes. ART starts processes (spawn) and nests event loops, so this runs
in the trainer's process alone.
"""

import asyncio
import importlib.util
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.groups.admitting import drawn_otherwise
from babylon_rl.groups.advantages import LEAVE_ONE_OUT
from babylon_rl.groups.art_types import batch_to_art
from babylon_rl.groups.snapshots import Snapshot, load_snapshot
from babylon_rl.groups.trained_view import Member, check_numbers
from babylon_rl.settings import Settings
from babylon_rl.training.backends.art_contract import VERSION, explanation
from babylon_rl.training.backends.torch.resume import work_folder, work_name
from babylon_rl.training.chat_tokens import ChatTokens, for_art
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import (
    MANIFEST_FILE,
    Report,
    TrainerRequest,
    TrainerResult,
    finished,
    weights_digest,
)

PROJECT = "babylon_rl"
# Of ART's extra `backend`, those without which its service cannot be imported.
PACKAGES = ("unsloth", "trl", "bitsandbytes", "torchao")
LOG_LINES = 15  # of vLLM's log in an error's message


class Made(msgspec.Struct, frozen=True):
    """What ART left: the folder of the new checkpoint, and the metrics averaged over the steps."""

    folder: Path
    metrics: dict[str, float]


def train_art_local(request: TrainerRequest, database: Database, settings: Settings, report: Report) -> TrainerResult:
    """Make the update of the request, or hand out the one that an earlier attempt made.

    TrainingError where something is missing on this machine, where ART could not train what is asked as it is meant,
    and where it failed; the parent stays in each case.
    """
    done = finished(request)
    if done is not None:
        return done
    refuse_recipe(request.recipe)
    if lacking := missing():
        raise TrainingError(
            f"TRAINING_BACKEND=art-local cannot train here; missing: {'; '.join(lacking)}. Or train with "
            "TRAINING_BACKEND=torch, which needs none of it."
        )
    with database.connect() as connection:
        snapshot = load_snapshot(connection, request.snapshot_id)
    for group in snapshot.groups:
        for member in group.members:
            _check(member)
    folder = Path(request.folder)
    try:
        with work_folder(folder.with_name(work_name(folder.name))) as work:
            done = finished(request)  # by the attempt that held the folder until now
            return done if done is not None else _moved(request, *_attempt(request, snapshot, work, report))
    except OSError as error:
        raise TrainingError(
            f"The checkpoint could not be written to {folder} ({error}). The parent {request.parent_id} stays; free "
            "some disk space and run the command again."
        ) from error


def missing() -> list[str]:
    """What ART's runtime needs and this machine lacks, each with how to get it; empty where nothing is."""
    found = []
    if packages := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        found.append(
            f"the packages {', '.join(packages)} (an environment of its own with `pip install "
            f"'openpipe-art[backend]=={VERSION}'`, for it pins another torch than the torch backend)"
        )
    import torch

    if not torch.cuda.is_available():
        found.append("an NVIDIA GPU that torch sees (`nvidia-smi` lists one, and torch is a CUDA build)")
    binary = os.environ.get("ART_VLLM_RUNTIME_BIN")
    if binary and not os.access(binary, os.X_OK):
        found.append(f"ART's vLLM runtime at ART_VLLM_RUNTIME_BIN={binary}, where no program is")
    elif not binary and not _runtime_installed() and shutil.which("uv") is None:
        found.append(
            "ART's vLLM runtime (install uv, with which ART fetches it from the network on first use; or set "
            "ART_VLLM_RUNTIME_BIN to one that is there)"
        )
    return found


def _runtime_installed() -> bool:
    """Whether ART has installed its vLLM runtime on this machine before."""
    override = os.environ.get("ART_VLLM_RUNTIME_CACHE_DIR")
    cache = Path(override).expanduser() if override else Path.home() / ".cache" / "art" / "vllm_runtime"
    return any(cache.glob("*/.venv/bin/art-vllm-runtime-server"))


def refuse_recipe(recipe: Recipe) -> None:
    """TrainingError where the recipe asks for what ART's trainer does not do; it would be left out without a word.

    The first steps' warm-up, which every recipe has, is left out: ART's rate is the same from the first step.
    """
    wrong = {
        f'advantages="{recipe.advantages}"': recipe.advantages != LEAVE_ONE_OUT,
        "balanced_answers": recipe.balanced_answers is not None,
        "entropy_coefficient": recipe.entropy_coefficient != 0,
        "epochs": recipe.epochs != 1,
        "decay_steps": recipe.decay_steps != 0,
        "ess_floor": recipe.ess_floor is not msgspec.UNSET,
    }
    if any(wrong.values()):
        raise TrainingError(
            f"ART's local trainer cannot train with {', '.join(name for name, is_so in wrong.items() if is_so)}: it "
            "takes sampled answers, one advantage each, in one pass at one learning rate. Start a run whose recipe "
            "asks for none of these, or use TRAINING_BACKEND=torch."
        )


def _check(member: Member) -> None:
    """TrainingError unless ART computes the probability of every answer as it was recorded."""
    if member.loss == "weighted_supervised" or member.action_advantages is not None:
        raise TrainingError(
            f"Trajectory {member.trajectory_id} cannot be trained by ART's local trainer, which takes sampled answers "
            "with their log-probabilities only. Leave it out (BABYLON_RL_ADMIT), or use TRAINING_BACKEND=torch."
        )
    for decision in member.decisions:
        check_numbers(decision)
        if wrong := drawn_otherwise(decision):
            raise TrainingError(
                f"Call {decision.call_id} {wrong}, and ART's local trainer computes probabilities over all tokens at "
                "temperature 1: its ratios would be of two different distributions. Use TRAINING_BACKEND=torch, which "
                "evaluates answers as they were drawn."
            )


def _attempt(request: TrainerRequest, snapshot: Snapshot, work: Path, report: Report) -> tuple[Made, list[Any]]:
    """ART's update inside `work`, and the metrics of each step."""
    _stay_local()
    steps: list[dict[str, float]] = []

    def record(metrics: dict[str, float]) -> None:
        steps.append(metrics)
        report({**metrics, "step": float(len(steps))})

    try:
        return asyncio.run(_update(request, snapshot, work, record)), steps
    except (TrainingError, OSError):
        raise
    except Exception as error:  # whatever unsloth, vLLM and their processes end with
        said = explanation() or "ART is the version that this one speaks"
        log = _log_tail(work)
        raise TrainingError(
            f"ART's runtime failed ({type(error).__name__}: {error}). The parent {request.parent_id} stays. {said}."
            + (f" The end of vLLM's log:\n{log}" if log else "")
        ) from error


def _stay_local() -> None:
    """Keep ART off the network but for its runtime: a user's key must not start a hosted run of ART's own."""
    os.environ.pop("WANDB_API_KEY", None)
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"  # art reads a .env at import, which may hold the key again
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm asks the network at import otherwise


def _log_tail(work: Path) -> str:
    lines = [line for path in work.rglob("vllm-runtime.log") for line in path.read_text(errors="replace").splitlines()]
    return "\n".join(lines[-LOG_LINES:])


async def _update(
    request: TrainerRequest, snapshot: Snapshot, work: Path, record: Callable[[dict[str, float]], None]
) -> Made:
    """Register, restore the parent as ART's step, train. ART counts steps by the folders that are there."""
    import art
    from art.utils.output_dirs import get_model_dir, get_step_checkpoint_dir
    from transformers import AutoTokenizer

    random.seed(snapshot.seed)  # ART shuffles and draws ids from the global state
    base = request.base_folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    backend = _backend(work, record)
    # By base model and configured chat template, of which there is none.
    backend._tokenizers[base, None] = for_art(tokenizer)
    model = art.TrainableModel(
        name=request.training_run or snapshot.training_run,
        project=PROJECT,
        base_model=base,
        base_path=str(work),
        _internal_config=internal_config(request.recipe),
    )
    output = get_model_dir(model, str(work))
    if request.parent_folder is not None:
        shutil.copytree(request.parent_folder, get_step_checkpoint_dir(output, request.parent_step))
    try:
        await model.register(backend)  # starts vLLM, without which the service does not train
        result = await backend.train(
            model,
            batch_to_art(snapshot.groups, ChatTokens(tokenizer).answer),
            learning_rate=request.recipe.learning_rate,
            loss_fn=request.recipe.loss,
            scale_rewards=False,
        )
    finally:
        await backend.close()
    if result.checkpoint_path is None or result.step != (request.parent_step if request.parent_folder else 0) + 1:
        raise TrainingError(f"ART made step {result.step} and no checkpoint of it; the parent checkpoint stays.")
    if not result.metrics.get("data/step_trainer_tokens"):
        raise TrainingError("Nothing was trainable in the snapshot; the parent checkpoint stays.")
    return Made(Path(result.checkpoint_path), dict(result.metrics))


def _backend(work: Path, record: Callable[[dict[str, float]], None]) -> Any:
    from art.local import LocalBackend

    class ToldBackend(LocalBackend):
        """ART's backend, that tells of each step while it trains."""

        async def _train_model(self, *args: Any, **kwargs: Any) -> Any:
            async for metrics in super()._train_model(*args, **kwargs):
                record({name: float(value) for name, value in metrics.items()})
                yield metrics

    return ToldBackend(path=str(work))


def internal_config(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings under ART's names; all others are ART's own (4-bit weights, 8-bit AdamW)."""
    first, second = recipe.adam_betas
    return {
        "peft_args": {"r": recipe.lora_rank, "lora_alpha": 2 * recipe.lora_rank},
        "trainer_args": {
            "adam_beta1": first,
            "adam_beta2": second,
            "max_grad_norm": recipe.max_grad_norm,
            "weight_decay": 0.0,
        },
    }


def _moved(request: TrainerRequest, made: Made, steps: list[dict[str, float]]) -> TrainerResult:
    """The result, with the checkpoint at its place: everything is in the folder before it is there."""
    result = TrainerResult(
        folder=request.folder, weights_sha256=weights_digest(made.folder), metrics=made.metrics, steps=steps
    )
    manifest = {"request": msgspec.to_builtins(request), "result": msgspec.to_builtins(result)}
    (made.folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    made.folder.rename(request.folder)
    return result
