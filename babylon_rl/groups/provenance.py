"""Provenance: which policy wrote a trajectory, and which losses may therefore use it.

An importance-weighted loss divides by the probability under the behaviour policy, so it needs that probability, and a
behaviour policy close to the current one. Everything else about a recording is kept and shown, and not trained on.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

Label = Literal["on_policy", "stale", "foreign_model", "no_logprobs", "no_text"]

IMPORTANCE_WEIGHTED, WEIGHTED_SUPERVISED = "importance_weighted", "weighted_supervised"
Loss = Literal["importance_weighted", "weighted_supervised"]

# Loss -> labels that it is valid for. A loss that is not here takes nothing. The first divides by the recorded
# probability (CISPO, PPO); the second imitates what did better than its window's baseline, which needs the text alone.
ADMITTED: Mapping[str, frozenset[str]] = {
    IMPORTANCE_WEIGHTED: frozenset({"on_policy", "stale"}),
    WEIGHTED_SUPERVISED: frozenset({"foreign_model", "no_logprobs"}),
}

# Backend -> losses that it can compute. A hosted trainer takes sampled tokens with their log-probabilities only.
LOSSES: Mapping[str, frozenset[str]] = {
    "torch": frozenset({IMPORTANCE_WEIGHTED, WEIGHTED_SUPERVISED}),
    "wandb": frozenset({IMPORTANCE_WEIGHTED}),
    "art-local": frozenset({IMPORTANCE_WEIGHTED}),
}

# Updates after which a recording is too old, whatever its ratio says.
STALE_LIMIT = 8
# Days between a recording's window and the update's last one after which it is too old: markets move on.
STALE_DAYS = 14.0


class Provenance(msgspec.Struct, frozen=True):
    """A label; `updates` is how many updates a stale trajectory is behind."""

    label: Label
    updates: int = 0

    def __str__(self) -> str:
        return f"stale({self.updates})" if self.label == "stale" else self.label


class Lineage(msgspec.Struct, frozen=True):
    """The checkpoints of one training run, id to step, and the step that is trained now."""

    training_run: str
    steps: dict[str, int]
    current: int


def provenance_of(recorded: str, checkpoints: Collection[str], lineage: Lineage) -> Provenance:
    """Provenance of a trajectory.

    `recorded`: logged | no_logprobs | no_text; `checkpoints`: those that answered its calls. A trajectory that several
    checkpoints wrote is as old as the oldest. A checkpoint outside the run, or ahead of its current step, is foreign.
    """
    if recorded == "no_text":
        return Provenance("no_text")
    if recorded != "logged" or not checkpoints:
        return Provenance("no_logprobs")
    behind = [lineage.current - lineage.steps[name] for name in checkpoints if name in lineage.steps]
    if len(behind) < len(checkpoints) or min(behind) < 0:
        return Provenance("foreign_model")
    return Provenance("stale", max(behind)) if max(behind) else Provenance("on_policy")


def admitted(provenance: Provenance, loss: str = IMPORTANCE_WEIGHTED, stale_limit: int = STALE_LIMIT) -> bool:
    """Whether the loss may use trajectories of this provenance."""
    if provenance.label not in ADMITTED.get(loss, frozenset()):
        return False
    return provenance.label != "stale" or provenance.updates <= stale_limit
