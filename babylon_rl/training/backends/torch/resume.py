"""The state of an update that is under way: written so that a killed attempt is continued and not repeated.

One file holds everything that the next step depends on, so that weights, moments, cursor and random numbers can only be
from the same moment. It appears by a rename when it is on the disk, and carries the digest of its content. It belongs
to one request: what another one left, or a damaged file, is not continued.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babylon_rl.errors import TrainingError

# Seconds between two states: what a kill costs at most, besides the step that was under way.
SAVE_SECONDS = 20.0

STATE_FILE, LOCK_FILE = "state.pt", "lock"
DIGEST_BYTES = 32


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """The folder, held by this process alone, with nothing in it but an earlier attempt's state.

    TrainingError where another process holds it. Removed when the update ends well, and when it is refused by a
    TrainingError that would come again; kept for the next attempt where it was interrupted or the disk is full.
    """
    lock = _locked(path)
    try:
        for left in path.iterdir():
            if left.name not in (STATE_FILE, LOCK_FILE):
                _remove(left)
        yield path
    except DiskError:
        _without_rows(path)
        raise
    except TrainingError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    except BaseException:
        _without_rows(path)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def left_behind(root: Path, seconds: float) -> list[Path]:
    """Work folders in `root` that no process holds and in which nothing was written for so long."""
    since = time.time() - seconds
    return [path for path in sorted(root.glob(work_name("*"))) if _untouched_since(path, since)]


def _untouched_since(path: Path, moment: float) -> bool:
    """Whether nothing in the folder is younger, and no process holds it; False where it goes away meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return all(one.stat().st_mtime <= moment for one in (path, *path.iterdir())) and not _is_held(path)
    return False


def work_name(checkpoint: str) -> str:
    """Name of the work folder of the checkpoint, which lies beside its place."""
    return f".{checkpoint}.work"


def remove_work(path: Path) -> None:
    """Take a work folder away. TrainingError where a process holds it."""
    lock = _locked(path)
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _is_held(path: Path) -> bool:
    try:
        lock = os.open(path / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class DiskError(TrainingError):
    """Something could not be written; the same attempt may end well when there is room."""


def _locked(path: Path) -> int:
    """An open file that locks the folder until it is closed, which the end of the process does too."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # another attempt ended, and its folder with it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise TrainingError(
                f"Another process trains this checkpoint: it holds {path}. Wait for it; what it makes is used then."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path / LOCK_FILE)):
                return lock
        os.close(lock)  # the lock of a folder that was removed meanwhile


def _without_rows(path: Path) -> None:
    """Keep a state that can be continued; a folder without one is of no use."""
    if not (path / STATE_FILE).exists():
        shutil.rmtree(path, ignore_errors=True)
        return
    for left in path.iterdir():
        if left.name not in (STATE_FILE, LOCK_FILE):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_state(folder: Path, key: str, state: dict[str, Any]) -> None:
    """Replace the folder's state: complete on the disk, or the one before stays. OSError where it cannot be written."""
    import torch

    content = io.BytesIO()
    torch.save({"key": key, "random": _random_states(), **state}, content)
    partial = folder / f"partial-{STATE_FILE}"
    with partial.open("wb") as out:
        out.write(hashlib.sha256(content.getbuffer()).digest())
        out.write(content.getbuffer())
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, folder / STATE_FILE)
    sync_folder(folder)


def load_state(folder: Path, key: str) -> dict[str, Any] | None:
    """The state that `save_state` wrote for this request; None, and no file, where there is none or it is damaged."""
    import torch

    path = folder / STATE_FILE
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        if hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]:
            state = torch.load(io.BytesIO(content[DIGEST_BYTES:]), map_location="cpu", weights_only=True)
            if state["key"] == key:
                return state
        path.unlink()
    return None


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def seed_everything(seed: str) -> None:
    """Start the random numbers of Python, numpy and torch from a text."""
    import numpy as np
    import torch

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _random_states() -> dict[str, Any]:
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, [int(one) for one in keys], *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Go on with the random numbers where `save_state` was called."""
    import numpy as np
    import torch

    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
