"""Advantages: from the rewards of a window, and of a batch of windows, to what multiplies the gradient.

Equality is judged by `max - min` before any arithmetic: the mean of equal floats need not equal them ([0.1] * 3), and
ART scales by the mean absolute advantage, which turns such rounding noise into full steps. For the same reason nothing
here divides by a deviation: near-tied groups would weigh most (Dr. GRPO, arXiv 2503.20783).
"""

import math
from collections.abc import Sequence

from babylon_rl.errors import TrainingError

# Rewards are shares of capital: a tenth of a cent on $1,000.
SPREAD_TOLERANCE = 1e-6

# Below this, two advantages differ by rounding only.
ROUNDING = 1e-12

LEAVE_ONE_OUT = "leave_one_out"
ACTION_CENTRED = "leave_one_out_action_centred"
ALL_ACTIONS = "all_actions"
ADVANTAGES = (LEAVE_ONE_OUT, ACTION_CENTRED, ALL_ACTIONS)


def has_spread(values: Sequence[float], tolerance: float = SPREAD_TOLERANCE) -> bool:
    """Whether the values differ by at least the tolerance; never for fewer than two."""
    return len(values) > 1 and max(values) - min(values) >= tolerance


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Each reward minus the mean of the others; they sum to 0 up to rounding, in any order of the rewards.

    The others' mean does not depend on the agent's own action, so it is a baseline without bias. TrainingError for
    fewer than two rewards, or one that is not finite.
    """
    if len(rewards) < 2:
        raise TrainingError("An advantage needs at least two rewards in a window; play with more agents.")
    if not all(math.isfinite(reward) for reward in rewards):
        raise TrainingError(f"A reward is not finite: {list(rewards)}. Score the window again.")
    total = math.fsum(rewards)
    return [reward - math.fsum((total, -reward)) / (len(rewards) - 1) for reward in rewards]


def centred_twice(
    rewards: Sequence[float], baselines: Sequence[float], tolerance: float = SPREAD_TOLERANCE
) -> list[float]:
    """Leave-one-out advantages of the rewards less their agents' baselines (`groups.baselines`); they sum to 0.

    The baselines come from earlier windows and the others' residuals from other agents, so both are independent of the
    own action. Rewards that are equal within the tolerance give 0, whatever the baselines: what is no difference must
    not become one.
    """
    if not has_spread(rewards, tolerance):
        return [0.0] * len(rewards)
    residuals = [reward - baseline for reward, baseline in zip(rewards, baselines, strict=True)]
    return leave_one_out(residuals) if has_spread(residuals, ROUNDING) else [0.0] * len(rewards)


def center_by_action(advantages: Sequence[float], actions: Sequence[str]) -> list[float]:
    """Advantages of a batch, minus the mean advantage of their action; within an action they sum to 0.

    In a batch whose markets happened to fall, every SELL has a high advantage, and the cheapest way to collect it is
    "always SELL". Subtracting the action's own mean removes the reward for an action in itself and leaves what depends
    on the situation it was taken in; it lowers the variance at the price of learning nothing about how often an action
    is right overall. An action that occurs once, or always with the same advantage, gets exactly 0.
    """
    if len(advantages) != len(actions):
        raise TrainingError(f"{len(advantages)} advantages and {len(actions)} actions: one action each is needed.")
    own: dict[str, list[float]] = {}
    for advantage, action in zip(advantages, actions, strict=True):
        own.setdefault(action, []).append(advantage)
    means = {action: math.fsum(values) / len(values) for action, values in own.items() if has_spread(values, ROUNDING)}
    return [
        advantage - means[action] if action in means else 0.0
        for advantage, action in zip(advantages, actions, strict=True)
    ]


def all_actions(values: Sequence[Sequence[float]], actions: Sequence[Sequence[str]]) -> list[list[float]]:
    """Advantages of every legal action of a batch of decisions: its value, centred twice.

    `values[i][k]`: reward of the k-th legal action of decision i; `actions[i][k]`: its label. First each decision's own
    mean is subtracted, which needs no other agent as a baseline; then, over the batch, the mean of each action, for the
    reason that `center_by_action` gives. The advantages of an action sum to 0 over the batch.
    """
    centred = []
    for own in values:
        if not own or not all(math.isfinite(value) for value in own):
            raise TrainingError(f"The values of a decision's actions are not finite: {list(own)}. Score it again.")
        mean = math.fsum(own) / len(own)
        centred.append([value - mean for value in own] if has_spread(own, ROUNDING) else [0.0] * len(own))
    flat = iter(center_by_action([v for own in centred for v in own], [a for own in actions for a in own]))
    return [[next(flat) for _ in own] for own in centred]
