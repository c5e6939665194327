"""Work by several processes: what one process would make, in its order, and its errors."""

import os

import pytest

from babylon_rl.recording.parallel import SMALLEST_PART, by_parts, split
from babylon_rl.windows import shift_window
from babylon_rl_tests.recording.runs import WINDOW

WINDOWS = [shift_window(WINDOW, number) for number in range(5 * SMALLEST_PART)]


def named(window_ids):
    return list(window_ids), os.getpid()


def unlucky(window_ids):
    if WINDOWS[-1] in window_ids:
        raise LookupError("the last part")
    return list(window_ids)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parts_come_in_order_whoever_made_them(workers):
    parts = by_parts(named, WINDOWS, workers)
    assert [one for own, _ in parts for one in own] == WINDOWS
    assert len(parts) == len(split(WINDOWS, workers)) and (len(parts) == 1) == (workers == 1)
    assert os.getpid() in {process for _, process in parts}


def test_an_error_of_a_part_is_the_callers(capfd):
    with pytest.raises(LookupError, match="the last part"):
        by_parts(unlucky, WINDOWS, 2)


def test_a_range_too_short_to_share_is_one_part():
    assert split(WINDOWS[:SMALLEST_PART], 8) == [WINDOWS[:SMALLEST_PART]]
