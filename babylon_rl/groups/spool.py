"""Texts and groups that are laid down outside memory and read back, in any order, by where they lie.

What is small stays in memory; the rest goes to a temporary file that is gone when it is closed.
"""

import marshal
import tempfile
from typing import NamedTuple

import msgspec

from babylon_rl.groups.trained_view import Group, decode_group

# Bytes that stay in memory.
HELD_BYTES = 4 * 2**20


class Place(NamedTuple):
    """Where something lies in a spool."""

    start: int
    length: int


class Spool:
    """A temporary file that grows; a context manager that closes it."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD_BYTES, prefix="babylon_rl-")
        self._length = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, content: bytes) -> Place:
        """Lay down the bytes after those that lie there."""
        self._file.seek(self._length)
        self._file.write(content)
        place = Place(self._length, len(content))
        self._length += len(content)
        return place

    def read(self, place: Place) -> bytes:
        """The bytes that lie there."""
        self._file.seek(place.start)
        return self._file.read(place.length)

    def add_group(self, group: Group) -> Place:
        """Lay down a group. Its form takes any text, also half a surrogate pair, which UTF-8 has no bytes for."""
        return self.add(marshal.dumps(msgspec.to_builtins(group)))

    def read_group(self, place: Place) -> Group:
        """The group that lies there."""
        return decode_group(marshal.loads(self.read(place)))
