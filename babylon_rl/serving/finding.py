"""Where a checkpoint answers: at a service, or in a local endpoint that loads it; and whether it is the right one."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.errors import BabylonError
from babylon_rl.serving.attestation import Attestation, attest
from babylon_rl.serving.endpoints import Base, LocalEndpoints
from babylon_rl.serving.routing import Target
from babylon_rl.settings import Settings
from babylon_rl.training.canaries import Canaries
from babylon_rl.training.canary_process import ensure_canaries, kept_by_a_service
from babylon_rl.training.checkpoint_store import check_base, local_folder, refuse_deleted
from babylon_rl.training.policy import precision_of
from babylon_rl.training.runs import Checkpoint, TrainingRun, load_checkpoint, load_run

UPSTREAM = "upstream"  # name of the key that the gateway sends to a service
BaseFolder = Callable[[str, int], Path]  # of a base model's name and a seed


class Known(NamedTuple):
    """What was read of a checkpoint: enough to load and attest it again while the database is down."""

    version: str
    checkpoint: Checkpoint
    run: TrainingRun | None
    canaries: Canaries | None


class Found(NamedTuple):
    """What answers for a checkpoint, and what its attestation came to."""

    target: Target
    attestation: Attestation


class Finder:
    """Finds targets and has them attested. `base_folder`: where the base model of a name and a seed lies, made."""

    def __init__(
        self, database: Database, settings: Settings, endpoints: LocalEndpoints, base_folder: BaseFolder
    ) -> None:
        self.database, self.settings, self.endpoints, self.base_folder = database, settings, endpoints, base_folder
        self._known: dict[str, Known] = {}

    def find(self, checkpoint_id: str, version: str) -> Found:
        """What answers for the checkpoint, attested. A BabylonError where nothing does.

        A base model that no training run names has no checkpoint, and is served as it is.
        """
        if checkpoint_id == self.settings.base_model:
            target = self._target_of_base(checkpoint_id, checkpoint_id, None)
            return Found(target, self._attested(target, None, None))
        known = self._known.get(checkpoint_id)
        if known is None or known.version != version:
            known = self._read(checkpoint_id, version)
        target = self._target(known)
        return Found(target, self._attested(target, known.checkpoint, known.canaries))

    def forget(self, checkpoint_id: str) -> None:
        """Read the checkpoint and its canaries anew when it is found next."""
        self._known.pop(checkpoint_id, None)

    def _read(self, checkpoint_id: str, version: str) -> Known:
        with self.database.connect() as connection:
            checkpoint = load_checkpoint(connection, checkpoint_id)
            run = load_run(connection, checkpoint.training_run)
        refuse_deleted(checkpoint)
        try:
            canaries = ensure_canaries(self.database, self.settings, checkpoint_id)
        except BabylonError:
            # The service's base model need not be on this machine; weights of ours are never served unseen.
            if checkpoint.path is not None or self.settings.upstream_url is None:
                raise
            canaries = None
        known = Known(version, checkpoint, run, canaries)
        self._known[checkpoint_id] = known
        return known

    def _target(self, known: Known) -> Target:
        checkpoint, run = known.checkpoint, known.run
        if self.settings.upstream_url is None and checkpoint.inference_url and checkpoint.inference_name:
            return self._service(
                checkpoint.checkpoint_id,
                checkpoint.inference_url,
                checkpoint.inference_name,
                # The key of Weights & Biases goes nowhere else.
                keyed=self.settings.upstream_key is not None or checkpoint.backend == "wandb",
            )
        if checkpoint.path is None and checkpoint.step == 0:
            return self._target_of_base(checkpoint.checkpoint_id, checkpoint.base_model, run)
        if self.settings.upstream_url is not None:
            name = checkpoint.inference_name or checkpoint.checkpoint_id
            target = self._service(checkpoint.checkpoint_id, self.settings.upstream_url, name)
            if checkpoint.path is not None and self.settings.upstream_fields == "vllm":
                self._ask_to_load(target, local_folder(checkpoint, self.settings.home))
            return target
        folder = local_folder(checkpoint, self.settings.home)
        base = self._base(checkpoint.base_model, run)
        check_base(checkpoint, base.folder, self.settings.home)
        return self.endpoints.serve(base, checkpoint.checkpoint_id, folder)

    def _target_of_base(self, checkpoint_id: str, base_model: str, run: TrainingRun | None) -> Target:
        if self.settings.upstream_url is not None:
            return self._service(checkpoint_id, self.settings.upstream_url, base_model)
        return self.endpoints.serve(self._base(base_model, run), checkpoint_id, None)

    def _base(self, base_model: str, run: TrainingRun | None) -> Base:
        folder = self.base_folder(base_model, run.seed if run else 0)
        if run is None:
            return Base(folder, base_model, precision_of(self.settings.precision, self.settings.device))
        precision = None if run.recipe.precision is msgspec.UNSET else run.recipe.precision
        return Base(folder, base_model, precision)

    def _service(self, checkpoint_id: str, base_url: str, model: str, keyed: bool = True) -> Target:
        return Target(
            checkpoint_id=checkpoint_id,
            base_url=base_url.rstrip("/"),
            model=model,
            fields=self.settings.upstream_fields,
            key_name=UPSTREAM if keyed and upstream_key(self.settings) else None,
        )

    def _ask_to_load(self, target: Target, folder: Path) -> None:
        """Ask a vLLM that sees our folders to load the adapter; one that does not is found out by the attestation."""
        key = upstream_key(self.settings)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            listed = httpx.get(f"{target.base_url}/models", headers=headers, timeout=30)
            if listed.is_success and any(entry.get("id") == target.model for entry in listed.json()["data"]):
                return
            body = {"lora_name": target.model, "lora_path": str(folder)}
            httpx.post(f"{target.base_url}/load_lora_adapter", json=body, headers=headers, timeout=120)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            return

    def _attested(self, target: Target, checkpoint: Checkpoint | None, canaries: Canaries | None) -> Attestation:
        if checkpoint is None:
            reason = f"{target.model} is a base model of no training run: there is nothing to compare it with."
            return Attestation(state="unavailable", worst=None, compared=0, reason=reason, may_serve=True)
        hosted = kept_by_a_service(checkpoint) or (canaries is None and checkpoint.path is None)
        return attest(
            target,
            canaries,
            self.settings.attest_tolerance,
            checkpoint.weights_sha256,
            upstream_key(self.settings) if target.key_name else None,
            hosted,
        )


def upstream_key(settings: Settings) -> str | None:
    """The key of the service that answers: its own, or that of Weights & Biases where the checkpoints name it."""
    key = settings.upstream_key or (settings.wandb_api_key if settings.upstream_url is None else None)
    return (key.get_secret_value() or None) if key else None
