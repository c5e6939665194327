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
from babylon_rl.training.policy import Answer, Policy
from babylon_rl.training.recipe import Recipe

OPTIMIZER_FILE = "optimizer.pt"


class RowPlan(msgspec.Struct, frozen=True):
    """What ART's tensors do not carry for a row: the prompt's length, the mask's choices, and its minibatch."""

    prompt_length: int
    choices: list[list[int]] | None
    temperature: float
    minibatch: int


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
        """One optimizer step a minibatch, then the checkpoint. Yields the metrics of each step."""
        import torch
        from art.preprocessing.pack import packed_tensors_from_dir

        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        minibatches = self._minibatches(tensors)
        parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=self.recipe.adam_betas, weight_decay=0.0
        )
        taken = self._restore(optimizer)
        for rows in minibatches:
            taken += 1
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, taken / max(1, self.recipe.warmup_steps))
            optimizer.zero_grad()
            metrics = self._backward(tensors, rows, _config)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm)
            if not math.isfinite(float(norm)):
                raise TrainingError("The gradient is not finite; the parent checkpoint stays. Lower the learning rate.")
            optimizer.step()
            metrics["grad_norm"] = float(norm)
            self.report(metrics)
            yield {**metrics, "data/step_num_gradient_steps": float(len(minibatches))}
        self._save(optimizer, taken)

    def _minibatches(self, tensors: Any) -> list[list[tuple[int, Answer]]]:
        """Per minibatch its rows in a fixed order: (row of ART's tensors, the answer in it)."""
        found: dict[int, list[tuple[int, Answer]]] = defaultdict(list)
        lengths = tensors["assistant_mask"].long().cumsum(1).argmax(1) + 1  # one past the last trainable token
        for row, length in enumerate(lengths.tolist()):
            tokens = tensors["tokens"][row, :length].tolist()
            if not self.plans[tuple(tokens)]:
                raise TrainingError(
                    "ART tokenized an answer to other tokens than were sampled; the tokenizer or chat template of the "
                    "base model is not the one that played."
                )
            plan = self.plans[tuple(tokens)].popleft()
            answer = Answer(
                tokens[: plan.prompt_length], tokens[plan.prompt_length :], plan.choices, plan.temperature
            )
            found[plan.minibatch].append((row, answer))
        # ART shuffles with the global random state; the order of a sum is ours to fix.
        return [sorted(found[index], key=lambda pair: pair[1].prompt + pair[1].tokens) for index in sorted(found)]

    def _backward(self, tensors: Any, rows: list[tuple[int, Answer]], loss_config: Any) -> dict[str, float]:
        """Accumulate the gradient of one minibatch: mean over its answers, whatever their number of tokens."""
        import torch
        from art.loss import loss_fn

        totals: dict[str, float] = defaultdict(float)
        for members, evaluated in self.policy.evaluate([answer for _, answer in rows]):
            indices = torch.tensor([rows[m][0] for m in members])
            inputs = {
                key: value[indices].to(self.policy.device)
                for key, value in tensors.items()
                if isinstance(value, torch.Tensor)
            }
            shape = inputs["tokens"].shape
            logprobs = torch.zeros(shape, device=self.policy.device)
            entropies = torch.zeros(shape, device=self.policy.device)
            for place, (member, result) in enumerate(zip(members, evaluated, strict=True)):
                start = len(rows[member][1].prompt)
                end = start + len(result.logprobs)
                # ART's loss reads the log-probability of token t + 1 at position t, the entropy at its own.
                logprobs = logprobs.index_put(
                    (torch.tensor(place), torch.arange(start - 1, end - 1)), result.logprobs
                )
                entropies = entropies.index_put((torch.tensor(place), torch.arange(start, end)), result.entropies)
                old = inputs["logprobs"][place, start:end]
                ratios = (result.logprobs.detach() - old).exp()
                for index, choosing in enumerate(result.choosing):
                    if choosing:
                        totals["ratio"] += float(ratios[index])
                        totals["entropy"] += float(result.entropies[index].detach())
                        totals["choosing"] += 1
                totals["tokens"] += len(result.logprobs)
            loss = loss_fn(inputs, logprobs, None, entropies, loss_config, reduction="sum")
            objective = (loss.policy_loss - self.recipe.entropy_coefficient * loss.entropy) / len(rows)
            objective.backward()
            totals["loss"] += float(objective.detach())
        return {
            "loss": totals["loss"],
            "entropy": totals["entropy"] / max(1.0, totals["choosing"]),
            "ratio": totals["ratio"] / max(1.0, totals["choosing"]),
            "trainable_tokens": totals["tokens"],
            "choosing_tokens": totals["choosing"],
            "answers": float(len(rows)),
        }

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
                f"The checkpoint could not be written to {target} ({error}). The parent stays as it was; free some disk "
                "space and run the command again."
            ) from error
