"""Work on windows by several processes, each with connections of its own; the result is that of one process."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")

# Below so many windows a part, handing it to a process costs more than it saves.
SMALLEST_PART = 4
# Parts a process, so that one that begins later or is slower does fewer; each part is one more look over the table.
PARTS_A_WORKER = 3
# What the other processes begin with: to import it takes a second or two.
PRELOADED = ["babylon_rl.recording.summary", "babylon_rl.scoring.windows"]


def by_parts(work: Callable[[Sequence[str]], Part], window_ids: Sequence[str], workers: int) -> list[Part]:
    """What `work` makes of consecutive parts of the windows, in their order; one part where one process does it.

    `work` and what it returns must be picklable. This process is one of the workers, and the others are forked from a
    server of clean processes, for a fork of this one would share its connections.
    """
    parts = split(window_ids, workers)
    if len(parts) == 1:
        return [work(parts[0])]
    others = min(workers, len(parts)) - 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    done: dict[int, Part] = {}
    waiting = deque(enumerate(parts))

    def do(how: Callable[[Sequence[str]], Part]) -> None:
        try:
            while (next_one := _taken(waiting)) is not None:
                number, part = next_one
                done[number] = how(part)
        except BaseException:
            waiting.clear()
            raise

    # A thread hands its process a part at a time, so that none is promised to one while another has nothing to do.
    with ProcessPoolExecutor(others, mp_context=context) as pool, ThreadPoolExecutor(others) as threads:
        told = [threads.submit(do, lambda part: pool.submit(work, part).result()) for _ in range(others)]
        do(work)
        for one in told:
            one.result()
    return [done[number] for number in range(len(parts))]


def _taken(waiting: deque[tuple[int, Sequence[str]]]) -> tuple[int, Sequence[str]] | None:
    """The next part, None where there is none; several threads ask."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def split(window_ids: Sequence[str], workers: int) -> list[Sequence[str]]:
    """The windows in consecutive parts of nearly the same length, some for each worker."""
    many = workers * PARTS_A_WORKER if workers > 1 else 1
    count = max(1, min(many, len(window_ids) // SMALLEST_PART))
    edges = [round(number * len(window_ids) / count) for number in range(count + 1)]
    return [window_ids[start:end] for start, end in zip(edges, edges[1:], strict=False)]
