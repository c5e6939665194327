"""What a run keeps until it is written: in memory or in a file, the same items in the same order."""

import gc
import pickle
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from babylon_rl.database.kept import FRAME_ROWS, HELD_ROWS, Kept, KeptFrames


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> int:
    gc.collect()
    return len(list(folder.iterdir()))


def filled(items: list[bytes], most: int) -> Kept[bytes]:
    kept: Kept[bytes] = Kept(most)
    for item in items:
        kept.add(item, len(item))
    return kept


@pytest.mark.parametrize("most", [0, 5, 10**6])
def test_items_come_as_they_were_kept_as_often_as_they_are_wanted(folder, most):
    items = [bytes([n]) * n for n in range(1, 9)]
    kept = filled(items, most)
    assert list(kept) == items == list(kept)
    assert files(folder) == (0 if most > 100 else 1)
    del kept
    assert files(folder) == 0


def test_what_another_process_kept_is_taken_over_with_its_file(folder):
    told = pickle.dumps(filled([b"b" * 9, b"c"], 3))
    kept = filled([b"a"], 3)
    kept.take(pickle.loads(told))
    assert list(kept) == [b"a", b"b" * 9, b"c"] and files(folder) == 1
    del kept
    assert files(folder) == 0


def test_frames_of_many_windows_are_joined_and_counted(folder):
    frames = [pd.DataFrame({"window_id": [f"w{n}"] * 3000, "value": range(3000)}) for n in range(10)]
    kept = KeptFrames(["window_id", "value"])
    for frame in (*frames, frames[0].iloc[:0]):
        kept.add(frame)
    assert pd.concat(list(kept), ignore_index=True).equals(pd.concat(frames, ignore_index=True))
    assert kept.rows == {f"w{n}": 3000 for n in range(10)}
    assert 30_000 > HELD_ROWS and files(folder) == 1 and len(list(kept)) == 5
    assert min(map(len, kept)) >= FRAME_ROWS
