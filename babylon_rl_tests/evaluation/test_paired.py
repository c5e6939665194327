import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import EmptyWindowError, RecordingError
from babylon_rl.evaluation.paired import mean_interval, paired_effect


def arm(values, start=0):
    return pd.Series(list(values), index=[f"w{start + i:03d}" for i in range(len(values))], dtype=float)


def test_the_effect_is_the_mean_of_the_windows_differences():
    effect = paired_effect(arm([3.0, 1.0, 2.0]), arm([1.0, 1.0, 1.0]), 0)
    assert (effect.windows, effect.effect) == (3, 1.0)
    assert (effect.candidate_mean, effect.baseline_mean) == (2.0, 1.0)
    assert effect.low < 1.0 < effect.high


def test_only_windows_of_both_arms_count():
    effect = paired_effect(arm([9.0, 2.0, 3.0]), arm([1.0, 1.0, 100.0], start=1), 0)
    assert effect.windows == 2 and effect.effect == 1.5


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.randoms())
def test_the_interval_holds_the_effect_and_ignores_the_order_of_rows(values, shuffle):
    candidate, baseline = arm(values), arm([0.0] * len(values))
    effect = paired_effect(candidate, baseline, 3)
    order = list(candidate.index)
    shuffle.shuffle(order)
    assert paired_effect(candidate[order], baseline[order[::-1]], 3) == effect
    assert effect.low - 1e-9 <= effect.effect <= effect.high + 1e-9


def test_pairing_finds_what_the_market_hides():
    generator = np.random.default_rng(0)
    market = generator.normal(0, 50, 30)
    candidate = arm(market + 2 + generator.normal(0, 1, 30))
    assert paired_effect(candidate, arm(market), 0).above_zero
    low, high = mean_interval(candidate)[1:]
    assert low < 0 < high


def test_two_windows_are_needed_and_two_prove_little():
    with pytest.raises(EmptyWindowError):
        paired_effect(arm([1.0]), arm([0.0]), 0)
    with pytest.raises(EmptyWindowError):
        paired_effect(arm([1.0, 2.0]), arm([1.0, 2.0], start=5), 0)
    assert not paired_effect(arm([1.0, 2.0]), arm([0.0, 0.0]), 0).above_zero


def test_what_is_no_number_or_not_one_a_window_is_refused():
    with pytest.raises(RecordingError):
        paired_effect(arm([1.0, math.nan]), arm([0.0, 0.0]), 0)
    doubled = pd.concat([arm([1.0, 2.0]), arm([1.0])])
    with pytest.raises(RecordingError, match="twice"):
        paired_effect(doubled, arm([0.0, 0.0]), 0)
