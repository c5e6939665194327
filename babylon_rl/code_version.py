"""Which code is running: the package's version, and in a git checkout the commit and whether files differ from it.

Read from git's own files, so that no git needs to be installed: the commit from HEAD and the refs, and what was changed
from the index, which holds size, time and hash of each file.
"""

import functools
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from babylon_rl import __version__

PACKAGE = Path(__file__).resolve().parent
SHOWN = 12  # digits of a commit

_ENTRY = struct.Struct(">10I20sH")  # ctime, mtime, dev, ino, mode, uid, gid, size (of two or one words), hash, flags
_EXTENDED, _NAME = 0x4000, 0x0FFF


class Tracked(NamedTuple):
    """A file as the index knows it. `hash`: SHA-1 of git's blob."""

    path: str
    mtime_ns: int
    size: int
    hash: bytes


@functools.cache
def code_version() -> str:
    """Such as `0.1.0`, in a checkout `0.1.0 1a2b3c4d5e6f`, and `0.1.0 1a2b3c4d5e6f+dirty` where files differ.

    Looked up once a process, for a process runs the code that it began with.
    """
    return version_of(PACKAGE, __version__)


def version_of(package: Path, version: str) -> str:
    """The version of the package in that folder; the bare one where it lies in no checkout that tracks it."""
    try:
        root, git = _checkout(package)
        commit = _commit(git)
        tracked = [one for one in _tracked(git / "index") if (root / one.path).is_relative_to(package)]
    except (OSError, ValueError, struct.error):
        return version
    if not tracked:  # installed into a folder of somebody else's checkout
        return version
    dirty = any(_differs(root, one) for one in tracked)
    return f"{version} {commit[:SHOWN]}{'+dirty' if dirty else ''}"


def _checkout(package: Path) -> tuple[Path, Path]:
    """The checkout's root and its git folder, which in a worktree lies elsewhere. FileNotFoundError without one."""
    for root in package.parents:
        git = root / ".git"
        if git.is_dir():
            return root, git
        if git.is_file():
            return root, (root / git.read_text().removeprefix("gitdir:").strip()).resolve()
    raise FileNotFoundError(package)


def _commit(git: Path) -> str:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    shared = git / "commondir"
    common = (git / shared.read_text().strip()).resolve() if shared.is_file() else git
    for folder in (git, common):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    for line in (common / "packed-refs").read_text().splitlines():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    raise ValueError(f"{name} has no commit yet")


def _tracked(index: Path) -> Iterator[Tracked]:
    """Files of an index of version 2 or 3; ValueError for another one."""
    content = index.read_bytes()
    kind, version, entries = struct.unpack_from(">4sII", content)
    if kind != b"DIRC" or version not in (2, 3):
        raise ValueError(f"index of version {version}")
    at = 12
    for _ in range(entries):
        fields = _ENTRY.unpack_from(content, at)
        flags = fields[-1]
        start = at + _ENTRY.size + (2 if flags & _EXTENDED else 0)
        length = flags & _NAME
        end = start + length if length < _NAME else content.index(b"\0", start)
        yield Tracked(os.fsdecode(content[start:end]), fields[2] * 10**9 + fields[3], fields[9], fields[10])
        at += (end - at + 8) // 8 * 8


def _differs(root: Path, tracked: Tracked) -> bool:
    """Whether the file is another than the index holds; its content is read where its time alone says so."""
    path = root / tracked.path
    try:
        found = path.stat()
        if found.st_size == tracked.size and found.st_mtime_ns == tracked.mtime_ns:
            return False
        content = path.read_bytes()
    except OSError:
        return True
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).digest() != tracked.hash
