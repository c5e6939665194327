"""What decides experiments: properties of the confidence sequence, and how often it is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.bench.experiments import ALIKE, measure_alike, measure_family
from babylon_rl.errors import RecordingError, SettingsError
from babylon_rl.evaluation.blocks import block_means
from babylon_rl.evaluation.sequential import (
    LEAST_BLOCKS,
    bounds,
    deflated_alpha,
    look,
    margin,
)
from babylon_rl.evaluation.simulated import Setting, simulated_hours

SIMULATIONS = 500
blocks = st.lists(st.integers(-1000, 1000).map(lambda number: number / 8), min_size=LEAST_BLOCKS, max_size=60)


def most_hits(simulations, share):
    """Hits that so many simulations exceed with a probability below 1e-6 where the true share is this one at most."""
    left, hits = 1.0, -1
    while left > 1e-6:
        hits += 1
        left -= math.comb(simulations, hits) * share**hits * (1 - share) ** (simulations - hits)
    return hits


# --- properties ------------------------------------------------------------------------------------


@given(blocks, st.sampled_from([0.25, 4.0, 1024.0]), st.integers(-500, 500))
def test_the_sequence_moves_and_stretches_with_the_figures(values, scale, shift):
    found, moved = look(values, 0.05, 0.05, 40), look([scale * one + shift for one in values], 0.05, 0.05, 40)
    assert moved.effect == pytest.approx(scale * found.effect + shift)
    assert (found.low is None) == (moved.low is None)
    if found.low is not None:
        assert moved.low == pytest.approx(scale * found.low + shift, abs=1e-6 * scale)
        assert moved.high == pytest.approx(scale * found.high + shift, abs=1e-6 * scale)


@given(blocks)
def test_turning_the_arms_around_turns_promotion_into_harm(values):
    found, turned = look(values, 0.03, 0.05, 40), look([-one for one in values], 0.05, 0.03, 40)
    assert (found.promote, found.harm) == (turned.harm, turned.promote)
    assert not (found.promote and found.harm)
    if found.low is not None:
        assert turned.high == pytest.approx(-found.low) and found.low <= found.effect


@given(blocks, st.integers(LEAST_BLOCKS, 60))
def test_a_look_depends_on_its_blocks_alone_and_is_the_same_within_many_experiments(values, until):
    until = min(until, len(values))
    alone, among = look(values[:until], 0.05, 0.05, 40), bounds(np.array([values[::-1], values]), 0.05, 0.05, 40)
    assert alone.effect == pytest.approx(among.effect[1, until - 1])
    assert (alone.low is None) == bool(np.isinf(among.low[1, until - 1]))
    if alone.low is not None:
        assert alone.low == pytest.approx(among.low[1, until - 1])


@given(blocks, st.floats(0.001, 0.4), st.floats(0.001, 0.4))
def test_less_alpha_never_promotes_what_more_does_not(values, one, other):
    strict, lax = sorted((one, other))
    assert not look(values, strict, 0.05, 40).promote or look(values, lax, 0.05, 40).promote


@given(st.floats(1e-5, 0.3), st.integers(10, 500))
def test_the_bound_narrows_with_every_observation_and_with_what_may_go_wrong(alpha, horizon):
    wide = margin(np.arange(1.0, 3 * horizon), alpha, horizon)
    finite = wide[np.isfinite(wide)]
    assert (np.diff(finite) < 0).all() and not np.isfinite(wide[0])
    assert np.isfinite(wide[-1]) and (margin(np.array([3.0 * horizon]), alpha / 2, horizon) > wide[-1]).all()


def test_no_other_tuning_is_narrower_at_the_horizon_by_much():
    tuned = margin(np.array([200.0]), 0.05, 200)[0]
    others = [margin(np.array([200.0]), 0.05, 200 * factor)[0] for factor in (0.25, 0.5, 2, 4)]
    assert tuned < min(others) * 1.01


def test_with_many_blocks_the_bound_is_the_normal_mixture_of_the_source():
    # Waudby-Smith et al.: sqrt(2 (t rho^2 + 1) / (t^2 rho^2) * log(1 + sqrt(t rho^2 + 1) / (2 alpha))).
    time, alpha = 1e6, 0.05
    wanted = -2 * math.log(2 * alpha)
    rho2 = (wanted + math.log(wanted + 1)) / time
    source = math.sqrt(
        2 * (time * rho2 + 1) / (time**2 * rho2) * math.log(1 + math.sqrt(time * rho2 + 1) / (2 * alpha))
    )
    assert margin(np.array([time]), alpha, time)[0] == pytest.approx(source, rel=0.02)


def test_neighbours_that_resemble_each_other_and_a_long_lower_tail_widen_the_bound():
    generator = np.random.default_rng(0)
    sorted_runs = np.sort(generator.standard_normal((10, 6)), axis=1).T.ravel()
    mixed = generator.permutation(sorted_runs)
    slow, fast = (look(each, 0.05, 0.05, 60) for each in (np.sort(mixed), mixed))
    assert slow.low is None or slow.low < fast.low
    losses = -(generator.standard_exponential(60) ** 2)
    below, above = look(losses, 0.05, 0.05, 60), look(-losses, 0.05, 0.05, 60)
    assert below.effect - below.low > above.effect - above.low


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * (LEAST_BLOCKS - 1), [0.5] * 100])
def test_few_blocks_or_all_alike_say_nothing(values):
    found = look(values, 0.05, 0.05, 40)
    assert found.low is None and found.high is None and not found.promote and not found.harm
    assert found.blocks == len(values) and "nothing can be said yet" in str(found)


def test_a_clear_gain_is_promoted_and_a_clear_loss_is_harm():
    gain = np.random.default_rng(0).normal(1.0, 1.0, 60)
    assert look(gain, 0.05, 0.05, 60).promote and look(-gain, 0.05, 0.05, 60).harm


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_refused(wrong):
    with pytest.raises(RecordingError, match="not a finite number"):
        look([1.0] * 20 + [wrong], 0.05, 0.05, 40)


@pytest.mark.parametrize(("alpha", "horizon"), [(0.0, 40), (0.5, 40), (-0.1, 40), (0.05, 0)])
def test_settings_that_promise_nothing_are_refused(alpha, horizon):
    with pytest.raises(SettingsError):
        look([1.0, 2.0] * 20, alpha, 0.05, horizon)


def test_all_candidates_together_have_the_alpha_of_one():
    spent = [deflated_alpha(0.05, tried) for tried in range(1, 100_000)]
    assert 0.0499 < sum(spent) < 0.05 and spent == sorted(spent, reverse=True)
    with pytest.raises(SettingsError):
        deflated_alpha(0.05, 0)


# --- simulations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ALIKE))
def test_a_candidate_without_an_effect_is_promoted_or_stopped_in_one_of_twenty_at_most(name):
    found = measure_alike(name, ALIKE[name], 11, SIMULATIONS)
    assert max(found.promoted, found.harmed) * SIMULATIONS <= most_hits(SIMULATIONS, 0.05)


def test_a_plain_test_that_is_looked_at_as_often_is_wrong_much_more_often():
    found = measure_alike("plain", ALIKE["half the hour before"], 11, SIMULATIONS)
    assert found.plain * SIMULATIONS > most_hits(SIMULATIONS, 0.15) and found.promoted < 0.05


def test_hourly_looks_see_what_looks_after_each_block_see():
    setting = Setting(hours=240, missing=0.1)
    hours, _ = simulated_hours(setting, 5, np.random.default_rng(3), 0.4)
    for path in hours:
        hourly = [look(block_means(path[:now], 6), 0.05, 0.05, 40).promote for now in range(1, 241)]
        after_blocks = bounds(block_means(path, 6), 0.05, 0.05, 40).low > 0
        assert any(hourly) == after_blocks.any()
        assert sum(hourly) >= after_blocks.sum()


def test_a_family_of_ten_promotes_one_without_an_effect_in_one_of_twenty_at_most():
    assert measure_family(11, 200, deflated=True) * 200 <= most_hits(200, 0.05)


@settings(max_examples=20)
@given(st.integers(1, 300), st.floats(0.01, 0.5))
def test_the_tests_own_limit_is_exceeded_as_seldom_as_it_says(simulations, share):
    hits = most_hits(simulations, share)
    beyond = sum(
        math.comb(simulations, n) * share**n * (1 - share) ** (simulations - n)
        for n in range(hits + 1, simulations + 1)
    )
    assert beyond < 1.1e-6
