"""From hours to observations: which hours count, and what is left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import SettingsError
from babylon_rl.evaluation.blocks import block_means, switchback_differences

GONE = math.nan


def test_a_block_is_the_mean_of_the_hours_that_are_there():
    assert block_means([1.0, 3.0, 5.0, GONE, 7.0, 9.0], 2).tolist() == [2.0, 5.0, 8.0]
    assert block_means([1.0, 2.0, 3.0, GONE, GONE, 9.0, GONE, GONE, GONE], 3).tolist() == [2.0]


def test_a_block_counts_once_all_its_hours_have_passed():
    assert block_means([1.0, 1.0, 1.0], 4).size == 0
    assert block_means([1.0, 1.0, 1.0, GONE], 4).tolist() == [1.0]
    assert block_means([], 4).size == 0


def test_a_switchback_compares_neighbouring_blocks_without_their_first_hours():
    levels = [100.0, 1.0, 1.0, -50.0, 4.0, 6.0]
    candidate = [True] * 3 + [False] * 3
    assert switchback_differences(levels, candidate, 3, 1).tolist() == [-4.0]
    assert switchback_differences(levels, [not one for one in candidate], 3, 1).tolist() == [4.0]


def test_a_pair_without_one_of_its_blocks_is_left_out():
    levels = [GONE] * 4 + [1.0, 2.0, 3.0, 5.0] + [9.0, 9.0]
    candidate = [True, True, False, False, False, False, True, True, True, True]
    assert switchback_differences(levels, candidate, 2, 0).tolist() == [2.5]


@given(st.lists(st.floats(-10, 10), min_size=24, max_size=60), st.lists(st.booleans(), min_size=10, max_size=10))
def test_which_hours_count_does_not_depend_on_the_draw(levels, draws):
    """Under another draw each pair has the same size: its sign alone is drawn, which is why it may be trusted."""
    arms = [[(hour // 4 % 2 == 0) == drawn[hour // 8] for hour in range(len(levels))] for drawn in (draws, draws[::-1])]
    one, other = (switchback_differences(levels, each, 4, 1) for each in arms)
    assert np.abs(one).tolist() == np.abs(other).tolist()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SettingsError, match="burn-in"):
        switchback_differences([1.0] * 8, [True] * 8, 2, 2)
    with pytest.raises(SettingsError, match="infinite"):
        block_means([1.0, math.inf], 1)
