"""Kendall's tau-b and Student's interval against their definitions and known values."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.scoring.intervals import Mean, mean_of, student_t
from babylon_rl.scoring.rank_correlation import partial_tau, tau_b

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=12)


def by_definition(pairs: list[tuple[float, float]]) -> float | None:
    """Every pair of places is looked at: concordant, discordant, or tied in one or both."""
    concordant = discordant = tied_first = tied_second = 0
    for (x1, y1), (x2, y2) in itertools.combinations(pairs, 2):
        concordant += (x1 < x2 and y1 < y2) or (x1 > x2 and y1 > y2)
        discordant += (x1 < x2 and y1 > y2) or (x1 > x2 and y1 < y2)
        tied_first += x1 == x2
        tied_second += y1 == y2
    total = len(pairs) * (len(pairs) - 1) // 2
    if len(pairs) < 3 or total in (tied_first, tied_second):
        return None
    return (concordant - discordant) / math.sqrt((total - tied_first) * (total - tied_second))


def split(pairs):
    return [x for x, _ in pairs], [y for _, y in pairs]


@given(PAIRS)
def test_tau_b_is_its_definition(pairs):
    found, wanted = tau_b(*split(pairs)), by_definition(pairs)
    assert (found is None) == (wanted is None)
    assert wanted is None or found == pytest.approx(wanted, abs=1e-12)


@given(PAIRS, st.randoms())
def test_tau_b_ignores_the_order_of_places_and_of_the_two_and_any_rising_change_of_scale(pairs, shuffle):
    found = tau_b(*split(pairs))
    mixed = shuffle.sample(pairs, len(pairs))
    assert tau_b(*split(mixed)) == found == tau_b(*reversed(split(pairs)))
    assert tau_b([math.exp(x) for x, _ in pairs], [y for _, y in pairs]) == found
    turned = tau_b([-x for x, _ in pairs], [y for _, y in pairs])
    assert turned == (None if found is None else -found)


def test_tau_b_of_known_examples():
    # The example of scipy.stats.kendalltau's documentation, which has ties in both.
    assert tau_b([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.47140452079103173, abs=1e-15)
    assert tau_b([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert tau_b([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)


def test_tau_b_is_undefined_for_fewer_than_three_places_and_where_one_is_all_ties():
    assert tau_b([1, 2], [1, 2]) is None
    assert tau_b([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert tau_b([1, 2, math.nan, 4], [math.nan, 2, 3, 4]) is None
    assert tau_b([1, 2, math.nan, 4], [1, 2, -9, 4]) == 1.0


def test_a_correlation_that_a_third_series_carries_vanishes_given_it():
    # Two series that follow a third and nothing else.
    generator = random.Random(0)
    third = [generator.gauss(0, 1) for _ in range(400)]
    first, second = ([z + generator.gauss(0, 1) for z in third] for _ in range(2))
    xy, xz, yz = tau_b(first, second), tau_b(first, third), tau_b(second, third)
    assert xy > 0.25 and abs(partial_tau(xy, xz, yz)) < xy / 2
    assert partial_tau(0.3, 0.0, 0.0) == pytest.approx(0.3)
    assert partial_tau(None, 0.1, 0.1) is None and partial_tau(0.5, 1.0, 0.5) is None


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (4, 2.776), (6, 2.447), (7, 2.3646), (9, 2.2622), (30, 2.0423)]
)
def test_students_t_is_the_tables(degrees, value):
    assert student_t(degrees) == pytest.approx(value, abs=1e-3)


@given(st.lists(st.floats(-1, 1), max_size=12), st.randoms())
def test_the_interval_holds_the_mean_within_what_a_figure_can_be_in_any_order(values, shuffle):
    found = mean_of(values, -1.0, 1.0)
    assert found == mean_of(shuffle.sample(values, len(values)), -1.0, 1.0)
    assert found.windows == len(values) and (found.value is None) == (not values) and str(found)
    if len(values) > 1:
        assert -1 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1
    else:
        assert found.low is None and found.high is None


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    generator = random.Random(1)
    found = [mean_of([generator.gauss(0.3, 1) for _ in range(12)]) for _ in range(2000)]
    covered = sum(mean.low <= 0.3 <= mean.high for mean in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.02)


def test_a_mean_that_is_not_known_is_below_no_floor():
    assert not Mean().below(0.5) and str(Mean()) == "not known"
    assert mean_of([0.2]).below(0.5) and str(mean_of([0.2])) == "+0.20"
