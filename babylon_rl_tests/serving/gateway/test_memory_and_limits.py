"""Request ids that are remembered within their bounds, and limits that hold over any minute."""

import asyncio
import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.serving.gateway.files import Followed, write_keys
from babylon_rl.serving.gateway.limits import Admission, Sliding
from babylon_rl.serving.gateway.memory import Answered, Attempt, Memory, Waiting, binds, call_id_of
from babylon_rl.serving.gateway.refusals import Refused
from babylon_rl.serving.gateway.spool import Place
from babylon_rl_tests.serving.gateway.stand_in import key

SHA = "ab" * 32
NOW = 1_700_000_000.0


def in_loop(function):
    async def run():
        return function()

    return asyncio.run(run())


def answer(memory: Memory, name: str, place: Place | None, bound: bool = True) -> Attempt:
    attempt = memory.claim("k", name, SHA)
    assert isinstance(attempt, Attempt)
    memory.remember(attempt, place, bound)
    memory.release(attempt)
    return attempt


def test_an_id_is_bound_by_a_whole_answer_and_left_free_by_what_may_pass():
    assert all(binds(status, "stop") for status in (200, 400, 404, 422))
    assert not any(binds(status, None) for status in (408, 409, 425, 429, 500, 503, 599))
    assert not binds(200, "cancelled") and not binds(200, "broken")

    def run():
        memory = Memory(60, 100, lambda: NOW)
        place = Place(int(NOW * 1e6), 7, 9)
        first = answer(memory, "a", place, bound=False)
        second = answer(memory, "a", None)
        third = answer(memory, "a", place)
        ids = [first.call_id, second.call_id, third.call_id]
        assert ids == [call_id_of("k", "a", n) for n in (1, 2, 3)] and len(set(ids)) == 3
        assert memory.claim("k", "a", SHA) == Answered(place, True)
        assert memory.claim("k", "a", "cd" * 32) == Answered(place, False)
        running = memory.claim("k", "b", SHA)
        waiting = memory.claim("k", "b", SHA)
        assert isinstance(waiting, Waiting) and waiting.same_body and not waiting.done.done()
        memory.release(running, "the answer")
        assert waiting.done.result() == "the answer"

    in_loop(run)


def test_a_file_that_could_not_be_read_for_a_moment_is_followed_then(tmp_path, monkeypatch):
    followed, read = Followed(tmp_path), Path.read_bytes
    write_keys(tmp_path, [key()])

    def too_many_open_files(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", too_many_open_files)
    assert not followed.look() and followed.damaged
    monkeypatch.setattr(Path, "read_bytes", read)
    assert followed.look() and followed.keys == [key()] and not followed.damaged


def test_the_memory_is_bounded_in_number_and_time():
    def run():
        clock = [NOW]
        memory = Memory(60, 5, lambda: clock[0])
        for number in range(20):
            answer(memory, str(number), Place(int(clock[0] * 1e6), number, 1))
        assert len(memory) == 5 and isinstance(memory.claim("k", "19", SHA), Answered)
        clock[0] += 2 * 3600
        answer(memory, "late", Place(int(clock[0] * 1e6), 0, 1))
        assert len(memory) == 1

    in_loop(run)


def test_a_remembered_id_takes_few_bytes():
    import tracemalloc

    def run():
        memory = Memory(60, 100_000, lambda: NOW)
        tracemalloc.start()
        for number in range(3_000):
            answer(memory, str(number), Place(int(NOW * 1e6), number, 1))
        taken = tracemalloc.get_traced_memory()[0] / 3_000
        tracemalloc.stop()
        return taken

    assert in_loop(run) < 300


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.floats(0, 30), min_size=1, max_size=40))
def test_no_minute_holds_more_than_the_limit_and_the_wait_is_exact(most, pauses):
    now, taken = [0.0], []
    sliding = Sliding(lambda: now[0])
    for pause in pauses:
        now[0] += pause
        wait = sliding.wait(1, most)
        recent = [at for at in taken if at > now[0] - 60]
        assert (wait > 0) == (len(recent) >= most)
        if wait > 0:
            assert len([at for at in taken if at > now[0] + wait - 60 + 1e-6]) < most
        else:
            sliding.take(1)
            taken.append(now[0])
    assert all(len([at for at in taken if t - 60 < at <= t]) <= most for t in taken)


def test_tokens_are_booked_by_estimate_and_corrected_by_usage():
    now = [0.0]
    admission = Admission(10, lambda: now[0])
    limited = key(tokens_per_minute=100)
    first = admission.enter(limited, lambda: 90)
    with pytest.raises(Refused) as refused:
        admission.enter(limited, lambda: 20)
    assert (refused.value.status, refused.value.code) == (429, "tokens_per_minute")
    first.leave(10)
    second = admission.enter(limited, lambda: 90)
    second.leave(None)  # not said: the estimate stays
    with pytest.raises(Refused):
        admission.enter(limited, lambda: 1)
    now[0] = 61
    large = admission.enter(limited, lambda: 10_000)  # more than ever fits passes alone
    large.leave(250)
    with pytest.raises(Refused):
        admission.enter(limited, lambda: 1)
    assert admission.open == 0


def test_counts_of_keys_that_are_gone_are_dropped_once_nothing_is_open():
    admission = Admission(10)
    admitted = admission.enter(key(), lambda: 1)
    admission.forget(set())
    assert admission.uses
    admitted.leave(None)
    admission.forget(set())
    assert not admission.uses
