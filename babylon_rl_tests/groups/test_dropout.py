"""Automatic dropout: none up to the target, never more than allowed, the same choice whenever it is made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import SettingsError
from babylon_rl.groups.dropout import choose, drop, dropout_rate
from babylon_rl_tests.recording.runs import WINDOW

IDS = st.sets(st.text(max_size=6), max_size=60)


@pytest.mark.parametrize(
    ("members", "target", "most", "rate"),
    [
        (0, 8, 0.5, 0.0),
        (8, 8, 0.5, 0.0),
        (9, 8, 0.5, 1 / 9),
        (16, 8, 0.5, 0.5),
        (100, 8, 0.5, 0.5),
        (100, 8, 1.0, 0.92),
    ],
)
def test_the_rate_is_that_of_the_formula(members, target, most, rate):
    assert dropout_rate(members, target, most) == pytest.approx(rate)


@pytest.mark.parametrize(("target", "most"), [(1, 0.5), (8, 1.1), (8, -0.1), (8, float("nan"))])
def test_what_is_no_dropout_is_refused(target, most):
    with pytest.raises(SettingsError):
        dropout_rate(10, target, most)


@given(IDS, st.integers(2, 20), st.floats(0, 1), st.integers(0, 5), st.randoms(use_true_random=False))
def test_nobody_is_lost_and_the_order_does_not_matter(ids, target, most, seed, chosen):
    rate = dropout_rate(len(ids), target, most)
    kept, left_out = drop(ids, rate, WINDOW, seed)
    assert sorted([*kept, *left_out]) == sorted(ids)
    assert len(kept) >= min(len(ids), target) and len(left_out) <= most * len(ids) + 1e-6
    shuffled = list(ids)
    chosen.shuffle(shuffled)
    assert drop(shuffled, rate, WINDOW, seed) == (kept, left_out)
    assert choose(shuffled, len(kept), WINDOW, seed) == kept


def test_windows_and_seeds_leave_others_out():
    ids = [f"agent-{number}" for number in range(40)]
    choices = {tuple(drop(ids, 0.5, window, seed)[1]) for window in (WINDOW, "2025-01-15T11:00") for seed in (0, 1)}
    assert len(choices) == 4
