"""What a run over many windows makes before any of it is written: a little in memory, what comes after it in a file.

The file lies in the system's folder for temporary files (`TMPDIR`) and goes with the last who holds a part of it.
"""

import os
import pickle
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import pandas as pd

Item = TypeVar("Item")

# Rows of a frame that stay in memory, and rows that are put into one frame.
HELD_ROWS, FRAME_ROWS = 20_000, 4_000


class _File:
    """A temporary file of pickles. Handing it to another process leaves nothing of it in this one."""

    def __init__(self) -> None:
        self._hold(*tempfile.mkstemp(prefix="babylon_rl-rows-"))
        self._length = 0

    def write(self, item: object) -> tuple[int, int]:
        """Where the item stands: its place and its length."""
        text = memoryview(pickle.dumps(item, protocol=5))
        place, self._length = self._length, self._length + len(text)
        at = place
        while at < self._length:
            at += os.pwrite(self._descriptor, text[at - place :], at)
        return place, len(text)

    def read(self, place: int, length: int) -> Any:
        found = bytearray(length)
        at = 0
        while at < length:
            read = os.preadv(self._descriptor, [memoryview(found)[at:]], place + at)
            if not read:
                raise OSError("a temporary file of this run was cut off")
            at += read
        return pickle.loads(found)

    def _hold(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path = descriptor, path
        self._end = weakref.finalize(self, _end, descriptor, path)

    def __getstate__(self) -> tuple[str, int]:
        if self._end.detach():
            os.close(self._descriptor)
        return self._path, self._length

    def __setstate__(self, state: tuple[str, int]) -> None:
        path, self._length = state
        self._hold(os.open(path, os.O_RDWR), path)


def _end(descriptor: int, path: str) -> None:
    os.close(descriptor)
    os.unlink(path)


class _Held(NamedTuple):
    item: Any
    size: int


class _Filed(NamedTuple):
    file: _File
    place: int
    length: int


class Kept(Generic[Item]):
    """Items in the order in which they came; those beyond a size of `most` are in a file. Read as often as wanted."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._entries: list[_Held | _Filed] = []
        self._file: _File | None = None

    def add(self, item: Item, size: int) -> None:
        """Keep an item of that size."""
        if self._size + size <= self._most:
            self._size += size
            self._entries.append(_Held(item, size))
            return
        if self._file is None:
            self._file = _File()
        self._entries.append(_Filed(self._file, *self._file.write(item)))

    def take(self, other: "Kept[Item]") -> None:
        """Keep the other's items after one's own."""
        for entry in other._entries:
            if isinstance(entry, _Held):
                self.add(*entry)
            else:
                self._entries.append(entry)

    def __iter__(self) -> Iterator[Item]:
        for entry in self._entries:
            yield entry.item if isinstance(entry, _Held) else entry.file.read(entry.place, entry.length)


class KeptFrames:
    """Frames of whole windows, all of the same columns; small ones are put together."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self.rows: Counter[str] = Counter()  # by window
        self._kept: Kept[pd.DataFrame] = Kept(HELD_ROWS)
        self._waiting: list[pd.DataFrame] = []
        self._waiting_rows = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Keep the rows of windows of which none came before."""
        if not len(frame):
            return
        self.rows.update(Counter(frame["window_id"].tolist()))
        self._waiting.append(frame)
        self._waiting_rows += len(frame)
        if self._waiting_rows >= FRAME_ROWS:
            self._join()

    def take(self, other: "KeptFrames") -> None:
        """Keep the other's frames after one's own."""
        self._join()
        other._join()
        self.rows.update(other.rows)
        self._kept.take(other._kept)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        self._join()
        return iter(self._kept)

    def _join(self) -> None:
        if self._waiting:
            self._kept.add(one_frame(self._waiting, self.columns), self._waiting_rows)
            self._waiting, self._waiting_rows = [], 0


def one_frame(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The frames as one; the columns without rows where all are empty."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))
