"""Forecasts of experiments: their horizon finds the effect, and says what past windows tell of the noise."""

import numpy as np
import pytest

from babylon_rl.bench.experiments import PLANTED, measure_planted
from babylon_rl.errors import EmptyWindowError, SettingsError
from babylon_rl.evaluation.noise import Plan, assumed_noise, measure_noise, of_hours
from babylon_rl.evaluation.power import DAY, FOUR_WEEKS, WEEK, forecast, plain_hours, plot_power, power_at
from babylon_rl.evaluation.simulated import Setting, simulated_past
from babylon_rl_tests.evaluation.test_sequential import most_hits

PAIRED = Plan(design="paired-by-window", block_hours=6)
SWITCHBACK = Plan(design="switchback", block_hours=6)
UNIT = of_hours(1.0, 0.0, 0.0, PAIRED)


@pytest.mark.parametrize("name", ["normal hours", "fat tails"])
def test_an_effect_is_found_by_the_horizon_that_the_forecast_told(name):
    found = measure_planted(name, *PLANTED[name], 11, 500, pasts=2)
    missed = 500 - found.power * 500
    # Were the power 80 %, more misses than these would happen once in a million.
    assert missed <= most_hits(500, 0.2) and found.hours > found.plain_hours


def test_the_power_at_the_forecast_horizon_is_80_percent_and_at_half_of_it_less():
    told = forecast(UNIT, PAIRED, 0.2, seed=1)
    assert power_at(UNIT, PAIRED, 0.2, told.hours, seed=2, paths=4_000) > 0.79
    assert power_at(UNIT, PAIRED, 0.2, told.hours // 2, seed=2) < 0.6
    assert power_at(UNIT, PAIRED, 0.2, DAY) == 0.0


def test_the_forecast_is_about_twice_a_plain_tests():
    # The plain figure is that of (1.96 + 0.84)^2 / d^2 hours: 197 for an effect of 0.2 deviations.
    assert plain_hours(UNIT, PAIRED, 0.2) == 197
    assert 1.6 * 197 < forecast(UNIT, PAIRED, 0.2).hours < 2.5 * 197


def test_more_hours_find_smaller_effects_and_more_candidates_need_more_hours():
    told = forecast(UNIT, PAIRED, 0.3, paths=500)
    assert told.detectable[DAY] is None
    assert told.detectable[WEEK] > 0.3 > told.detectable[FOUR_WEEKS]
    fifth = Plan(design="paired-by-window", block_hours=6, tried=5)
    assert forecast(UNIT, fifth, 0.3, paths=500).hours > told.hours > told.half_of_them
    powers = [power for _, power in told.curve]
    assert powers == sorted(powers) and powers[-1] >= 0.8


def test_a_forecast_is_the_same_for_the_same_seed_and_stretches_with_the_figures():
    doubled = of_hours(2.0, 0.0, 0.0, PAIRED)
    told = forecast(UNIT, PAIRED, 0.4, paths=500)
    assert told == forecast(UNIT, PAIRED, 0.4, paths=500)
    assert forecast(doubled, PAIRED, 0.8, paths=500).hours == told.hours


def test_what_is_too_small_is_told_and_what_is_none_is_refused():
    told = forecast(UNIT, PAIRED, 0.001, paths=200)
    assert told.hours is None and "is not found in" in str(told)
    with pytest.raises(SettingsError, match="above zero"):
        forecast(UNIT, PAIRED, 0.0)
    unasked = forecast(UNIT, PAIRED, paths=200)
    assert unasked.hours is None and "in 672 h: +" in str(unasked)


def test_the_table_says_hours_days_and_what_each_time_finds():
    told = str(forecast(assumed_noise(PAIRED, agent=1.0, agents=8), PAIRED, 0.2, paths=200))
    assert "paired-by-window, blocks of 6 h" in told and "80% power" in told and "assumed" in told
    assert "in 24 h: nothing: too few blocks" in told


@pytest.mark.parametrize("plan", [PAIRED, SWITCHBACK], ids=["paired", "switchback"])
def test_noise_that_is_measured_is_the_noise_that_was_made(plan):
    setting = Setting(design=plan.design, autocorrelation=0.5, missing=0.0, market=3.0)
    past = simulated_past(setting, 2_000, np.random.default_rng(4))
    found = measure_noise(past, plan)
    # Agents are there nine times in ten, so that a window has 7.2 of them.
    made = assumed_noise(plan, agent=1.0, agents=7, market=3.0, autocorrelation=0.5 if plan is SWITCHBACK else 0.0)
    assert found.hour == pytest.approx(made.hour, rel=0.1)
    assert found.observation / found.hour == pytest.approx(made.observation / made.hour, rel=0.1)
    assert found.windows == 2_000 and found.autocorrelation < 0.1


def test_agents_that_differ_for_good_are_noise_where_arms_are_drawn_anew():
    alike = [[0.0, 0.1, -0.1, 0.0]] * 100
    apart = [[5.0, -5.0, 3.0, -3.0]] * 100
    assert measure_noise(apart, PAIRED).hour > 20 * measure_noise(alike, PAIRED).hour


def test_few_agents_leave_hours_without_a_difference():
    noise = assumed_noise(Plan(design="paired-by-window", block_hours=6, share=0.1), agent=1.0, agents=4)
    assert 0 < noise.kept < 0.9 and assumed_noise(PAIRED, agent=1.0, agents=40).kept == pytest.approx(1.0)


def test_a_short_past_is_enough_for_a_wider_forecast_and_a_shorter_one_is_refused():
    past = simulated_past(Setting(missing=0.0), 700, np.random.default_rng(1))
    short, long = measure_noise(past[:12], PAIRED), measure_noise(past, PAIRED)
    assert (short.windows, long.windows) == (12, 700) and short.observation > long.observation
    with pytest.raises(EmptyWindowError, match="at least 8"):
        measure_noise(past[:7], PAIRED)
    with pytest.raises(EmptyWindowError, match="no noise"):
        measure_noise([[1.0, 1.0]] * 50, PAIRED)


def test_a_burn_in_of_the_whole_block_is_refused():
    with pytest.raises(SettingsError, match="burn-in"):
        assumed_noise(Plan(design="switchback", block_hours=2, burn_in=2), agent=1.0, agents=8)


def test_a_picture_of_power_is_written(tmp_path):
    plot_power([forecast(UNIT, PAIRED, 0.3, paths=200), forecast(UNIT, PAIRED, paths=200)], tmp_path / "power.png")
    assert (tmp_path / "power.png").read_bytes().startswith(b"\x89PNG")
