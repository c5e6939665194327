"""The check of the planned share: never more sure with fewer windows, rarely wrong, and it finds a broken share."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import RecordingError, SettingsError
from babylon_rl.evaluation.sample_ratio import CONCENTRATION, log_evidence, sample_ratio_p

windows = st.lists(st.integers(0, 12).flatmap(lambda both: st.tuples(st.integers(0, both), st.just(both))), max_size=40)


@given(windows, st.floats(0.05, 0.95))
def test_the_p_value_never_grows_while_windows_are_added(counts, share):
    found = [
        sample_ratio_p([own for own, _ in counts[:until]], [both for _, both in counts[:until]], share)
        for until in range(len(counts) + 1)
    ]
    assert found[0] == 1.0 and all(0 <= one <= 1 for one in found)
    assert found == sorted(found, reverse=True)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.05, 0.95))
def test_the_evidence_is_the_ratio_of_beta_functions_of_the_source(ours, theirs, share):
    one, other = CONCENTRATION * share, CONCENTRATION * (1 - share)

    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    wanted = log_beta(one + ours, other + theirs) - log_beta(one, other)
    wanted -= ours * math.log(share) + theirs * math.log(1 - share)
    found = log_evidence(np.array([ours]), np.array([theirs]), share)[0]
    assert found == pytest.approx(wanted, abs=1e-8)


def test_the_evidence_is_one_on_average_under_the_planned_share():
    number, share = 12, 0.3
    ours = np.arange(number + 1)
    chance = np.array([math.comb(number, n) * share**n * (1 - share) ** (number - n) for n in ours])
    assert (chance * np.exp(log_evidence(ours, number - ours, share))).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "true", "within"), [(0.5, 0.45, 5_000), (0.1, 0.05, 2_000), (0.5, 0.0, 40)])
def test_a_broken_share_is_found_and_a_kept_one_is_not(share, true, within):
    generator = np.random.default_rng(5)
    counts = generator.binomial(8, true, within // 8)
    kept = generator.binomial(8, share, within // 8)
    both = [8] * (within // 8)
    assert sample_ratio_p(counts, both, share) < 0.01
    assert sample_ratio_p(kept, both, share) > 0.01


@pytest.mark.parametrize(("ours", "both"), [([3], [2]), ([-1], [2]), ([1, 1], [2])])
def test_counts_that_cannot_be_are_refused(ours, both):
    with pytest.raises(RecordingError):
        sample_ratio_p(ours, both, 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_an_arm_empty_is_refused(share):
    with pytest.raises(SettingsError):
        sample_ratio_p([1], [2], share)
