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


def group_of(members: int, shared: int, own: int, answer: int) -> list[list[int]]:
    """Sequences that begin alike, go on with tokens of their own and end in an answer."""
    return [
        [*range(shared), *(10_000 * (m + 1) + t for t in range(own)), *(9_000_000 + 100 * m + t for t in range(answer))]
        for m in range(members)
    ]


@pytest.mark.parametrize(
    ("members", "shared", "own", "answer"), [(16, 300, 60, 8), (8, 400, 0, 64), (8, 300, 200, 10), (4, 900, 20, 5)]
)
def test_the_beginning_of_a_group_of_usual_size_is_computed_once(members, shared, own, answer):
    rows = pack(group_of(members, shared, own, answer))
    assert sum(len(row.tokens) for row in rows) == shared + members * (own + answer)


def test_all_answers_to_a_prompt_share_it():
    prompts = group_of(8, 40, 60, 0)
    answers = [[*prompt, *choice] for prompt in prompts for choice in ([1, 2, 3], [1, 2, 4], [5, 6])]
    assert sum(len(row.tokens) for row in pack(answers)) == 40 + 8 * (60 + 6)


def test_groups_with_little_in_common_get_rows_of_their_own():
    groups = [[[1] * 15 + [g] * 60 + [m] * 80 for m in range(8)] for g in range(2, 6)]
    rows = pack([sequence for group in groups for sequence in group])
    assert [sorted(row.members) for row in rows] == [list(range(8 * g, 8 * g + 8)) for g in range(4)]


@given(sequences, st.integers(4, 40))
def test_no_cut_into_rows_is_cheaper(found, most):
    def cost(rows):
        return sum(len(r.tokens) + len(r.tokens) ** 2 / 8192 + 32 for r in rows)

    order = sorted(range(len(found)), key=lambda i: found[i])
    for cut in range(1, len(order)):
        parts = [pack([found[i] for i in part], most) for part in (order[:cut], order[cut:])]
        assert cost(pack(found, most)) <= sum(map(cost, parts)) + 1e-9


@given(st.integers(1, 6), st.integers(0, 200), st.integers(0, 90), st.integers(1, 90))
def test_blocks_partition_the_row_and_hold_all_that_is_attended_to(members, shared, own, answer):
    for row in pack(group_of(members, shared, own, answer)):
        assert [b.start for b in row.blocks] == [0, *(b.end for b in row.blocks[:-1])]
        assert row.blocks[-1].end == len(row.tokens)
        for block in row.blocks:
            assert set(np.flatnonzero(row.attends[block.start : block.end].any(0))) == set(block.columns.tolist())


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
