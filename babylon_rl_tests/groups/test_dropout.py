"""Automatic dropout: none up to the target, never more than allowed, the same choice whenever it is made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import SettingsError
from babylon_rl.groups.dropout import choose, drop, drop_of_batch, dropout_rate
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


@given(st.dictionaries(st.sampled_from([WINDOW, "2025-01-15T11:00"]), IDS), st.floats(0, 1), st.integers(0, 5))
def test_of_a_batch_the_share_is_of_all_windows_together_in_any_order(by_window, rate, seed):
    members = [(window_id, one) for window_id, ids in by_window.items() for one in sorted(ids)]
    out = drop_of_batch(members, rate, seed)
    assert out <= set(members) and rate * len(members) - 1 < len(out) <= rate * len(members) + 1e-6
    assert drop_of_batch(members[::-1], rate, seed) == out


def test_a_small_rate_leaves_somebody_out_though_each_window_is_small():
    members = [(WINDOW, f"{place}-{number}") for place in range(40) for number in range(4)]
    assert len(drop_of_batch(members, 0.1, 0)) == 16
