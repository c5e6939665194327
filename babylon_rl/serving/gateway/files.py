"""The gateway's folder: `routes.json` and `keys.json`, written by the deployer, followed by the gateway; the spool.

A file is replaced whole. One that cannot be read or decoded changes nothing: the gateway keeps the last good one.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.routing import Routes

ROUTES, KEYS, SPOOL, SHIPPED, LOCK = "routes.json", "keys.json", "spool", "shipped.json", "gateway.lock"
LOOK_SECONDS = 0.1  # between two looks at the files; a change is noticed within twice of it

log = logging.getLogger(__name__)


def write_routes(folder: Path, routes: Routes) -> None:
    """Say what is served; a gateway on the folder follows within 0.2 s. Calls in flight end where they began."""
    write_file(folder / ROUTES, msgspec.json.format(msgspec.json.encode(routes)))


def write_keys(folder: Path, keys: list[Key]) -> None:
    """Say which keys are valid; a gateway on the folder follows within 0.2 s."""
    write_file(folder / KEYS, msgspec.json.format(msgspec.json.encode(keys)))


def read_routes(folder: Path) -> Routes | None:
    """What is served, None where nobody has said it; ServingError where the file is damaged."""
    return _read(folder / ROUTES, Routes)


def read_keys(folder: Path) -> list[Key] | None:
    """The valid keys, None where nobody has said them; ServingError where the file is damaged."""
    return _read(folder / KEYS, list[Key])


def write_file(file: Path, content: bytes) -> None:
    """Replace the file whole, on disk before it is seen; only its owner may read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def _read(file: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServingError(f"{file} cannot be read: {error}. Write it again with write_routes or write_keys.") from None


class Followed:
    """Routes and keys as they were last read; `look` reads what has changed.

    `routes`, `keys`: None before there is a good file. `by_digest`: keys by the digest of their secret. `damaged`:
    what was wrong with the newest file, by its name; the last good one is still in force.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.routes: Routes | None = None
        self.keys: list[Key] | None = None
        self.by_digest: dict[str, Key] = {}
        self.damaged: dict[str, str] = {}
        self._seen: dict[str, tuple[int, int, int] | None] = {}

    def look(self) -> bool:
        """Read the files that have changed since the last look; whether one was taken over."""
        taken = False
        for name, read in ((ROUTES, read_routes), (KEYS, read_keys)):
            stamp = _stamp(self.folder / name)
            if name in self._seen and self._seen[name] == stamp:
                continue
            self._seen[name] = stamp
            try:
                found = read(self.folder)
            except ServingError as error:
                if self.damaged.get(name) != str(error):
                    log.error("%s The last good one stays in force.", error)
                self.damaged[name] = str(error)
                del self._seen[name]  # what could not be read for a moment is read again
                continue
            self.damaged.pop(name, None)
            if found is not None:
                taken = True
                self._take(name, found)
        return taken

    def _take(self, name: str, found: Any) -> None:
        if name == ROUTES:
            self.routes = found
        else:
            self.keys = found
            self.by_digest = {key.secret_sha256: key for key in found}


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when the file is replaced: inode, time and size."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
