"""What rewards tell of skill, where it is known: scorers over the traders and policies of `market.skill`.

A draw is eight personas and the hours that they trade in. It is the unit of all intervals, and draws with another size
of edge have the same personas, hours and luck.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from babylon_rl.groups.advantages import leave_one_out
from babylon_rl.market.skill import (
    POLICIES,
    Account,
    Climate,
    hour_of,
    make_traders,
    play_hour,
    policy_capital,
    policy_orders,
    trader_orders,
)
from babylon_rl.scoring.seam import Runs, Scorer
from babylon_rl.windows import shift_window

FIRST_WINDOW = "2026-01-05T00:00"
AGENTS = 8
LIFE = 24  # hours that a fixed policy lives

# By scorer and life: a life is the hours after which lifetime P&L starts at 0 again.
Advantages = dict[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class Draw:
    """What one draw's traders were credited with.

    `edges`: by agent. `balances`: hours by agents, decisions that took the right side less those that took the wrong
    one. `advantages`: rewards less the mean of the others' in that hour, hours by agents.
    """

    edges: np.ndarray
    balances: np.ndarray
    advantages: Advantages


def play_draw(
    seed: int, draw: int, edges: Sequence[float], climate: Climate, scorers: Sequence[Scorer], lives: Sequence[int]
) -> dict[float, Draw]:
    """A draw of personas over `lives[-1]` hours, for each size of edge, with their advantages by each scorer and life.

    A scorer that reads no lifetime P&L has the same in each life.
    """
    hours = lives[-1]
    traders = {edge: make_traders(seed, draw, edge, AGENTS, climate) for edge in edges}
    accounts = {edge: [Account(one.agent_id, one.capital) for one in own] for edge, own in traders.items()}
    found = {edge: _unplayed([one.edge for one in own], hours, scorers, lives) for edge, own in traders.items()}
    lived = {(edge, life): np.zeros(AGENTS) for edge in edges for life in lives}
    for number in range(hours):
        hour = hour_of(shift_window(FIRST_WINDOW, number), climate.window(seed, draw * hours + number))
        for edge in edges:
            stream = random.Random(f"skill/{seed}/{draw}/{number}/orders")
            decided = [trader_orders(one, hour.window, stream) for one in traders[edge]]
            found[edge].balances[number] = [balance for _, balance in decided]
            runs = play_hour(hour, accounts[edge], [orders for orders, _ in decided])
            for life in lives:
                if number % life == 0:
                    lived[edge, life][:] = 0.0
                lived[edge, life] += [one.window_pnl for one in runs.features]
                for scorer, own in _credited(runs, lived[edge, life], scorers):
                    found[edge].advantages[scorer, life][number] = own
    return found


def _unplayed(edges: list[float], hours: int, scorers: Sequence[Scorer], lives: Sequence[int]) -> Draw:
    advantages = {(scorer.name, life): np.empty((hours, len(edges))) for scorer in scorers for life in lives}
    return Draw(np.array(edges), np.empty((hours, len(edges))), advantages)


def _credited(runs: Runs, lived: np.ndarray, scorers: Sequence[Scorer]) -> list[tuple[str, list[float]]]:
    """Advantages by scorer where lifetime P&L is as given."""
    told = [
        msgspec.structs.replace(one, last_state_pnl=float(pnl)) for one, pnl in zip(runs.features, lived, strict=True)
    ]
    runs = msgspec.structs.replace(runs, features=told)
    return [(scorer.name, leave_one_out([score.reward for score in scorer.score(runs)])) for scorer in scorers]


# --- what advantages tell --------------------------------------------------------------------------


def ranked_right(advantages: np.ndarray, edges: np.ndarray, hours: int) -> float:
    """Share of pairs of agents whose mean advantages over `hours` differ to the same side as their edges.

    Over all pairs and all stretches of so many hours, which divide the advantages' number; equal means count half.
    """
    means = advantages.reshape(-1, hours, len(edges)).mean(axis=1)
    one, other = np.triu_indices(len(edges), 1)
    agree = np.sign(means[:, one] - means[:, other]) * np.sign(edges[one] - edges[other])
    return float((agree + 1).mean() / 2)


def correlation_with_edge(advantages: np.ndarray, edges: np.ndarray) -> float:
    """Correlation of an hour's advantages with the edges, less the group's mean edge."""
    return _correlation(advantages, np.broadcast_to(edges - edges.mean(), advantages.shape))


def correlation_with_decisions(advantages: np.ndarray, balances: np.ndarray) -> float:
    """Correlation of an hour's advantages with that hour's decisions, each less the agent's own mean.

    Taking the agents' means off leaves what the decisions of the hour are credited with, whoever took them.
    """
    balances = balances - balances.mean(axis=1, keepdims=True)
    return _correlation(advantages - advantages.mean(axis=0), balances - balances.mean(axis=0))


def agent_share(advantages: np.ndarray) -> float:
    """Share of the advantages' variance that lies between agents."""
    total = advantages.var()
    return float(advantages.mean(axis=0).var() / total) if total > 0 else 0.0


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


# --- fixed policies --------------------------------------------------------------------------------


class Life(msgspec.Struct, frozen=True):
    """A policy's rewards over one life, an hour each, and how many decisions it takes in each."""

    rewards: list[float]
    decisions: int


def play_policies(
    seed: int, life: int, edge: float, climate: Climate, scorers: Sequence[Scorer]
) -> dict[tuple[str, str], Life]:
    """One life of each policy of `market.skill` in the same hours and with the same capital, by scorer and policy.

    The informed policy follows news that are right with probability (1 + edge) / 2.
    """
    accounts = [Account(policy, policy_capital(seed, life)) for policy in POLICIES]
    found = {(scorer.name, policy): Life([], 0) for scorer in scorers for policy in POLICIES}
    for number in range(LIFE):
        index = life * LIFE + number
        hour = hour_of(shift_window(FIRST_WINDOW, number), climate.window(seed, index, (1 + edge) / 2))
        stream = random.Random(f"skill/{seed}/{index}/policies")
        runs = play_hour(hour, accounts, [policy_orders(policy, hour.window, stream) for policy in POLICIES])
        for scorer in scorers:
            for one, score in zip(runs.features, scorer.score(runs), strict=True):
                rewards = [*found[scorer.name, one.agent_id].rewards, score.reward]
                found[scorer.name, one.agent_id] = Life(rewards, one.decisions)
    return found
