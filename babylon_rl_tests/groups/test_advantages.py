import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import TrainingError
from babylon_rl.groups.advantages import center_by_action, centred_twice, has_spread, leave_one_out
from babylon_rl.groups.variance import eta_squared

rewards_of = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.7] * 7, [0.1, 0.1 + 1e-9], [3.0], []])
def test_equal_rewards_have_no_spread_though_their_mean_differs_from_them(rewards):
    assert not has_spread(rewards)


def test_a_tenth_of_a_cent_on_a_thousand_dollars_is_spread():
    assert has_spread([0.001, 0.001002])


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    assert leave_one_out([1.0, 2.0, 6.0]) == pytest.approx([-3.0, -1.5, 4.5])


@given(rewards_of)
def test_leave_one_out_sums_to_zero_and_is_the_centred_reward_scaled(rewards):
    advantages = leave_one_out(rewards)
    n, mean = len(rewards), math.fsum(rewards) / len(rewards)
    assert abs(math.fsum(advantages)) < 1e-12
    assert advantages == pytest.approx([(r - mean) * n / (n - 1) for r in rewards], abs=1e-12)


@given(rewards_of, st.randoms())
def test_an_advantage_does_not_depend_on_the_order_of_the_rewards(rewards, random):
    order = list(range(len(rewards)))
    random.shuffle(order)
    advantages, moved = leave_one_out(rewards), leave_one_out([rewards[i] for i in order])
    assert moved == [advantages[i] for i in order]


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=12), st.randoms())
def test_advantages_less_baselines_sum_to_zero_in_any_order(pairs, random):
    made = centred_twice(*zip(*pairs, strict=True))
    assert abs(math.fsum(made)) < 1e-11
    moved = list(enumerate(pairs))
    random.shuffle(moved)
    assert centred_twice(*zip(*(pair for _, pair in moved), strict=True)) == [made[i] for i, _ in moved]


@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.7] * 7, [0.1, 0.1 + 1e-9]])
def test_equal_rewards_give_exactly_no_advantage_whatever_the_baselines(rewards):
    for baselines in ([0.0] * len(rewards), [0.1 * i for i in range(len(rewards))]):
        assert centred_twice(rewards, baselines) == [0.0] * len(rewards)


def test_residuals_that_are_equal_but_for_rounding_give_none():
    assert centred_twice([0.1, 0.3], [0.0, 0.3 - 0.1 + 1e-16]) == [0.0, 0.0]


def test_rewards_within_the_scorers_noise_are_equal():
    assert centred_twice([0.1, 0.15], [0.0, 0.0], tolerance=0.1) == [0.0, 0.0]
    assert centred_twice([0.1, 0.25], [0.0, 0.0], tolerance=0.1) == pytest.approx([-0.15, 0.15])


@pytest.mark.parametrize("rewards", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_rewards_without_an_advantage_are_refused(rewards):
    with pytest.raises(TrainingError):
        leave_one_out(rewards)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from(["BUY", "SELL", "HOLD"])), min_size=1, max_size=30))
def test_centred_advantages_sum_to_zero_within_every_action(pairs):
    advantages, actions = [a for a, _ in pairs], [b for _, b in pairs]
    centred = center_by_action(advantages, actions)
    for action in set(actions):
        own = [value for value, name in zip(centred, actions, strict=True) if name == action]
        assert abs(math.fsum(own)) < 1e-12
        if len(own) == 1:
            assert own == [0.0]


def test_an_action_that_always_pays_the_same_gets_exactly_zero():
    assert center_by_action([0.1, 0.1, 0.1, -0.3], ["SELL", "SELL", "SELL", "BUY"]) == [0.0] * 4


def test_centring_needs_an_action_for_each_advantage():
    with pytest.raises(TrainingError):
        center_by_action([0.1], [])


def test_eta_squared_is_one_where_identity_is_all_and_zero_where_it_is_nothing():
    assert eta_squared([1.0, 1.0, 3.0, 3.0], ["a", "a", "b", "b"]) == 1.0
    assert eta_squared([1.0, 3.0, 1.0, 3.0], ["a", "a", "b", "b"]) == 0.0
    assert eta_squared([0.1] * 3, ["a", "b", "c"]) == 0.0
    assert eta_squared([], []) == 0.0
    # Between 2 * 2 * 0.5^2 = 1 of a total of 0.5 + 0.5 + 1.
    assert eta_squared([0.0, 1.0, 1.0, 2.0], ["a", "a", "b", "b"]) == pytest.approx(0.5)
