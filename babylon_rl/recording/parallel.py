"""Work on windows by several processes, each with connections of its own; the result is that of one process."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")

# Below so many windows a part, starting a process costs more than it saves.
SMALLEST_PART = 4


def by_parts(work: Callable[[Sequence[str]], Part], window_ids: Sequence[str], workers: int) -> list[Part]:
    """What `work` makes of consecutive parts of the windows, in their order; one part where one process does it.

    `work` and what it returns must be picklable: the processes are spawned, for a forked one would share connections.
    """
    parts = split(window_ids, workers)
    if len(parts) == 1:
        return [work(parts[0])]
    with ProcessPoolExecutor(len(parts), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, parts))


def split(window_ids: Sequence[str], workers: int) -> list[Sequence[str]]:
    """The windows in at most `workers` consecutive parts of nearly the same length."""
    count = max(1, min(workers, len(window_ids) // SMALLEST_PART))
    edges = [round(number * len(window_ids) / count) for number in range(count + 1)]
    return [window_ids[start:end] for start, end in zip(edges, edges[1:], strict=False)]
