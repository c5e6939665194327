"""What a minibatch's gradient is made of: ART's loss of each row, the entropy bonus, and what is reported of them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from babylon_rl.training.backends.torch.balance import Balance
from babylon_rl.training.backends.torch.rows import Row, Scale
from babylon_rl.training.backends.torch.stored_rows import read_rows
from babylon_rl.training.policy import Evaluated, Policy
from babylon_rl.training.recipe import Recipe


class EffectiveSize:
    """Effective sample size of importance ratios w, (sum w)^2 / sum w^2 (Kish 1965), from their logarithms."""

    def __init__(self, state: Sequence[float] = (0.0, -math.inf, 0.0, 0.0)) -> None:
        self.count, self.largest, self.sum, self.squares = state

    @property
    def state(self) -> list[float]:
        """As the constructor takes it."""
        return [self.count, self.largest, self.sum, self.squares]

    def joined(self, other: "EffectiveSize") -> "EffectiveSize":
        """Of the answers of both."""
        largest = max(self.largest, other.largest)
        count, first, squares = 0.0, 0.0, 0.0
        for each in (self, other):
            shrunk = math.exp(each.largest - largest) if each.count else 0.0
            count, first, squares = count + each.count, first + each.sum * shrunk, squares + each.squares * shrunk**2
        return EffectiveSize((count, largest, first, squares))

    @property
    def share(self) -> float | None:
        """Of the number of answers, 0 to 1; None where there are none."""
        return self.sum**2 / (self.count * self.squares) if self.count else None

    def add(self, log_ratios: Iterable[float]) -> None:
        """Add answers. Sums are kept relative to the largest ratio, so that none overflows."""
        for log_ratio in log_ratios:
            if log_ratio > self.largest:
                shrunk = math.exp(self.largest - log_ratio)
                self.sum, self.squares, self.largest = self.sum * shrunk, self.squares * shrunk**2, log_ratio
            ratio = math.exp(log_ratio - self.largest)
            self.count, self.sum, self.squares = self.count + 1, self.sum + ratio, self.squares + ratio**2


def effective_size(policy: Policy, minibatches: Iterable[Path]) -> EffectiveSize:
    """Of all drawn answers under the policy as it is: one forward pass over the batch."""
    import torch

    found = EffectiveSize()
    with torch.no_grad():
        for file in minibatches:
            rows = [row for row in read_rows(file) if row.kind == "drawn"]
            for members, evaluated in policy.evaluate([row.answer for row in rows]):
                found.add(_log_ratios([rows[member] for member in members], evaluated))
    return found


def _log_ratios(rows: Sequence[Row], evaluated: Sequence[Evaluated]) -> list[float]:
    """Of each drawn answer as a whole: its log-probability now less that with which it was drawn."""
    return [
        float(result.logprobs.detach().sum()) - math.fsum(row.logprobs)
        for row, result in zip(rows, evaluated, strict=True)
        if row.kind == "drawn"
    ]


class Minibatch:
    """The gradient of one minibatch, accumulated packed row by packed row, and its metrics."""

    def __init__(self, policy: Policy, recipe: Recipe, scale: Scale, balance: Balance) -> None:
        from art._backend_training import build_rl_train_configs

        self.policy, self.recipe, self.scale, self.balance = policy, recipe, scale, balance
        _, self.config = build_rl_train_configs(learning_rate=recipe.learning_rate, ppo=recipe.loss == "ppo")
        self.totals: dict[str, float] = defaultdict(float)
        self.size = EffectiveSize()

    def backward(self, rows: Sequence[Row]) -> dict[str, float]:
        """Accumulate the gradient: the mean over the answers, whatever their number of tokens."""
        for members, evaluated in self.policy.evaluate([row.answer for row in rows]):
            mine = [rows[member] for member in members]
            objective = self._objective(mine, evaluated) / len(rows)
            tilt = _tilt(mine, evaluated)
            objective.backward(retain_graph=tilt is not None)
            if tilt is not None:
                self.balance.add(tilt / len(rows))
            self.totals["loss"] += float(objective.detach())
        totals, chosen = self.totals, max(1.0, self.totals["choosing"])
        ratio = {"ratio": totals["ratio"] / totals["weighted"]} if totals["weighted"] else {}
        return {
            "loss": totals["loss"],
            "entropy": totals["entropy"] / chosen,
            **ratio,
            "tilt": self.balance.tilt,
            "trainable_tokens": totals["tokens"],
            "choosing_tokens": totals["choosing"],
            "answers": float(len(rows)),
        }

    def _objective(self, rows: Sequence[Row], evaluated: Sequence[Evaluated]) -> Any:
        """Sum over the rows of ART's loss, less the entropy bonus; adds to the totals what is reported."""
        from art.loss import loss_fn
        from torch.nn.functional import pad
        from torch.nn.utils.rnn import pad_sequence

        # Of the prompt its last token only: the rest has no part in the loss. ART's loss reads the log-probability of
        # token t + 1 at position t, the entropy at its own.
        logprobs = pad(pad_sequence([e.logprobs for e in evaluated], batch_first=True), (0, 1))
        entropies = pad(pad_sequence([e.entropies for e in evaluated], batch_first=True), (1, 0))
        inputs = self.tensors_of(rows, [e.logprobs.detach() for e in evaluated])
        self._count(rows, evaluated, inputs, logprobs, entropies)
        loss: Any = loss_fn(inputs, logprobs, None, entropies, self.config, reduction="sum")  # type: ignore[arg-type]
        return loss.policy_loss - self.recipe.entropy_coefficient * loss.entropy

    def tensors_of(self, rows: Sequence[Row], now: Sequence[Any]) -> dict[str, Any]:
        """ART's tensors, (rows, 1 + longest answer). `now`: log-probabilities under the policy as it is."""
        import torch

        shape = (len(rows), 1 + max(len(row.answer.tokens) for row in rows))
        mask = torch.zeros(shape, dtype=torch.bool)
        old, weights, advantages = torch.full(shape, math.nan), torch.zeros(shape), torch.zeros(shape)
        for place, (row, own) in enumerate(zip(rows, now, strict=True)):
            end = 1 + len(row.answer.tokens)
            mask[place, 1:end] = True
            weights[place, 1:end] = row.weight * self.scale.weight
            advantages[place, 1:end] = row.advantage * self.scale.advantage
            old[place, 1:end] = self._old(row, own.float().cpu())
        tensors = {"logprobs": old, "weights": weights, "advantages": advantages, "assistant_mask": mask}
        return {name: tensor.to(self.policy.device) for name, tensor in tensors.items()}

    def _old(self, row: Row, now: Any) -> Any:
        """What ART divides by: the policy that drew the answer, for ratio 1 the policy as it is."""
        import torch

        if row.kind == "drawn":
            return torch.tensor(row.logprobs)
        if row.kind == "imitated":
            return now
        # ART's ratio becomes the policy's own probability of the answer, to the recipe's exponent.
        return (1 - self.recipe.policy_exponent) * now

    def _count(
        self, rows: Sequence[Row], evaluated: Sequence[Evaluated], inputs: dict[str, Any], logprobs: Any, entropies: Any
    ) -> None:
        import torch

        choosing = torch.zeros(logprobs.shape, dtype=torch.bool)
        weighted = torch.zeros(logprobs.shape, dtype=torch.bool)
        for place, (row, result) in enumerate(zip(rows, evaluated, strict=True)):
            own = torch.tensor(result.choosing)
            choosing[place, 1 : 1 + len(own)] = own
            if row.kind != "imitated":
                weighted[place, 1 : 1 + len(own)] = own
        choosing, weighted = choosing.to(self.policy.device), weighted.to(self.policy.device)
        now = logprobs.detach().roll(1, 1)
        totals = self.totals
        totals["ratio"] += float((now - inputs["logprobs"])[weighted].exp().sum())
        totals["entropy"] += float(entropies.detach()[choosing].sum())
        totals["weighted"] += int(weighted.sum())
        totals["choosing"] += int(choosing.sum())
        totals["tokens"] += sum(len(row.answer.tokens) for row in rows)
        self.size.add(_log_ratios(rows, evaluated))


def _tilt(rows: Sequence[Row], evaluated: Sequence[Evaluated]) -> Any:
    """Sum over the rows of log p(first balanced answer) - log p(second); None where no row has both."""
    tilts = [
        result.opening[row.pair[0]] - result.opening[row.pair[1]]
        for row, result in zip(rows, evaluated, strict=True)
        if row.pair is not None
    ]
    return sum(tilts) if tilts else None
