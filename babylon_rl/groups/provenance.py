"""Provenance: which policy wrote a trajectory, and which losses may therefore use it.

An importance-weighted loss divides by the probability under the behaviour policy, so it needs that probability, and a
behaviour policy close to the current one. A supervised loss imitates a text, so it needs the text, and a reason to
imitate it. Everything else about a recording is kept and shown, and not trained on.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from babylon_rl.errors import SettingsError
from babylon_rl.windows import parse_window_id

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

# Backends that compute probabilities over all tokens at temperature 1, whatever an answer was drawn from.
PLAIN_SAMPLING = frozenset({"wandb", "art-local"})

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
    """The checkpoints of one training run, id to step, and the step that is trained now.

    `set_aside`: checkpoints of the run that an alarm led back behind. Their texts are what the alarm was about, and no
    loss takes them.
    """

    training_run: str
    steps: dict[str, int]
    current: int
    set_aside: tuple[str, ...] = ()


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What an update lets in: the backend, whose losses count, and what its recipe sets.

    `labels`: those that are let in, of those that the backend's losses take. `stale_limit`: updates; `stale_days`: days
    between a recording's window and the update's last one.
    """

    backend: str = "torch"
    labels: frozenset[str] = frozenset().union(*ADMITTED.values())
    stale_limit: int = STALE_LIMIT
    stale_days: float = STALE_DAYS

    @classmethod
    def of(cls, recipe: Mapping[str, Any], backend: str | None = None) -> "Admission":
        """From a recipe's JSON values, which may name the `backend` too; it is torch where nobody does.

        SettingsError where what is admitted has no loss, or the backend is unknown.
        """
        backend = backend or str(recipe.get("backend", "torch"))
        if backend not in LOSSES:
            raise SettingsError(f"There is no training backend {backend!r}. Known ones: {', '.join(sorted(LOSSES))}.")
        return cls(
            backend=backend,
            labels=labels_admitted(recipe.get("admit")),
            stale_limit=int(recipe.get("stale_limit", STALE_LIMIT)),
            stale_days=float(recipe.get("stale_days", STALE_DAYS)),
        )


class Ruling(NamedTuple):
    """The loss that a trajectory enters, or None with why. `kind`: one word for counts; `reason`: for a person."""

    loss: Loss | None
    kind: Literal[
        "", "stale", "stale_days", "foreign_model", "no_logprobs", "no_text", "narrowed", "set_aside", "drawn_otherwise"
    ] = ""
    reason: str = ""


def labels_admitted(named: Collection[str] | None) -> frozenset[str]:
    """The labels that are let in where the settings name these; all that some loss takes where they name none.

    SettingsError for a label that is not known, or that no loss may take: a setting narrows the table and never
    widens it.
    """
    known = frozenset().union(*ADMITTED.values())
    if named is None:
        return known
    if isinstance(named, str) or not named:
        raise SettingsError(f"admit names no labels: {named!r}. Name some of {', '.join(sorted(known))}, or drop it.")
    for label in named:
        if label not in Label.__args__:
            raise SettingsError(f"There is no label {label!r}. admit may name: {', '.join(sorted(known))}.")
        if label not in known:
            raise SettingsError(
                f"No loss may take trajectories labelled {label}, and a setting cannot let them in. admit may name: "
                f"{', '.join(sorted(known))}."
            )
    return frozenset(named)


def admit_of(text: str) -> tuple[str, ...] | msgspec.UnsetType:
    """`Recipe.admit` from the setting, labels separated by commas; UNSET where it is empty. SettingsError as above."""
    named = tuple(sorted({part.strip() for part in text.split(",")} - {""}))
    if not named:
        return msgspec.UNSET
    labels_admitted(named)
    return named


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


def loss_for(provenance: Provenance, admission: Admission, days: float = 0.0) -> Ruling:
    """The loss that takes a trajectory of this provenance, recorded `days` before the update's last window.

    Each label is in at most one loss of the table; a backend that cannot compute that loss takes no such trajectory.
    """
    label = provenance.label
    loss = next((loss for loss, labels in ADMITTED.items() if label in labels), None)
    if loss is None:
        return Ruling(None, "no_text", "no_text: no call of a language model is recorded")
    if loss not in LOSSES.get(admission.backend, frozenset()):
        return Ruling(None, label, f"{label}: backend {admission.backend} cannot compute the {loss} loss")  # type: ignore[arg-type]
    if label not in admission.labels:
        said = ", ".join(sorted(admission.labels))
        return Ruling(None, "narrowed", f"narrowed: {label} is not among the labels that admit names, {said}")
    if label == "stale" and provenance.updates > admission.stale_limit:
        said = f"{provenance}: {provenance.updates} updates behind, the limit is {admission.stale_limit}"
        return Ruling(None, "stale", said)
    if days > admission.stale_days:
        return Ruling(None, "stale_days", f"stale: {days:g} days, the limit is {admission.stale_days:g}")
    return Ruling(loss)  # type: ignore[arg-type]


def days_between(window_id: str, last_window: str) -> float:
    """Days from the window to the update's last one; 0 for one that is not before it."""
    return max(0.0, (parse_window_id(last_window) - parse_window_id(window_id)).total_seconds() / 86400)
