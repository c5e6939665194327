"""An update: optimizer steps on the rows of a snapshot, on top of a parent, to a checkpoint in ART's layout."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import SnapshotHeader
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.admission import ESS_FLOOR
from babylon_rl.training.backends.torch import resume
from babylon_rl.training.backends.torch.balance import Balance
from babylon_rl.training.backends.torch.loss import EffectiveSize, Minibatch, effective_size
from babylon_rl.training.backends.torch.rows import RowMaker
from babylon_rl.training.backends.torch.stored_rows import StoredRows, read_rows, store_rows
from babylon_rl.training.canaries import Likely, canary_logprobs
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe

OPTIMIZER_FILE = "optimizer.pt"

# An optimizer step's metrics, its number from 1, and how many there are.
Report = Callable[[dict[str, float], int, int], None]


class Update(msgspec.Struct, frozen=True):
    """The folder of the new checkpoint, the metrics averaged over the steps, and those of each step.

    `canaries`: what its weights say on the canary set; None where the base model's chat template takes none of it.
    """

    folder: Path
    metrics: dict[str, float]
    steps: list[dict[str, float]]
    canaries: list[Likely] | None = None


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained on: a base model and its adapter's folder (None: a fresh one), which is `step` of its run."""

    base_folder: Path
    parent_folder: Path | None
    step: int
    device: str


def update(
    header: SnapshotHeader,
    groups: Iterable[Group],
    recipe: Recipe,
    start: Start,
    work: Path,
    report: Report,
    key: str = "",
) -> Update:
    """Train the groups of a snapshot, read once and in order, inside the folder `work`.

    Continues the state that an earlier attempt left there under the same `key`. Deterministic on a CPU for a snapshot,
    parent and number of threads, interrupted or not. TrainingError says why nothing was trained.
    """
    policy = _policy(recipe, start, header.seed)
    maker = RowMaker(policy.chat, policy.context, header.settings.get("balanced_answers"))
    folder = work / "rows"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rows = store_rows(groups, header.groups, int(header.settings.get("minibatches", 1)), maker, folder)
    except OSError as error:
        raise _disk_error(folder, error) from error
    resume.seed_everything(f"{header.snapshot_id} {start.step}")
    steps = _Steps(policy, recipe, rows, start, work, key)
    steps.take(report)
    made = _save(policy, recipe, steps, work / f"{start.step + 1:04d}")
    return Update(made, steps.metrics(), steps.done, _canaries(policy))


def _canaries(policy: Policy) -> list[Likely] | None:
    """Computed while the trained weights are at hand. An update that is made is not lost to a failure here: what
    serves the checkpoint computes them afterwards, and says why it cannot."""
    try:
        return canary_logprobs(policy, policy.adapters[-1])
    except Exception:
        return None


def _policy(recipe: Recipe, start: Start, seed: int) -> Policy:
    precision = None if recipe.precision is msgspec.UNSET else recipe.precision
    policy = Policy(start.base_folder, start.device, precision=precision)
    if start.parent_folder is None:
        policy.add_fresh_adapter(recipe, seed)
    else:
        policy.add_adapter(start.parent_folder, trainable=True)
    return policy


class _Steps:
    """The optimizer steps of one update: one a minibatch and epoch, in order. `done`: the metrics of each."""

    def __init__(self, policy: Policy, recipe: Recipe, rows: StoredRows, start: Start, work: Path, key: str) -> None:
        import torch

        self.policy, self.recipe, self.rows, self.work, self.key = policy, recipe, rows, work, key
        self.parameters = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.learning_rate, betas=recipe.adam_betas, weight_decay=0.0
        )
        self.taken = self._of_parent(start)  # optimizer steps over the whole run, which the schedule counts
        self.done: list[dict[str, float]] = []
        self.size: EffectiveSize | None = None
        self.order = rows.minibatches * recipe.epochs
        state = resume.load_state(work, key)
        if state is None:
            self.size = self._measured()
        else:
            self._restore(state)

    def take(self, report: Report) -> None:
        """The steps that are left, each reported; the state is saved every `SAVE_SECONDS`."""
        saved = time.monotonic()
        while len(self.done) < len(self.order):
            self.done.append(self._step(self.order[len(self.done)]))
            if time.monotonic() - saved >= resume.SAVE_SECONDS:
                self._keep()
                saved = time.monotonic()
            report(self.done[-1], len(self.done), len(self.order))
        if not sum(step["choosing_tokens"] for step in self.done):
            raise TrainingError("Nothing was trainable in the snapshot; the parent checkpoint stays.")

    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the steps that have it, and the effective sample size of the batch."""
        names = {name: None for step in self.done for name in step}
        found = {name: [step[name] for step in self.done if name in step] for name in names}
        means = {name: math.fsum(values) / len(values) for name, values in found.items()}
        share = self.size.share if self.size is not None else None
        return means if share is None else {**means, "ess": share}

    def _step(self, file: Path) -> dict[str, float]:
        import torch

        first_epoch = len(self.done) < len(self.rows.minibatches)
        self.taken += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.recipe.rate_at(self.taken)
        self.optimizer.zero_grad()
        parameters = list(self.parameters.values())
        balance = Balance(parameters, self.recipe.balance_rate)
        minibatch = Minibatch(self.policy, self.recipe, self.rows.scale, balance)
        metrics = minibatch.backward(read_rows(file))
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError("The gradient is not finite; the parent checkpoint stays. Lower the learning rate.")
        self.optimizer.step()
        balance.restore()
        if first_epoch and minibatch.size.share is not None:
            metrics["ess"] = minibatch.size.share
        if first_epoch and not self._measures:
            self.size = (self.size or EffectiveSize()).joined(minibatch.size)
        return {**metrics, "grad_norm": norm}

    @property
    def _measures(self) -> bool:
        """Whether the ratios are measured before the first step, at the price of one forward pass.

        On recordings of the parent itself, which this endpoint made, each ratio is 1 up to exploration: there they
        are taken from the first epoch on the way.
        """
        return self.rows.stale or self.recipe.ess_floor is not msgspec.UNSET

    def _measured(self) -> EffectiveSize | None:
        if not self._measures:
            return None
        found = effective_size(self.policy, self.rows.minibatches)
        floor = ESS_FLOOR if self.recipe.ess_floor is msgspec.UNSET else self.recipe.ess_floor
        if found.share is not None and found.share < floor:
            raise TrainingError(
                f"The effective sample size is {found.share:.3g} of {found.count:.0f} answers, and `ess_floor` is "
                f"{floor:g}: the current policy would hardly have given them. The parent checkpoint stays; record "
                "with a later checkpoint, or narrow `stale_limit`."
            )
        return found

    def _of_parent(self, start: Start) -> int:
        """Continue the parent's moments and step count; 0 steps for a fresh adapter."""
        if start.parent_folder is None:
            return 0
        import torch

        path = start.parent_folder / OPTIMIZER_FILE
        try:
            saved = torch.load(path, map_location=self.policy.device, weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            return int(saved["steps"])
        except Exception as error:  # OSError, zip's and pickle's own, and ValueError for moments of other weights
            raise TrainingError(
                f"The optimizer's moments in {path} cannot be read ({type(error).__name__}: {error}). Put the file "
                "back: without it the update would be another one. The parent checkpoint stays."
            ) from error

    def _keep(self) -> None:
        state = {
            "weights": {name: p.detach().clone() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "taken": self.taken,
            "steps": self.done,  # as many as the cursor says: the next one is the first that is not there
            "size": None if self.size is None else self.size.state,
        }
        try:
            resume.save_state(self.work, self.key, state)
        except OSError as error:
            raise resume.DiskError(
                f"The state of the update could not be written to {self.work} ({error}). The parent stays as it was; "
                "free some disk space and run the command again."
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken, self.done = state["taken"], state["steps"]
        self.size = None if state["size"] is None else EffectiveSize(state["size"])
        resume.restore_random_states(state["random"])


def _save(policy: Policy, recipe: Recipe, steps: _Steps, target: Path) -> Path:
    """The checkpoint's folder, complete on the disk or not there: written beside its place, then renamed."""
    import torch

    partial = target.with_name(f"partial-{target.name}")
    try:
        partial.mkdir(parents=True)
        policy.model.save_pretrained(partial)
        torch.save({"optimizer": steps.optimizer.state_dict(), "steps": steps.taken}, partial / OPTIMIZER_FILE)
        (partial / "recipe.json").write_text(json.dumps(recipe.as_json(), sort_keys=True))
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        resume.sync_folder(partial)
        partial.rename(target)
    except Exception as error:  # safetensors, zip and the file system each have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise _disk_error(target, error) from error
    return target


def _disk_error(target: Path, error: Exception) -> resume.DiskError:
    return resume.DiskError(
        f"The checkpoint could not be written to {target} ({error}). The parent stays as it was; free some disk space "
        "and run the command again."
    )
