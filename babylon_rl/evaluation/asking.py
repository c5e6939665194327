"""Asking checkpoints side by side: which weights are compared, and endpoints of our own that answer with them.

Checkpoints of one base model share one process: the base model, and an adapter each.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg

from babylon_rl.errors import ModelError, TrainingError
from babylon_rl.market.endpoint import Endpoint
from babylon_rl.serving.process import running_endpoint
from babylon_rl.settings import Settings
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.checkpoint_store import check_base, local_folder, refuse_deleted
from babylon_rl.training.runs import Checkpoint, base_checkpoint, load_checkpoint, load_run, promoted

BASE = "base"  # the base model's name at an endpoint of ours


class Asked(NamedTuple):
    """Where a checkpoint answers. `ours`: its answers' probabilities are those of the distribution drawn from."""

    endpoint: Endpoint
    ours: bool


class Weights(NamedTuple):
    """What an endpoint of ours needs for a checkpoint. `adapter`: folder, None for the base model itself."""

    folder: Path
    precision: str | None
    adapter: str | None


class Found(NamedTuple):
    """A checkpoint that can be asked. `weights`: None where a service keeps them and answers with them."""

    checkpoint: Checkpoint
    weights: Weights | None


def roles(connection: psycopg.Connection, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What a checkpoint is compared with: checkpoint ids, each with what it is to it (base, parent, promoted)."""
    found: dict[str, list[str]] = {base_checkpoint(checkpoint.training_run): ["base"]}
    if checkpoint.parent_id is not None:
        found.setdefault(checkpoint.parent_id, []).append("parent")
    served = promoted(connection)
    if served is not None:
        found.setdefault(served["to_checkpoint"], []).append("promoted")
    return {name: said for name, said in found.items() if name != checkpoint.checkpoint_id}


def weights_id(checkpoint: Checkpoint) -> str:
    """A text that changes with the checkpoint's weights, as far as they are booked."""
    known = (checkpoint.checkpoint_id, checkpoint.weights_sha256, checkpoint.base_model, checkpoint.base_sha256)
    return hashlib.sha256(msgspec.json.encode(known)).hexdigest()


def available(
    connection: psycopg.Connection, settings: Settings, checkpoint_ids: Sequence[str]
) -> tuple[dict[str, Found], dict[str, str]]:
    """The checkpoints that can be asked, and why the others cannot (deleted, altered, another base model)."""
    found, missing = {}, {}
    for name in dict.fromkeys(checkpoint_ids):
        checkpoint = load_checkpoint(connection, name)
        hosted = checkpoint.path is None and checkpoint.inference_name is not None
        try:
            refuse_deleted(checkpoint)
            found[name] = Found(checkpoint, None if hosted else _weights(connection, settings, checkpoint))
        except (TrainingError, ModelError) as error:
            missing[name] = str(error)
    return found, missing


def _weights(connection: psycopg.Connection, settings: Settings, checkpoint: Checkpoint) -> Weights:
    """The checkpoint's weights on this machine. TrainingError, ModelError where they are not to be had."""
    run = load_run(connection, checkpoint.training_run)
    folder = prepare_base_model(checkpoint.base_model, settings.home, run.seed if run else 0)
    precision = None if run is None or run.recipe.precision is msgspec.UNSET else run.recipe.precision
    if checkpoint.step == 0:
        return Weights(folder, precision, None)
    check_base(checkpoint, folder, settings.home)
    return Weights(folder, precision, str(local_folder(checkpoint, settings.home)))


@contextlib.contextmanager
def asked_checkpoints(settings: Settings, checkpoints: Iterable[Found]) -> Iterator[dict[str, Asked]]:
    """Where each checkpoint answers, by id, until the block ends; a hosted one is asked where the service serves it.

    One process of ours a base model and precision. ServingError where one does not start.
    """
    places: dict[str, Asked] = {}
    groups: dict[tuple[Path, str | None], dict[str, str | None]] = {}
    for one, weights in checkpoints:
        if weights is not None:
            groups.setdefault((weights.folder, weights.precision), {})[one.checkpoint_id] = weights.adapter
            continue
        key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
        places[one.checkpoint_id] = Asked(Endpoint(str(one.inference_url), str(one.inference_name), key), ours=False)
    with contextlib.ExitStack() as stack:
        for (folder, precision), members in groups.items():
            adapters = {name: place for name, place in members.items() if place is not None}
            running = stack.enter_context(
                running_endpoint(folder, BASE, settings.device, settings.threads, adapters, precision)
            )
            for name in members:
                model = name if name in adapters else BASE
                places[name] = Asked(Endpoint(running.base_url, model), ours=True)
        yield places
