"""What is taken off a reward for who the agent is: the shrunken moving mean of the agent's earlier rewards.

All agents share one policy, and members of a group differ in capital, persona and holdings. What an agent earns more
than others, window after window, is no merit of a decision, and centring by the window alone would credit it to
whatever that agent did. So an advantage is centred twice: by agent (here) and by window (`advantages`).

An observation is an agent's mean reward of a window less the mean of that window, so that what the market did to
everybody is in none. The mean over them is weighted by recency, a tracker of the value as in SPO (arXiv 2509.13232),
and shrunken towards 0 by n / (n + k), with n the effective number of observations and k the variance within agents
over that between agents, estimated over all agents at once: empirical Bayes (James and Stein 1961; Efron and Morris
1973). Only windows before the one that is scored count, so a baseline does not depend on the decision that it is
taken off, and leaves the gradient without bias.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from babylon_rl.groups.advantages import ROUNDING
from babylon_rl.groups.variance import epsilon_squared
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.windows import parse_window_id

# A week: an agent's level drifts with its holdings, and what lies further back weighs a hundredth by then.
HISTORY_HOURS = 168
# Observations after which one weighs half as much.
HALF_LIFE = 24
# k where the variances cannot be told: a day of hours weighs as much as knowing nothing.
DEFAULT_SHRINKAGE = 24.0
# Agents, and windows an agent on average, below which no share and no k is estimated.
LEAST_AGENTS, LEAST_WINDOWS = 3, 2
# Provenance of runs whose reward is valid; that of no other one can be computed.
REWARDED = ("logged", "no_logprobs", "no_text")

COLUMNS = ("window_id", "agent_id", "scorer", "scorer_version", "reward", "outcome_score", "provenance")


class Identity(NamedTuple):
    """What earlier windows tell of agents at a window.

    `baselines`: by agent, of those that have a history; `windows`, `last`: how many it holds and the latest of them;
    `shrinkage`: k, infinite where agents do not differ. `agent_share`: share of the rewards' variance that is explained
    by agent identity, over these windows and the window itself, in which it counts `share_windows` windows an agent;
    None where too few were seen.
    """

    baselines: dict[str, float]
    windows: int
    last: str | None
    shrinkage: float
    agent_share: float | None
    share_windows: float


class AgentHistory:
    """Rewards of a range of windows and of those before it; asked window by window.

    `rows`: current rows of `scored_trajectories`, at least `COLUMNS`, in any order. A row of another scorer counts with
    its `outcome_score` where alpha's rewards are asked for: it is alpha's, computed beside every other score.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self._rows = rows[rows["provenance"].isin(REWARDED)]
        self._observed: dict[tuple[str, str], _Observations] = {}

    def at(self, window_id: str, scorer: str, version: str) -> Identity:
        """What the `HISTORY_HOURS` before the window tell, under that scorer."""
        key = (scorer, version)
        if key not in self._observed:
            self._observed[key] = _Observations(_rewards(self._rows, scorer, version))
        return self._observed[key].at(window_id)


def hour_of(window_id: str) -> int:
    """The window's hour, counted from 1970."""
    return int(parse_window_id(window_id).timestamp()) // 3600


def _rewards(rows: pd.DataFrame, scorer: str, version: str) -> pd.DataFrame:
    """window_id, agent_id and the reward under the scorer."""
    own = (rows["scorer"] == scorer) & (rows["scorer_version"] == version)
    rewards = rows["reward"].where(own)
    if scorer == ALPHA.name:
        rewards = rewards.where(rows["scorer"] == scorer, rows["outcome_score"])
    found = pd.DataFrame(
        {"window_id": rows["window_id"], "agent_id": rows["agent_id"].astype(str), "reward": rewards.astype(float)}
    )
    return found[np.isfinite(found["reward"])]


class _Observations:
    """Observations under one scorer, by hour and agent."""

    def __init__(self, rewards: pd.DataFrame) -> None:
        # Sorted, so that sums come out the same in whatever order the rows were read.
        rewards = rewards.sort_values(["window_id", "agent_id", "reward"], kind="stable")
        means = rewards.groupby(["window_id", "agent_id"], sort=True, as_index=False)["reward"].mean()
        by_window = means.groupby("window_id", sort=True)["reward"]
        centred = means["reward"] - by_window.transform("mean")
        # A window of one agent says nothing about how agents differ.
        kept = (by_window.transform("size") > 1).to_numpy(dtype=bool)
        codes, names = pd.factorize(means["agent_id"][kept], sort=True)
        windows, first = np.unique(means["window_id"][kept].to_numpy(dtype=object), return_inverse=True)
        hours = np.array([hour_of(one) for one in windows], dtype=np.int64)
        self._windows = list(windows)
        self._hours = hours[first] if len(hours) else np.empty(0, np.int64)
        self._place, self._agents, self._names = first, codes, list(names)
        values = centred[kept].to_numpy(dtype=float)
        # The mean of equal floats need not equal them.
        self._values = np.where(np.abs(values) < ROUNDING, 0.0, values)

    def at(self, window_id: str) -> Identity:
        hour = hour_of(window_id)
        start, stop, end = np.searchsorted(self._hours, [hour - HISTORY_HOURS, hour, hour + 1])
        share, windows_each = _share(self._agents[start:end], self._values[start:end], self._place[start:end])
        if start == stop:
            return Identity({}, 0, None, DEFAULT_SHRINKAGE, share, windows_each)
        agents, values = self._agents[start:stop], self._values[start:stop]
        places = np.unique(self._place[start:stop])
        shrinkage = _shrinkage(agents, values, len(places))
        seen, means = shrunken_means(agents, values, shrinkage)
        return Identity(
            {self._names[agent]: mean for agent, mean in zip(seen, means, strict=True)},
            len(places),
            self._windows[places[-1]],
            shrinkage,
            share,
            windows_each,
        )


def shrunken_means(agents: np.ndarray, values: np.ndarray, shrinkage: float) -> tuple[list[int], list[float]]:
    """The agents (codes) that occur, and the shrunken moving mean of each one's values, which stand oldest first.

    The latest observation of an agent weighs 1, the one `HALF_LIFE` before it a half. With weights w the effective
    number of observations is (sum w)^2 / sum w^2 (Kish 1965).
    """
    counts = np.bincount(agents)
    order = np.argsort(agents, kind="stable")
    later = np.cumsum(counts)[agents[order]] - 1 - np.arange(len(agents))
    weights = 0.5 ** (later / HALF_LIFE)
    total = np.bincount(agents[order], weights)
    effective = total**2 / np.maximum(np.bincount(agents[order], weights**2), 1e-300)
    sums = np.bincount(agents[order], weights * values[order])
    seen = np.flatnonzero(counts)
    means = sums[seen] / total[seen] * (effective[seen] / (effective[seen] + shrinkage))
    # Powers differ between machines in the last digit, and a group's digest must not. JSONB has no negative zero.
    return seen.tolist(), [float(f"{mean:.12g}") + 0.0 for mean in means.tolist()]


def _shrinkage(agents: np.ndarray, values: np.ndarray, windows: int) -> float:
    """k: variance within agents over variance between them, by the method of moments; see `variance`."""
    parts = _parts(agents, values, windows)
    if parts is None or len(parts.counts) < LEAST_AGENTS or len(values) < LEAST_WINDOWS * len(parts.counts):
        return DEFAULT_SHRINKAGE
    # Observations an agent; where agents have unequal numbers of them, a little less than the mean.
    each = (len(values) - float(np.sum(parts.counts**2)) / len(values)) / (len(parts.counts) - 1)
    between = (parts.between / (len(parts.counts) - 1) - parts.within) / each
    return parts.within / between if between > 0 else math.inf


def _share(agents: np.ndarray, values: np.ndarray, places: np.ndarray) -> tuple[float | None, float]:
    """Share of the variance by agent, and windows an agent on average."""
    windows = len(np.unique(places))
    parts = _parts(agents, values, windows)
    if parts is None:
        return None, 0.0
    each = len(values) / len(parts.counts)
    if len(parts.counts) < LEAST_AGENTS or each < LEAST_WINDOWS:
        return None, each
    share = epsilon_squared(parts.between, len(parts.counts) - 1, parts.within, parts.total)
    return float(f"{share:.12g}"), each


class _Parts(NamedTuple):
    """Sums of squares of centred observations. `between`, `total`; `within`: mean square, by its degrees of freedom."""

    counts: np.ndarray
    between: float
    within: float
    total: float


def _parts(agents: np.ndarray, values: np.ndarray, windows: int) -> _Parts | None:
    """None where nothing is left over to estimate the variance within agents from."""
    counts = np.bincount(agents) if len(agents) else np.empty(0, np.int64)
    counts = counts[counts > 0]
    # The windows' means were taken off: each took a degree of freedom, as in a two-way layout.
    left = len(values) - len(counts) - (windows - 1)
    if len(counts) < 2 or left < 1:
        return None
    sums = np.bincount(agents, values)[np.bincount(agents) > 0]
    between = math.fsum(sums**2 / counts)
    total = math.fsum(values**2)
    return _Parts(counts, between, max(0.0, total - between) / left, total)


def of_members(baselines: dict[str, float], agents: Iterable[str]) -> dict[str, float]:
    """The baseline of each of these agents, by name; 0 for one without a history."""
    return {agent: baselines.get(agent, 0.0) for agent in sorted(set(agents))}
