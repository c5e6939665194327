"""What was measured of the recipes that the package comes with: how many seeds, how many of them improved.

`measured.json` is written by `babylon-rl bench learning --publish`; an entry holds for one base model and one plan.
"""

from collections.abc import Iterable
from importlib.resources import files

import msgspec

DATA = "measured.json"


class MeasuredSeed(msgspec.Struct, frozen=True, kw_only=True):
    """A seed of the measurement; what is None was not reached (its demo failed) or not played.

    Effects in dollars an agent and window with 95 % intervals, (effect, low, high), over the model that was started
    from; `share` of what an informed trader earns.
    """

    seed: int
    promoted: bool
    effect: tuple[float, float, float] | None
    unseen: tuple[float, float, float] | None
    share: float | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement of one base model's recipe; `document` describes it, a path in the repository."""

    base_model: str
    plan_digest: str
    document: str
    seeds: list[MeasuredSeed]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement in short: seeds, those that improved, those whose interval on unseen news lies above zero."""

    seeds: int
    improved: int
    unseen_improved: int
    document: str


def entries() -> list[Entry]:
    """All measurements that the package comes with."""
    return msgspec.json.decode(files(__package__).joinpath(DATA).read_bytes(), type=list[Entry])


def measured_for(base_model: str, plan_digest: str, among: Iterable[Entry] | None = None) -> Measured | None:
    """The measurement of this base model with exactly this plan; None where there is none."""
    for entry in entries() if among is None else among:
        if (entry.base_model, entry.plan_digest) == (base_model, plan_digest):
            return Measured(
                seeds=len(entry.seeds),
                improved=sum(seed.promoted for seed in entry.seeds),
                unseen_improved=sum(seed.unseen is not None and seed.unseen[1] > 0 for seed in entry.seeds),
                document=entry.document,
            )
    return None


def how_sure(measured: Measured | None, base_model: str, ended: int, promoted: int) -> str:
    """The sentences at a demo's end: seeds of this recipe that were measured, and demos of it in this database."""
    if measured is None:
        said = (
            "This recipe has not been measured on several seeds: "
            f"`babylon-rl bench learning --model {base_model} --seeds 11-20` does it."
        )
    else:
        said = (
            f"This recipe was measured on {_seeds(measured.seeds)}: {measured.improved} improved, "
            f"{measured.unseen_improved} on unseen news ({measured.document})."
        )
    return f"{said} In this database: {_seeds(ended)}, {promoted} improved."


def _seeds(number: int) -> str:
    return f"{number} seed{'' if number == 1 else 's'}"
