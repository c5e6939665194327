"""Baselines for who the agent is: from earlier windows only, without bias, and gone where agents do not differ."""

import math

import numpy as np
import pandas as pd
import pytest

from babylon_rl.groups.advantages import leave_one_out
from babylon_rl.groups.baselines import DEFAULT_SHRINKAGE, HISTORY_HOURS, AgentHistory, shrunken_means
from babylon_rl.groups.variance import epsilon_squared
from babylon_rl_tests.groups.identities import SCORER, VERSION, advantages, frame, play, window


def at(rows: pd.DataFrame, place: int, scorer: str = SCORER, version: str = VERSION):
    return AgentHistory(rows).at(window(place), scorer, version)


# --- what they are for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_identity_goes_out_of_the_advantages_and_what_an_action_is_worth_stays(seed):
    played = play(seed, spread=1.0)
    good, levels = played.good[48:], np.broadcast_to(played.levels, played.good[48:].shape)
    told, worth, variance = {}, {}, {}
    for baseline in (False, True):
        made = advantages(played, baseline)
        told[baseline] = np.corrcoef(made.ravel(), levels.ravel())[0, 1]
        worth[baseline] = made[good].mean() - made[~good].mean()
        variance[baseline] = made.var()
        assert np.abs(made.sum(axis=1)).max() < 1e-9
    assert told[False] > 0.4 and abs(told[True]) < 0.1
    # 0.3 is what the good action is worth; its standard error with the baseline is about 0.06.
    assert abs(worth[True] - 0.3) < 0.2 and variance[True] < 0.8 * variance[False]


def test_where_agents_do_not_differ_next_to_nothing_is_taken_off():
    played = play(7, spread=0.0)
    found = at(played.rows, 200)
    assert max(map(abs, found.baselines.values())) < 0.1 and (found.agent_share or 0) < 0.05


def test_the_share_of_the_agents_is_that_of_the_variances():
    played = play(3, spread=1.0, agents=40)
    level = played.levels.var(ddof=1)
    expected = level / (level + 1 + 0.3**2 / 4)
    assert at(played.rows, 200).agent_share == pytest.approx(expected, abs=0.05)


# --- which windows count -------------------------------------------------------------------------------


def test_only_earlier_windows_of_the_last_week_count():
    rewards = play(1, spread=1.0, windows=200).rewards
    found = at(frame(rewards), 180)
    assert (found.windows, found.last) == (HISTORY_HOURS, window(179))
    own, later, older = rewards.copy(), rewards.copy(), rewards.copy()
    own[180], later[181:], older[: 180 - HISTORY_HOURS] = 9.0, -9.0, 9.0
    for changed in (own, later, older):
        assert at(frame(changed), 180).baselines == found.baselines
    rewards[179, 0] += 1.0
    assert at(frame(rewards), 180).baselines != found.baselines


def test_the_order_of_the_rows_changes_nothing():
    rows = play(2, spread=1.0, windows=30).rows
    assert at(rows.sample(frac=1, random_state=0), 29) == at(rows, 29)


def test_what_the_market_did_to_everybody_changes_nothing():
    rewards = play(2, spread=1.0, windows=30).rewards
    moved = rewards + np.linspace(-50, 50, 30)[:, None]
    before, after = at(frame(rewards), 29), at(frame(moved), 29)
    assert after.baselines == pytest.approx(before.baselines, abs=1e-9)
    assert after.agent_share == pytest.approx(before.agent_share, abs=1e-9)


def test_rewards_of_another_version_and_those_that_could_not_be_computed_do_not_count():
    rows = play(2, spread=1.0, windows=30).rows
    other = frame(play(9, spread=5.0, windows=30).rewards, version="0")
    assert at(pd.concat([rows, other]), 29) == at(rows, 29)
    refused = rows.assign(provenance="no_capital", reward=7.0, agent_id="nobody")
    assert at(pd.concat([rows, refused]), 29) == at(rows, 29)
    assert at(rows, 29, version="0").windows == 0


def test_alphas_rewards_stand_beside_every_score():
    rewards = play(2, spread=1.0, windows=30).rewards
    judged = frame(rewards, "ruler").assign(reward=0.5)
    assert at(judged, 29).baselines == at(frame(rewards), 29).baselines
    assert set(at(judged, 29, "ruler").baselines.values()) == {0.0}


def test_a_first_window_a_lonely_agent_and_no_rows_have_no_history():
    rewards = play(2, spread=1.0, windows=3).rewards
    assert at(frame(rewards), 0).baselines == {} and at(frame(rewards), 0).agent_share is None
    assert at(frame(rewards[:, :1]), 2).windows == 0
    assert at(frame(rewards).iloc[:0], 2) == ({}, 0, None, DEFAULT_SHRINKAGE, None, 0.0)


def test_a_share_needs_three_agents_and_two_windows_of_each():
    rewards = play(2, spread=1.0, windows=3).rewards
    assert at(frame(rewards[:, :2]), 2).agent_share is None and at(frame(rewards[:1]), 0).agent_share is None
    assert at(frame(rewards[:2, :3]), 1).agent_share is not None
    # Two agents: how much they differ is not estimated, and shrunken by the default.
    assert at(frame(rewards[:, :2]), 2).shrinkage == DEFAULT_SHRINKAGE


def test_equal_rewards_leave_exactly_nothing():
    found = at(frame(np.full((30, 7), 0.7)), 29)
    assert set(found.baselines.values()) == {0.0} and found.agent_share == 0.0


# --- the formula ---------------------------------------------------------------------------------------


def test_a_mean_is_weighted_by_recency_and_shrunken_by_the_effective_number_of_observations():
    weights = 0.5 ** (np.arange(29, -1, -1) / 24)
    values = np.random.default_rng(0).normal(size=30)
    effective = weights.sum() ** 2 / (weights**2).sum()
    expected = effective / (effective + 5) * (weights @ values) / weights.sum()
    assert shrunken_means(np.zeros(30, int), values, 5.0) == ([0], [pytest.approx(expected)])
    assert shrunken_means(np.array([3, 3]), np.array([1.0, 1.0]), 0.0) == ([3], [1.0])
    assert shrunken_means(np.array([3, 3]), np.array([1.0, 1.0]), math.inf) == ([3], [0.0])


def test_shrinkage_is_the_variance_within_agents_over_that_between_them():
    played = play(5, spread=0.5, agents=60, windows=150)
    within = 1 + 0.3**2 / 4
    # A sixtieth of what is within is taken off with the windows' means, from both alike.
    assert at(played.rows, 149).shrinkage == pytest.approx(within / played.levels.var(ddof=1), rel=0.15)


def test_a_share_by_chance_is_nothing():
    assert epsilon_squared(between=3.0, freedom=3, within=1.0, total=20.0) == 0.0
    assert epsilon_squared(between=2.0, freedom=3, within=1.0, total=20.0) == 0.0
    assert epsilon_squared(between=13.0, freedom=3, within=1.0, total=20.0) == 0.5
    assert epsilon_squared(between=0.0, freedom=3, within=0.0, total=0.0) == 0.0


def test_without_baselines_nothing_changes():
    played = play(0, spread=1.0, windows=50)
    for own, made in zip(played.rewards[48:], advantages(played, baseline=False), strict=True):
        assert list(made) == leave_one_out(own.tolist())
