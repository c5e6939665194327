"""Who answers a call: the promoted checkpoint, the candidate of an experiment, the base model, or one that was named.

Pure functions over `Routes`, which says what is served now. An agent keeps its arm for a window: the arm depends on the
experiment, the agent and the window alone, so that any gateway, and any later reader, finds the same one.
"""

import hashlib
from typing import Literal

import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

PROMOTED, CANDIDATE, BASE, PINNED = "promoted", "candidate", "base", "pinned"
Design = Literal["paired-by-window", "switchback"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A model behind an address. `base_url` ends in /v1; `model`: its name there; `fields`: what that service takes.

    `key_name`: which of the gateway's own keys is sent (`upstream`), None where the service needs none.
    """

    checkpoint_id: str
    base_url: str
    model: str
    fields: Literal["vllm", "openai"] = "vllm"
    key_name: str | None = None


class ExperimentRoute(msgspec.Struct, frozen=True, kw_only=True):
    """What of an experiment decides who answers. `share`: of agents or blocks, 0 to 1; `block_hours`: of a switchback.

    Windows from `first_window` on, before `end_window` where there is one.
    """

    experiment_id: str
    design: Design
    share: float
    seed: int
    first_window: str
    block_hours: int
    end_window: str | None = None


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """What is served now. `targets`: all that may be named, by checkpoint id, the three roles among them."""

    promoted: Target | None
    base: Target | None
    candidate: Target | None = None
    experiment: ExperimentRoute | None = None
    targets: dict[str, Target] = {}


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers. `experiment_id`: of the experiment that chose, None outside of one."""

    target: Target
    arm: Literal["promoted", "candidate", "base", "pinned"]
    experiment_id: str | None = None


def choose(routes: Routes, agent_id: str, window_id: str, named: str | None) -> Chosen:
    """Who answers the agent in the window. `named`: a checkpoint, or `base`, that the caller insists on, else None.

    ServingError where nothing is served, or not what is named.
    """
    if named == BASE:
        return _of(routes.base, BASE)
    if named is not None:
        if named not in routes.targets:
            served = ", ".join(sorted(routes.targets)) or "none"
            raise ServingError(f"{named!r} is not served here; served are: {served}.")
        return Chosen(target=routes.targets[named], arm=PINNED)
    experiment = routes.experiment
    if experiment is not None and routes.candidate is not None and runs_in(experiment, window_id):
        if candidate_answers(experiment, agent_id, window_id):
            return Chosen(target=routes.candidate, arm=CANDIDATE, experiment_id=experiment.experiment_id)
        return msgspec.structs.replace(_standing(routes), experiment_id=experiment.experiment_id)
    return _standing(routes)


def _standing(routes: Routes) -> Chosen:
    """What answers outside of an experiment: the promoted checkpoint, and before there is one the base model."""
    return _of(routes.promoted, PROMOTED) if routes.promoted is not None else _of(routes.base, BASE)


def _of(target: Target | None, arm: Literal["promoted", "base"]) -> Chosen:
    if target is None:
        raise ServingError(f"No {arm} model is served here.")
    return Chosen(target=target, arm=arm)


def runs_in(experiment: ExperimentRoute, window_id: str) -> bool:
    """Whether the experiment takes place in the window."""
    return experiment.first_window <= window_id and (experiment.end_window is None or window_id < experiment.end_window)


def candidate_answers(experiment: ExperimentRoute, agent_id: str, window_id: str) -> bool:
    """Whether the candidate answers this agent in this window.

    `paired-by-window`: a share of the agents of each window, drawn anew for each. `switchback`: all agents of a block
    of windows; of two neighbouring blocks one is the candidate's, which one is drawn.
    """
    if experiment.design == "paired-by-window":
        return draw(experiment.seed, agent_id, window_id) < experiment.share
    block = block_of(experiment, window_id)
    first_is_candidates = draw(experiment.seed, "pair", str(block // 2)) < 0.5
    return first_is_candidates == (block % 2 == 0)


def block_of(experiment: ExperimentRoute, window_id: str) -> int:
    """Number of the window's block, from 0."""
    return hours_in(experiment, window_id) // experiment.block_hours


def hours_in(experiment: ExperimentRoute, window_id: str) -> int:
    """Hours from the experiment's first window to this one."""
    return (parse_window_id(window_id) - parse_window_id(experiment.first_window)) // WINDOW_LENGTH


def draw(seed: int, *of: str) -> float:
    """A number from 0 to below 1 that is always the same for the same seed and texts; uniform over them."""
    digest = hashlib.sha256("/".join((str(seed), *of)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
