"""Where the rewards' variance comes from: the share that is explained by who the agent is.

A group compares agents that differ in capital, persona and holdings. Where identity explains much of the reward, a
centred reward credits the agent instead of the decision, so this share is reported with every batch.
"""

import math
from collections.abc import Hashable, Iterable, Sequence

from babylon_rl.groups.trained_view import Group


def eta_squared(rewards: Sequence[float], labels: Sequence[Hashable]) -> float:
    """Variance between the labels over total variance (one-way analysis of variance), 0 to 1; 0 without variance.

    With few rewards a label it is large by chance: k labels over n rewards explain (k - 1) / (n - 1) on average.
    """
    own: dict[Hashable, list[float]] = {}
    for reward, label in zip(rewards, labels, strict=True):
        own.setdefault(label, []).append(reward)
    if not rewards or max(rewards) == min(rewards):
        return 0.0
    mean = math.fsum(rewards) / len(rewards)
    total = math.fsum((reward - mean) ** 2 for reward in rewards)
    between = math.fsum(len(values) * (math.fsum(values) / len(values) - mean) ** 2 for values in own.values())
    return min(1.0, between / total)


def epsilon_squared(between: float, freedom: int, within: float, total: float) -> float:
    """Share of the variance that the labels explain, corrected for chance: 0 on average where they explain nothing.

    `between`, `total`: sums of squares; `freedom`: degrees of freedom of `between`; `within`: mean square within the
    labels. The part of `between` that chance alone gives is taken off (epsilon squared, Kelley 1935); a negative share
    is 0.
    """
    return min(1.0, max(0.0, (between - freedom * within) / total)) if total > 0 else 0.0


def agent_share(groups: Iterable[Group]) -> float:
    """Share of the variance of a batch's rewards that is explained by agent identity."""
    members = [member for group in groups for member in group.members]
    return eta_squared([member.reward for member in members], [member.agent_id for member in members])
