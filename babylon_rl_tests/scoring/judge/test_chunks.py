"""Every run is judged in every repeat, whatever the window's length, and chunks end on one scale."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.scoring.judge.chunks import arrange, level

WINDOW = "2026-01-05T10:00"


@given(st.integers(1, 60), st.integers(3, 12), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_each_run_stands_once_and_anchors_in_every_chunk(count, runs_per_call, repeats, seed):
    ids = [f"t{n}" for n in range(count)]
    found = arrange(ids, WINDOW, seed, repeats, runs_per_call)
    assert found == arrange(ids[::-1], WINDOW, seed, repeats, runs_per_call) and len(found) == repeats
    for one in found:
        assert all(len(chunk) <= runs_per_call and len(set(chunk)) == len(chunk) for chunk in one.chunks)
        assert one.anchors == found[0].anchors and len(one.anchors) == (2 if count > runs_per_call else 0)
        assert all(set(one.anchors) <= set(chunk) for chunk in one.chunks)
        others = [name for chunk in one.chunks for name in chunk if name not in one.anchors]
        assert sorted([*others, *one.anchors]) == sorted(ids)


def test_each_repeat_has_another_order_and_so_has_each_seed_and_window():
    ids = [f"t{n}" for n in range(3)]
    orders = [one.chunks[0] for one in arrange(ids, WINDOW, 0, 6, 8)]
    assert len({tuple(order) for order in orders}) == 6
    many = [f"t{n}" for n in range(9)]
    assert arrange(many, WINDOW, 0, 1, 20) != arrange(many, WINDOW, 1, 1, 20)
    assert arrange(many, WINDOW, 0, 1, 20) != arrange(many, "2026-01-05T11:00", 0, 1, 20)


def test_a_milder_call_is_shifted_onto_the_scale_of_the_others():
    true = {"a": 0.4, "b": 0.6, "c": 0.5, "d": 0.55, "e": 0.3}
    chunks = [{name: true[name] + 0.15 for name in "abc"}, {name: true[name] - 0.15 for name in "abde"}]
    assert level(chunks, ["a", "b"]) == pytest.approx(true)


def test_what_leaves_the_range_is_clamped_and_one_chunk_stays_as_it_is():
    assert level([{"a": 0.9, "b": 0.9, "c": 1.0}, {"a": 0.1, "b": 0.1, "d": 0.0}], ["a", "b"])["d"] == pytest.approx(
        0.4
    )
    shifted = level([{"a": 0.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "d": 0.0}], ["a", "b"])
    assert shifted == {"a": 0.5, "b": 0.5, "c": 1.0, "d": 0.0}
    assert level([{"a": 0.3}], []) == {"a": 0.3}
