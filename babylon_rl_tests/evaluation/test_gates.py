import numpy as np
import pandas as pd
import pytest

from babylon_rl.errors import EmptyWindowError
from babylon_rl.evaluation import paired
from babylon_rl.evaluation.gates import decide

WINDOWS = [f"2026-01-{1 + i // 24:02d}T{i % 24:02d}:00" for i in range(48)]


def arm(mean, seed, windows=WINDOWS, spread=2.0):
    return pd.Series(mean + np.random.default_rng(seed).normal(0, spread, len(windows)), index=windows)


def fixed(**means):
    return {name: arm(mean, 100 + i) for i, (name, mean) in enumerate(means.items())}


def test_a_planted_effect_over_both_is_promoted_with_the_numbers_in_a_sentence():
    decision = decide(arm(3.0, 1), arm(0.0, 2), fixed(always_buy=0.5, always_sell=-0.5, hold=0.0), 0)
    assert decision.promote and decision.best_fixed == "always_buy"
    assert decision.over_start.low > 0 and decision.over_best_fixed == decision.comparisons["always_buy"]
    assert set(decision.comparisons) == {"always_buy", "always_sell", "hold"}
    assert decision.reason.startswith("Promoted: over 48 windows it earned $")
    assert f"{decision.over_start.effect:.2f} more than the model it started from" in decision.reason


def test_beating_the_start_alone_is_not_enough():
    decision = decide(arm(3.0, 1), arm(0.0, 2), fixed(always_buy=3.0, hold=0.0), 0)
    assert decision.over_start.above_zero and not decision.promote
    assert decision.reason.startswith("Kept as a candidate") and "does not exclude zero" in decision.reason


def test_beating_the_fixed_policies_alone_is_not_enough():
    decision = decide(arm(3.0, 1), arm(5.0, 2), fixed(always_buy=0.0, hold=0.0), 0)
    assert not decision.promote and "which is worse" in decision.reason


def test_all_comparisons_are_over_the_windows_that_every_arm_played():
    baselines = fixed(always_buy=0.0, hold=0.0)
    baselines["hold"] = baselines["hold"].iloc[4:]
    decision = decide(arm(3.0, 1), arm(0.0, 2).iloc[:40], baselines, 0)
    assert {e.windows for e in (decision.over_start, *decision.comparisons.values())} == {36}


def test_the_same_data_and_seed_give_the_same_decision():
    baselines = fixed(always_buy=0.0, hold=0.0)
    turned = {name: series.iloc[::-1] for name, series in reversed(baselines.items())}
    assert decide(arm(1.0, 1).iloc[::-1], arm(0.0, 2), turned, 7) == decide(arm(1.0, 1), arm(0.0, 2), baselines, 7)


def test_without_a_fixed_policy_or_shared_windows_there_is_no_decision():
    with pytest.raises(EmptyWindowError):
        decide(arm(1.0, 1), arm(0.0, 2), {}, 0)
    with pytest.raises(EmptyWindowError):
        decide(arm(1.0, 1), arm(0.0, 2, windows=["2026-02-01T00:00"]), fixed(hold=0.0), 0)


@pytest.mark.parametrize(("windows", "skewed"), [(4, False), (24, False), (24, True)])
def test_between_equal_arms_one_comparison_seldom_promotes(windows, skewed, monkeypatch):
    # The rate is over 400 comparisons; fewer resamples leave it what it is.
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    generator = np.random.default_rng(11)
    names = WINDOWS[:windows]
    promoted = 0
    for seed in range(400):
        noise = generator.exponential(1.0, (2, windows)) if skewed else generator.normal(0, 1, (2, windows))
        promoted += paired.paired_effect(pd.Series(noise[0], names), pd.Series(noise[1], names), seed).above_zero
    # One side of a 95 % interval: 2.5 %, and the standard error of the rate is 0.8 %.
    assert promoted / 400 <= 0.05


def test_an_effect_of_a_standard_deviation_is_found_nearly_always(monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    generator = np.random.default_rng(12)
    found = [
        paired.paired_effect(pd.Series(generator.normal(1, 1, 24), WINDOWS[:24]), pd.Series(0.0, WINDOWS[:24]), seed)
        for seed in range(100)
    ]
    assert sum(effect.above_zero for effect in found) >= 95
