"""Packing token sequences that begin alike into one row: each shared beginning is computed once.

Sequences become a tree of tokens; a token attends to its ancestors only, and its position is its depth. The
log-probabilities are those of the unpacked sequences up to float rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Most tokens of a row, beyond which even a shared beginning is computed again: the activations of a row that goes
# backward are held at once (docs/recipe.md, Speed of the trainer).
ROW_TOKENS = 2048
# What a row costs beside its tokens, in tokens: a forward pass over few of them takes as long as over some more.
_A_ROW = 32
# A row of so many tokens costs twice what its tokens do: attention and memory grow with it. Sequences therefore share a
# row where they share much, and not where they have the system prompt in common.
_DOUBLED_AT = 8192
# Tokens that attend in one call: fewer are not worth a call, more attend in vain to columns that others need.
_LEAST_BLOCK, _MOST_BLOCK = 64, 128


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens `start` to `end` of a row, and the `columns` that any of them attends to, ascending."""

    start: int
    end: int
    columns: np.ndarray


@dataclass(frozen=True)
class PackedRow:
    """A tree of `n` tokens. `members`: indices of the packed sequences; `paths[i]`: nodes of sequence `members[i]`.

    `tokens`, `positions`: int64 (n,). `attends`: bool (n, n), row attends to column. `blocks`: a partition of the rows
    of `attends`.
    """

    members: tuple[int, ...]
    tokens: np.ndarray
    positions: np.ndarray
    attends: np.ndarray
    paths: tuple[np.ndarray, ...]
    blocks: tuple[Block, ...]


def pack(sequences: Sequence[Sequence[int]], max_tokens: int = ROW_TOKENS) -> list[PackedRow]:
    """Rows of at most `max_tokens` tokens (more where one sequence alone is longer).

    Lexicographic order puts sequences with common beginnings side by side; of all ways to cut that order into rows the
    cheapest is taken, where a row of n tokens costs n + n^2 / 8192 + 32.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    lengths = [len(sequences[i]) for i in order]
    common = [0, *(_common(sequences[a], sequences[b]) for a, b in pairwise(order))]
    cuts = _cheapest_cuts(lengths, common, max_tokens)
    return [_row(sequences, order[start:end]) for start, end in pairwise(cuts)]


def _cheapest_cuts(lengths: Sequence[int], common: Sequence[int], max_tokens: int) -> list[int]:
    """Where rows begin, and the end. `common[i]`: tokens that sequence i shares with the one before it."""
    total = len(lengths)
    costs, following = [0.0] * (total + 1), [total] * total
    for start in reversed(range(total)):
        size, end, best = lengths[start], start + 1, float("inf")
        while True:
            cost = size + size * size / _DOUBLED_AT + _A_ROW + costs[end]
            if cost < best:
                best, following[start] = cost, end
            if end == total or size + lengths[end] - common[end] > max_tokens:
                break
            size, end = size + lengths[end] - common[end], end + 1
        costs[start] = best
    cuts = [0]
    while cuts[-1] < total:
        cuts.append(following[cuts[-1]])
    return cuts


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))


def _row(sequences: Sequence[Sequence[int]], chunk: Sequence[int]) -> PackedRow:
    nodes: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    paths = []
    for index in chunk:
        node, path = -1, []
        for depth, token in enumerate(sequences[index]):
            key = (node, token)
            if key not in nodes:
                nodes[key] = len(tokens)
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = nodes[key]
            path.append(node)
        paths.append(np.array(path, dtype=np.int64))
    attends = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for node, parent in enumerate(parents):  # parents come first
        if parent >= 0:
            attends[node] = attends[parent]
        attends[node, node] = True
    return PackedRow(tuple(chunk), np.array(tokens), np.array(depths), attends, tuple(paths), _blocks(parents, attends))


def _blocks(parents: Sequence[int], attends: np.ndarray) -> tuple[Block, ...]:
    """Cut where the tree branches, for tokens of one branch attend to the same columns."""
    cuts = [0]
    for node, parent in enumerate(parents):
        taken = node - cuts[-1]
        if taken >= _MOST_BLOCK or (taken >= _LEAST_BLOCK and parent != node - 1):
            cuts.append(node)
    cuts.append(len(parents))
    return tuple(Block(s, e, np.flatnonzero(attends[s:e].any(axis=0))) for s, e in pairwise(cuts))
