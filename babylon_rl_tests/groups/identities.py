"""Simulated rewards of agents who differ in what they earn whatever they do, with one action that is worth more."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from babylon_rl.groups.advantages import centred_twice
from babylon_rl.groups.baselines import AgentHistory
from babylon_rl.windows import shift_window

FIRST = "2026-01-05T00:00"
SCORER, VERSION = "alpha", "1"


class Played(NamedTuple):
    """Rewards by window and agent, the persistent level of each agent, and whether the good action was taken."""

    rows: pd.DataFrame
    rewards: np.ndarray
    levels: np.ndarray
    good: np.ndarray


def play(seed: int, spread: float, *, agents: int = 8, windows: int = 240, effect: float = 0.3) -> Played:
    """Reward = level of the agent + what the market did to all + effect of the good action + noise of deviation 1.

    `spread`: standard deviation of the levels. Each agent takes the good action in half of its windows, at random.
    """
    stream = np.random.default_rng(seed)
    levels = spread * stream.standard_normal(agents)
    good = stream.random((windows, agents)) < 0.5
    shock = 2.0 * stream.standard_normal((windows, 1))
    rewards = levels + shock + effect * good + stream.standard_normal((windows, agents))
    return Played(frame(rewards), rewards, levels, good)


def frame(rewards: np.ndarray, scorer: str = SCORER, version: str = VERSION) -> pd.DataFrame:
    """Rows as `AgentHistory` takes them, of windows in a row from `FIRST`."""
    windows, agents = rewards.shape
    return pd.DataFrame(
        {
            "window_id": np.repeat([window(place) for place in range(windows)], agents),
            "agent_id": np.tile([f"agent-{number}" for number in range(agents)], windows),
            "scorer": scorer,
            "scorer_version": version,
            "reward": rewards.ravel(),
            "outcome_score": rewards.ravel(),
            "provenance": "logged",
        }
    )


def window(place: int) -> str:
    return shift_window(FIRST, place)


def advantages(played: Played, baseline: bool, first: int = 48) -> np.ndarray:
    """Advantages of the windows from `first` on, with or without the agents' baselines."""
    history = AgentHistory(played.rows)
    made = []
    for place in range(first, len(played.rewards)):
        own = history.at(window(place), SCORER, VERSION).baselines if baseline else {}
        taken_off = [own.get(f"agent-{number}", 0.0) for number in range(len(played.levels))]
        made.append(centred_twice(played.rewards[place].tolist(), taken_off))
    return np.array(made)
