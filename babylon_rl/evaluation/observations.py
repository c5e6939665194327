"""From the windows of an experiment, or of the time before it, to the observations that its evidence is made of."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import numpy as np
import psycopg

from babylon_rl.evaluation.arms import (
    BASELINE,
    CANDIDATE,
    AgentWindow,
    ArmWindow,
    Metric,
    agent_windows,
    arm_window,
)
from babylon_rl.evaluation.blocks import block_means, switchback_differences
from babylon_rl.serving.routing import ExperimentRoute, block_of, candidate_answers, hours_in
from babylon_rl.windows import parse_window_id, shift_window

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


def blocks_begun(route: ExperimentRoute, window_id: str) -> int:
    """Blocks that have begun up to the window."""
    return block_of(route, window_id) + 1


def past_windows(connection: psycopg.Connection, before: str) -> list[str]:
    """Scored windows of the last two weeks in which any were scored, before the given one, in order."""
    row = connection.execute(
        "SELECT max(window_id) FROM babylon_rl.scored_trajectories WHERE superseded_at IS NULL AND window_id < %s",
        (before,),
    ).fetchone()
    if row is None or row[0] is None:
        return []
    first = shift_window(row[0], -PAST_HOURS + 1)
    found = connection.execute(
        """SELECT DISTINCT window_id FROM babylon_rl.scored_trajectories
           WHERE superseded_at IS NULL AND window_id >= %s AND window_id < %s""",
        (first, before),
    )
    return sorted(window_id for (window_id,) in found)


def past_agents(connection: psycopg.Connection, window_ids: Sequence[str], scorer: str) -> list[AgentWindow]:
    """The agents of those windows, with the scorer's rewards."""
    return agent_windows(connection, window_ids, scorer) if window_ids else []


def past_hours(route: ExperimentRoute, agents: Sequence[AgentWindow], metric: Metric) -> np.ndarray:
    """What hours of the past would have shown, had the experiment run in them with two equal candidates.

    Of `paired-by-window` the difference of the agents whom the plan would have parted, of `switchback` the mean over
    all agents; one an hour from the first to the last, NaN where there is none.
    """
    if not agents:
        return np.empty(0)
    windows: dict[str, list[AgentWindow]] = {}
    for one in agents:
        windows.setdefault(one.window_id, []).append(one)
    first = min(windows)
    hours = np.full((parse_window_id(max(windows)) - parse_window_id(first)) // timedelta(hours=1) + 1, np.nan)
    for window_id, own in windows.items():
        parted: dict[str, list[AgentWindow]] = {CANDIDATE: [], BASELINE: []}
        for one in own:
            paired = route.design == "paired-by-window" and candidate_answers(route, one.agent_id, window_id)
            parted[CANDIDATE if paired else BASELINE].append(one)
        arms = {arm: {window_id: arm_window(window_id, arm, them, metric)} for arm, them in parted.items() if them}
        found = {arm: arms.get(arm, {}) for arm in parted}
        paired_design = route.design == "paired-by-window"
        value = _difference(found, window_id) if paired_design else _value(found, BASELINE, window_id)
        hours[(parse_window_id(window_id) - parse_window_id(first)) // timedelta(hours=1)] = value
    return hours
