"""The spool on a real disk: on disk before it is said, in groups, and what a disk that fails does to it."""

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from babylon_rl.serving.gateway.events import AbandonEvent, GapEvent
from babylon_rl.serving.gateway.spool import Spool, SpoolError, lines, read_at, segment_file, segments


def event(number: int) -> AbandonEvent:
    return AbandonEvent(trajectory_id=str(number), reason="r" * 50, at=float(number))


def all_lines(folder: Path) -> list[bytes]:
    return [line for segment in segments(folder) for _, line in lines(folder, segment)]


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool").open()
    yield spool
    spool.close()


def appended(spool: Spool, numbers) -> list:
    async def run():
        return await asyncio.gather(*(spool.append(event(n)) for n in numbers), return_exceptions=True)

    return asyncio.run(run())


def calls(spool: Spool, count: int) -> list:
    async def run():
        found = (spool.append_line(b'{"type":"call"}') for _ in range(count))
        return await asyncio.gather(*found, return_exceptions=True)

    return asyncio.run(run())


def test_events_lie_where_it_is_said_and_in_order_and_share_fsyncs(spool, monkeypatch):
    synced, fdatasync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (synced.append(time.sleep(0.01)), fdatasync(handle)))
    places = appended(spool, range(200))
    for number, place in enumerate(places):
        assert f'"trajectory_id":"{number}"'.encode() in read_at(spool.folder, place)
    assert len(all_lines(spool.folder)) == 200 and len(synced) < 20


def test_nothing_is_said_before_it_is_on_disk(spool, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fdatasync", lambda handle: on_disk.append(os.fstat(handle).st_size))
    [place] = appended(spool, [1])
    assert on_disk == [place.length + 1]


def test_segments_roll_by_size_and_time_and_a_writer_begins_its_own(tmp_path):
    spool = Spool(tmp_path, segment_bytes=200, segment_seconds=60).open()
    for number in range(6):
        appended(spool, [number])
    spool.close()
    by_size = segments(tmp_path)
    assert len(by_size) == 3
    spool = Spool(tmp_path, segment_seconds=0.0).open()
    for number in range(2):
        appended(spool, [number])
    spool.close()
    assert segments(tmp_path)[:3] == by_size and len(segments(tmp_path)) == 5
    assert len(all_lines(tmp_path)) == 8


def test_a_segment_that_stood_empty_is_not_taken_for_what_comes_later(tmp_path):
    """Its number says how old its events may be: the gateway forgets requests by it."""
    spool = Spool(tmp_path, segment_seconds=0.05).open()
    time.sleep(0.1)
    before = time.time_ns() // 1000
    [place] = appended(spool, [1])
    spool.close()
    assert place.segment >= before and segments(tmp_path) == [place.segment]


def test_a_torn_last_line_is_no_event(spool):
    appended(spool, [1])
    spool.close()
    with open(segment_file(spool.folder, segments(spool.folder)[0]), "ab") as file:
        file.write(b'{"type":"abandon","traj')
    assert len(all_lines(spool.folder)) == 1
    spool = Spool(spool.folder).open()
    appended(spool, [2])
    spool.close()
    assert len(all_lines(spool.folder)) == 2


@pytest.mark.parametrize("broken", ["write", "fdatasync", "open"])
def test_where_the_disk_fails_calls_are_counted_and_told_of_when_it_works_again(spool, monkeypatch, broken):
    appended(spool, [1])
    real = getattr(os, broken)

    def full(*arguments):
        if broken == "write":  # a full disk takes a part
            real(arguments[0], bytes(arguments[1])[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if broken == "open":
        segment_file(spool.folder, segments(spool.folder)[0]).unlink()
    monkeypatch.setattr(os, broken, full)
    failed = calls(spool, 3) + calls(spool, 2)
    assert all(isinstance(one, SpoolError) for one in failed) and "No space left" in str(failed[0])
    assert spool.unrecorded == 5 and "No space left" in spool.failing
    monkeypatch.setattr(os, broken, real)
    deadline = time.monotonic() + 5
    while spool.failing and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing is appended: it tries by itself
    assert spool.failing is None
    appended(spool, [2])
    from babylon_rl_tests.serving.gateway.stand_in import events_in

    found = events_in(spool.folder.parent)
    [gap] = [one for one in found if isinstance(one, GapEvent)]
    assert gap.calls == 5 and gap.since <= gap.until and "No space left" in gap.reason
    kept = [one.trajectory_id for one in found if isinstance(one, AbandonEvent)]
    assert kept == (["2"] if broken == "open" else ["1", "2"]) and spool.unrecorded == 5


def test_a_spool_that_cannot_be_opened_waits_for_a_folder(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    spool = Spool(tmp_path / "spool").open()
    assert isinstance(calls(spool, 1)[0], SpoolError) and spool.failing
    (tmp_path / "spool").unlink()
    appended(spool, [1])
    spool.close()
    assert len(all_lines(tmp_path / "spool")) == 2  # the gap, and the event


def test_a_disk_that_does_not_answer_holds_up_no_caller_for_long(spool, monkeypatch):
    release, fdatasync = threading.Event(), os.fdatasync
    monkeypatch.setattr("babylon_rl.serving.gateway.spool.STALL_SECONDS", 0.05)
    monkeypatch.setattr(os, "fdatasync", lambda handle: (release.wait(10), fdatasync(handle)))
    assert isinstance(appended(spool, [1])[0], SpoolError)
    deadline = time.monotonic() + 5
    while spool.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "has not answered" in spool.trouble
    release.set()
    spool.close()
    assert spool.trouble is None
    assert len(all_lines(spool.folder)) == 1 and spool.unrecorded == 0  # it came to disk after all


def test_an_error_of_another_kind_ends_neither_the_thread_nor_what_waits(spool, monkeypatch):
    def failing(handle: int) -> None:
        raise ValueError("odd")

    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", failing)
    assert "odd" in str(calls(spool, 1)[0])
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert not isinstance(appended(spool, [1])[0], Exception)


def test_closing_writes_what_waits(tmp_path):
    spool = Spool(tmp_path).open()
    for number in range(50):
        spool.put(event(number))
    spool.close()
    assert len(all_lines(tmp_path)) == 50
