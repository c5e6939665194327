"""Packing token sequences that begin alike into one row: each shared beginning is computed once.

Sequences become a tree of tokens; a token attends to its ancestors only, and its position is its depth. The
log-probabilities are those of the unpacked sequences up to float rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedRow:
    """A tree of `n` tokens. `members`: indices of the packed sequences; `paths[i]`: nodes of sequence `members[i]`.

    `tokens`, `positions`: int64 (n,). `attends`: bool (n, n), row attends to column.
    """

    members: tuple[int, ...]
    tokens: np.ndarray
    positions: np.ndarray
    attends: np.ndarray
    paths: tuple[np.ndarray, ...]


def pack(sequences: Sequence[Sequence[int]], max_tokens: int = 512) -> list[PackedRow]:
    """Rows of at most `max_tokens` tokens (more where one sequence alone is longer).

    Sequences are taken in lexicographic order, which puts those with common beginnings side by side.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    rows: list[PackedRow] = []
    chunk: list[int] = []
    size = 0
    for index in order:
        added = len(sequences[index])
        if chunk:
            added -= _common(sequences[chunk[-1]], sequences[index])
            if size + added > max_tokens:
                rows.append(_row(sequences, chunk))
                chunk, size, added = [], 0, len(sequences[index])
        chunk.append(index)
        size += added
    if chunk:
        rows.append(_row(sequences, chunk))
    return rows


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))


def _row(sequences: Sequence[Sequence[int]], chunk: list[int]) -> PackedRow:
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
    return PackedRow(tuple(chunk), np.array(tokens), np.array(depths), attends, tuple(paths))
