"""Packing and choices: pure properties, no model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import TrainingError
from babylon_rl.training.choices import allowed_tokens, explored, token_logprobs
from babylon_rl.training.packing import pack

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12)


@given(sequences, st.integers(4, 40))
def test_every_sequence_can_be_read_back_along_its_path(found, most):
    read = {}
    for row in pack(found, most):
        for member, path in zip(row.members, row.paths, strict=True):
            read[member] = row.tokens[path].tolist()
            assert row.positions[path].tolist() == list(range(len(path)))
    assert [read[i] for i in range(len(found))] == found


@given(sequences)
def test_a_token_attends_to_its_own_beginning_only(found):
    for row in pack(found, 1000):
        for path in row.paths:
            for depth, node in enumerate(path):
                assert set(np.flatnonzero(row.attends[node])) == set(path[: depth + 1].tolist())


@given(sequences)
def test_a_shared_beginning_is_packed_once(found):
    (row,) = pack(found, 1000)
    prefixes = {tuple(s[:n]) for s in found for n in range(1, len(s) + 1)}
    assert len(row.tokens) == len(prefixes)


def test_rows_stay_below_the_limit():
    assert all(len(row.tokens) <= 6 for row in pack([[i, 1, 2] for i in range(9)], 6))


choice_lists = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=5, unique_by=tuple
).map(
    lambda lists: [[*tokens, 9] for tokens in lists]  # 9 ends an answer, so none is the beginning of another
)


@given(choice_lists, st.data())
def test_token_logprobs_sum_to_the_answers_and_forced_tokens_cost_nothing(choices, data):
    weights = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(choices), max_size=len(choices))))
    probabilities = weights / weights.sum()
    chosen = data.draw(st.integers(0, len(choices) - 1))
    logprobs = token_logprobs(choices, probabilities, chosen)
    assert math.fsum(logprobs) == pytest.approx(math.log(probabilities[chosen]))
    allowed = allowed_tokens(choices, choices[chosen])
    assert all(abs(lp) < 1e-12 for lp, tokens in zip(logprobs, allowed, strict=True) if len(tokens) == 1)


@given(st.floats(0, 1))
def test_exploration_keeps_a_distribution(share):
    mixed = explored(np.array([0.7, 0.3, 0.0]), share)
    assert mixed.sum() == pytest.approx(1) and mixed.min() >= share / 3 - 1e-12


def test_an_answer_that_is_no_choice_is_refused():
    with pytest.raises(TrainingError, match="none of the choices"):
        allowed_tokens([[1, 9], [2, 9]], [3, 9])
