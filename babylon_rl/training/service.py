"""Our `ModelService` under ART's `LocalBackend`: ART tokenizes, weighs and counts, this makes the optimizer steps.

ART hands over one padded row an answer; rows are repacked (`packing`), evaluated under the mask and temperature that
they were sampled with (`policy`), and go through ART's own loss.
"""

import json
import math
import shutil
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.training.policy import Answer, Evaluated, Policy
from babylon_rl.training.recipe import Recipe

OPTIMIZER_FILE = "optimizer.pt"


class RowPlan(msgspec.Struct, frozen=True):
    """What ART's tensors do not carry for a row: the prompt's length, the mask's choices, and its minibatch."""

    prompt_length: int
    choices: list[list[int]] | None
    temperature: float
    minibatch: int
    pair: tuple[int, int] | None  # first tokens of the answers held in balance
    enumerated: bool = False  # one of all legal answers, and not one that was drawn


class Row(msgspec.Struct, frozen=True):
    """One answer to train on. `index`: its row in ART's tensors."""

    index: int
    answer: Answer
    pair: tuple[int, int] | None
    enumerated: bool


class TorchService:
    """Updates the LoRA adapter of one policy. Implements `art.local.service.ModelService`."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        plans: list[tuple[list[int], RowPlan]],
        step: int,
        optimizer_state: Path | None,
        output_dir: str,
        report: Callable[[dict[str, float]], None],
    ) -> None:
        self.policy, self.recipe, self.step, self.output_dir, self.report = policy, recipe, step, output_dir, report
        self.optimizer_state = optimizer_state
        self.plans: dict[tuple[int, ...], deque[RowPlan]] = defaultdict(deque)
        for tokens, plan in plans:
            self.plans[tuple(tokens)].append(plan)

    async def start_openai_server(self, config: Any) -> tuple[str, int]:
        raise TrainingError("The trainer serves nothing; checkpoints are served by `babylon-rl serve`.")

    async def vllm_engine_is_sleeping(self) -> bool:
        return False

    def train_sft(self, batches: Any, config: Any, verbose: bool = False) -> AsyncIterator[dict[str, float]]:
        raise TrainingError("The torch backend makes no supervised updates.")

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        """One optimizer step a minibatch and epoch, then the checkpoint. Yields the metrics of each step."""
        import torch
        from art.preprocessing.pack import packed_tensors_from_dir

        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        minibatches = self._minibatches(tensors)
        parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=self.recipe.adam_betas, weight_decay=0.0
        )
        taken = self._restore(optimizer)
        for rows in minibatches * self.recipe.epochs:
            taken += 1
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * self.recipe.rate_at(taken)
            optimizer.zero_grad()
            balance = Balance(parameters, self.recipe.balance_rate)
            metrics = self._backward(tensors, rows, _config, balance)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm)
            if not math.isfinite(float(norm)):
                raise TrainingError("The gradient is not finite; the parent checkpoint stays. Lower the learning rate.")
            optimizer.step()
            balance.restore()
            metrics["grad_norm"] = float(norm)
            self.report(metrics)
            yield {**metrics, "data/step_num_gradient_steps": float(len(minibatches) * self.recipe.epochs)}
        self._save(optimizer, taken)

    def _minibatches(self, tensors: Any) -> list[list[Row]]:
        """The rows of each minibatch, in a fixed order."""
        found: dict[int, list[Row]] = defaultdict(list)
        lengths = tensors["assistant_mask"].long().cumsum(1).argmax(1) + 1  # one past the last trainable token
        for row, length in enumerate(lengths.tolist()):
            tokens = tensors["tokens"][row, :length].tolist()
            if not self.plans[tuple(tokens)]:
                raise TrainingError(
                    "ART tokenized an answer to other tokens than were sampled; the tokenizer or chat template of the "
                    "base model is not the one that played."
                )
            plan = self.plans[tuple(tokens)].popleft()
            answer = Answer(tokens[: plan.prompt_length], tokens[plan.prompt_length :], plan.choices, plan.temperature)
            found[plan.minibatch].append(Row(row, answer, plan.pair, plan.enumerated))
        # ART shuffles with the global random state; the order of a sum is ours to fix.
        return [sorted(found[index], key=lambda row: row.answer.prompt + row.answer.tokens) for index in sorted(found)]

    def _backward(self, tensors: Any, rows: list[Row], loss_config: Any, balance: "Balance") -> dict[str, float]:
        """Accumulate the gradient of one minibatch: mean over its answers, whatever their number of tokens."""
        totals: dict[str, float] = defaultdict(float)
        for members, evaluated in self.policy.evaluate([row.answer for row in rows]):
            mine = [rows[member] for member in members]
            objective = self._objective(tensors, mine, evaluated, loss_config, totals) / len(rows)
            tilt = _tilt(mine, evaluated)
            objective.backward(retain_graph=tilt is not None)
            if tilt is not None:
                balance.add(tilt / len(rows))
            totals["loss"] += float(objective.detach())
        chosen = max(1.0, totals["choosing"])
        return {
            "loss": totals["loss"],
            "entropy": totals["entropy"] / chosen,
            "ratio": totals["ratio"] / chosen,
            "tilt": balance.tilt,
            "trainable_tokens": totals["tokens"],
            "choosing_tokens": totals["choosing"],
            "answers": float(len(rows)),
        }

    def _objective(
        self, tensors: Any, rows: list[Row], evaluated: list[Evaluated], loss_config: Any, totals: dict[str, float]
    ) -> Any:
        """Sum over the rows of ART's loss, less the entropy bonus; adds to the totals what is reported."""
        import torch
        from art.loss import loss_fn

        device = self.policy.device
        indices = torch.tensor([row.index for row in rows])
        inputs = {key: value[indices].to(device) for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        logprobs = torch.zeros(inputs["tokens"].shape, device=device)
        entropies = torch.zeros(inputs["tokens"].shape, device=device)
        for place, (row, result) in enumerate(zip(rows, evaluated, strict=True)):
            start = len(row.answer.prompt)
            end = start + len(result.logprobs)
            at = torch.tensor(place, device=device)
            # ART's loss reads the log-probability of token t + 1 at position t, the entropy at its own.
            logprobs = logprobs.index_put((at, torch.arange(start - 1, end - 1, device=device)), result.logprobs)
            entropies = entropies.index_put((at, torch.arange(start, end, device=device)), result.entropies)
            if row.enumerated:
                # ART's ratio becomes the policy's own probability of the answer, to the recipe's exponent.
                inputs["logprobs"][place, start:end] = (1 - self.recipe.policy_exponent) * result.logprobs.detach()
            ratios = (result.logprobs.detach() - inputs["logprobs"][place, start:end]).exp()
            for index, choosing in enumerate(result.choosing):
                if choosing:
                    totals["ratio"] += float(ratios[index])
                    totals["entropy"] += float(result.entropies[index].detach())
                    totals["choosing"] += 1
            totals["tokens"] += len(result.logprobs)
        loss = loss_fn(inputs, logprobs, None, entropies, loss_config, reduction="sum")
        return loss.policy_loss - self.recipe.entropy_coefficient * loss.entropy

    def _restore(self, optimizer: Any) -> int:
        """Continue the parent's moments and step count; 0 steps for a fresh adapter."""
        if self.optimizer_state is None:
            return 0
        import torch

        saved = torch.load(self.optimizer_state, map_location=self.policy.device, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        return int(saved["steps"])

    def _save(self, optimizer: Any, steps: int) -> None:
        """The checkpoint's folder, complete or not there: written beside its place, then renamed."""
        import torch
        from art.utils.output_dirs import get_step_checkpoint_dir

        target = Path(get_step_checkpoint_dir(self.output_dir, self.step + 1))
        partial = target.with_name(f"partial-{target.name}")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            self.policy.model.save_pretrained(partial)
            torch.save({"optimizer": optimizer.state_dict(), "steps": steps}, partial / OPTIMIZER_FILE)
            (partial / "recipe.json").write_text(json.dumps(self.recipe.as_json(), sort_keys=True))
            partial.rename(target)
        except Exception as error:  # safetensors, zip and the file system each have errors of their own for a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"The checkpoint could not be written to {target} ({error}). The parent stays as it was; free some "
                "disk space and run the command again."
            ) from error


def _tilt(rows: list[Row], evaluated: list[Evaluated]) -> Any:
    """Sum over the rows of log p(first balanced answer) - log p(second); None where no row has both."""
    tilts = [
        result.opening[row.pair[0]] - result.opening[row.pair[1]]
        for row, result in zip(rows, evaluated, strict=True)
        if row.pair is not None
    ]
    return sum(tilts) if tilts else None


class Balance:
    """Holds the mean preference between two opposite answers while everything else is learnt.

    The tilt is the minibatch's mean difference of their log-probabilities. An optimizer step d changes it by g.d, g its
    gradient; d is replaced by d - g (g.d + rate * tilt) / |g|^2, the nearest step that moves it by -rate * tilt.
    After the step and not in the loss, for Adam scales each weight by itself and would turn the direction again.
    """

    def __init__(self, parameters: list[Any], rate: float) -> None:
        self.parameters, self.rate, self.tilt = parameters, rate, 0.0
        self.before = [p.detach().clone() for p in parameters]
        self.gradient: list[Any] | None = None

    def add(self, tilt: Any) -> None:
        """Add a part of the minibatch's tilt and its gradient."""
        import torch

        gradient = torch.autograd.grad(tilt, self.parameters)
        added = self.gradient or [torch.zeros_like(g) for g in gradient]
        self.gradient = [a + g for a, g in zip(added, gradient, strict=True)]
        self.tilt += float(tilt.detach())

    def restore(self) -> None:
        """Project the step that was just taken."""
        import torch

        if self.gradient is None:
            return
        size = sum(float((g * g).sum()) for g in self.gradient)
        if size == 0:
            return
        pairs = zip(self.parameters, self.before, self.gradient, strict=True)
        moved = sum(float(((p.detach() - old) * g).sum()) for p, old, g in pairs)
        factor = -(moved + self.rate * self.tilt) / size
        with torch.no_grad():
            for parameter, g in zip(self.parameters, self.gradient, strict=True):
                parameter.add_(g, alpha=factor)
