"""How alike two scorings rank the runs of a window, and what is told of the difference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.scoring.rescored import Extreme, Standing, rank_correlation, rescored

REWARDS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(-50, 50).map(float), min_size=2)


def standing(digest="d1", scorer="alpha 1", **rewards):
    return Standing(digest, scorer, rewards, Extreme("a", 1.0, "r"), Extreme("b", 0.0, "s"))


@given(REWARDS)
def test_the_same_order_is_one_and_the_reverse_is_minus_one_in_any_unit(rewards):
    if len(set(rewards.values())) < 2:
        assert rank_correlation(rewards, rewards) is None
        return
    cubed = {key: 3.0 + value**3 for key, value in rewards.items()}
    assert rank_correlation(rewards, cubed) == pytest.approx(1)
    assert rank_correlation(rewards, {key: -value for key, value in cubed.items()}) == pytest.approx(-1)


def test_it_is_spearmans_with_equal_values_at_their_mean_rank():
    # By hand: ranks 1, 2, 3, 4 against 1.5, 1.5, 3, 4.
    first, second = dict(a=1, b=2, c=3, d=4), dict(a=0, b=0, c=7, d=9)
    assert rank_correlation(first, second) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert rank_correlation(dict(a=1.0), dict(a=2.0)) is None and rank_correlation({}, {}) is None
    assert rank_correlation(dict(a=1, b=2, x=9), dict(a=1, b=2, y=0)) == pytest.approx(1)


def test_rows_are_written_where_the_content_differs_and_unchanged_where_it_does_not():
    before, after = standing(x=1.0, y=3.0), standing("d2", "mine 2", x=5.0, y=1.0)
    changed = rescored("w", before, after)
    assert (changed.written, changed.unchanged, changed.mean_before, changed.mean_after) == (2, 0, 2.0, 3.0)
    assert (changed.scorer_before, changed.scorer_after) == ("alpha 1", "mine 2")
    assert changed.rank_correlation == pytest.approx(-1)
    same = rescored("w", before, standing(x=1.0, y=3.0))
    assert (same.written, same.unchanged) == (0, 2) and same.rank_correlation == pytest.approx(1)
    fresh = rescored("w", None, after)
    assert (fresh.written, fresh.mean_before, fresh.rank_correlation) == (2, None, None)
    gone = rescored("w", before, None, "why")
    assert (gone.written, gone.unchanged, gone.mean_after, gone.failed) == (0, 0, None, "why")
