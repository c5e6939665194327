"""In which order, and with which others, runs are shown to a judge, and how scores of several calls are put together.

A long window is judged in chunks. Two runs stand in all of them, the anchors: a judge's scores are relative to what it
is shown, and what it gives the same two runs tells by how much one call was milder than another.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ANCHORS = 2
# Draws after which an order that was shown before is taken again: few runs have few orders.
TRIES = 20


class Arrangement(NamedTuple):
    """Ids of a window's runs as one repeat shows them: each chunk in its order. `anchors`: stand in every chunk."""

    chunks: list[list[str]]
    anchors: list[str]


def arrange(ids: Sequence[str], window_id: str, seed: int, repeats: int, runs_per_call: int) -> list[Arrangement]:
    """An arrangement for each repeat, by the seed, whatever the order of the ids; each another one where it can be.

    `runs_per_call`: of a chunk at most, anchors included; at least 3. Chunks are of equal size up to one run.
    """
    known = sorted(ids)
    anchors = []
    if len(known) > runs_per_call:
        anchors = sorted(random.Random(f"{seed}/{window_id}/anchors").sample(known, ANCHORS))
    seen: list[list[str]] = []
    for repeat in range(repeats):
        for draw in range(TRIES):
            order = known.copy()
            random.Random(f"{seed}/{window_id}/{repeat}/{draw}").shuffle(order)
            if order not in seen:
                break
        seen.append(order)
    return [Arrangement(_chunks(order, anchors, runs_per_call), anchors) for order in seen]


def _chunks(order: list[str], anchors: list[str], runs_per_call: int) -> list[list[str]]:
    if not anchors:
        return [order]
    others = [name for name in order if name not in anchors]
    count = math.ceil(len(others) / (runs_per_call - ANCHORS))
    edges = [len(others) * number // count for number in range(count + 1)]
    chunks = [{*anchors, *others[begin:end]} for begin, end in zip(edges, edges[1:], strict=False)]
    # The places of anchors among the others come from a shuffle of its own for each chunk.
    return [_shuffled([name for name in order if name in chunk], number) for number, chunk in enumerate(chunks)]


def _shuffled(names: list[str], number: int) -> list[str]:
    random.Random(f"{number}/{'/'.join(names)}").shuffle(names)
    return names


def level(scores: Sequence[Mapping[str, float]], anchors: Sequence[str]) -> dict[str, float]:
    """Scores of all chunks on one scale: each chunk's are shifted by how far its anchors are from their mean over all.

    An anchor's score is the mean of its shifted ones. What leaves 0..1 is clamped.
    """
    if len(scores) == 1:
        return dict(scores[0])
    means = [math.fsum(chunk[name] for name in anchors) / len(anchors) for chunk in scores]
    middle = math.fsum(means) / len(means)
    shifted: dict[str, list[float]] = {}
    for chunk, mean in zip(scores, means, strict=True):
        for name, score in chunk.items():
            shifted.setdefault(name, []).append(score - mean + middle)
    return {name: min(max(math.fsum(given) / len(given), 0.0), 1.0) for name, given in shifted.items()}
