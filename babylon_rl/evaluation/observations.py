"""From the windows of an experiment, or of the time before it, to the observations that its evidence is made of."""

from collections.abc import Mapping, Sequence

import numpy as np
import psycopg

from babylon_rl.evaluation.arms import (
    BASELINE,
    CANDIDATE,
    AgentWindow,
    ArmWindow,
    Metric,
    agent_windows,
    scored_windows,
)
from babylon_rl.evaluation.blocks import block_means, switchback_differences
from babylon_rl.serving.routing import ExperimentRoute, candidate_answers, hours_in
from babylon_rl.windows import shift_window, window_range

PAST_HOURS = 14 * 24  # whose noise a forecast is made from

Arms = Mapping[str, Mapping[str, ArmWindow]]


def observations(route: ExperimentRoute, arms: Arms, last: str | None, burn_in: int) -> np.ndarray:
    """Candidate less baseline, an observation a block (`paired-by-window`) or a pair of blocks (`switchback`).

    `arms`: windows by arm; `last`: latest window that is known, None where none is. In the metric's unit.
    """
    if last is None:
        return np.empty(0)
    windows = [shift_window(route.first_window, hour) for hour in range(hours_in(route, last) + 1)]
    if route.design == "paired-by-window":
        return block_means([_difference(arms, window_id) for window_id in windows], route.block_hours)
    # In a switchback one arm answers all: the figure of a window is that of the arm whose turn it is.
    turns = [candidate_answers(route, "", window_id) for window_id in windows]
    levels = [_value(arms, CANDIDATE if own else BASELINE, w) for own, w in zip(turns, windows, strict=True)]
    return switchback_differences(levels, turns, route.block_hours, burn_in)


def _difference(arms: Arms, window_id: str) -> float:
    return _value(arms, CANDIDATE, window_id) - _value(arms, BASELINE, window_id)


def _value(arms: Arms, arm: str, window_id: str) -> float:
    found = arms[arm].get(window_id)
    return float("nan") if found is None or found.value is None else found.value


def in_burn_in(route: ExperimentRoute, window_id: str, burn_in: int) -> bool:
    """Whether the window is one of the first of a switchback's block, whose results are left out."""
    return route.design == "switchback" and hours_in(route, window_id) % route.block_hours < burn_in


def blocks_of(route: ExperimentRoute, windows: int) -> int:
    """Observations that so many windows come to."""
    return windows // (route.block_hours * (2 if route.design == "switchback" else 1))


def past_agents(connection: psycopg.Connection, before: str, scorer: str) -> list[AgentWindow]:
    """Agents of the two weeks up to the last scored window before the given one, with the scorer's rewards."""
    row = connection.execute(
        "SELECT max(window_id) FROM babylon_rl.scored_trajectories WHERE superseded_at IS NULL AND window_id < %s",
        (before,),
    ).fetchone()
    if row is None or row[0] is None:
        return []
    return agent_windows(connection, scored_windows(connection, shift_window(row[0], 1 - PAST_HOURS), before), scorer)


def by_hour(agents: Sequence[AgentWindow], metric: Metric) -> list[list[float]]:
    """The agents' figures by hour, from the first window to the last; empty for an hour in which there is none."""
    if not agents:
        return []
    found: dict[str, list[float]] = {}
    for one in agents:
        value = one.value(metric)
        found.setdefault(one.window_id, []).extend([] if value is None else [value])
    return [found.get(window_id, []) for window_id in window_range(min(found), max(found))]
