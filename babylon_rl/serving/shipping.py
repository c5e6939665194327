"""The shipper as a process under this one: started, asked what it has left to do, ended."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.serving.gateway.shipper import waiting_bytes
from babylon_rl.serving.lifetime import end

END_SECONDS = 10.0


class RunningShipper(msgspec.Struct, frozen=True):
    """A running shipper. `process`: its subprocess.Popen."""

    process: Any


@contextlib.contextmanager
def running_shipper(folder: Path, database: Database) -> Iterator[RunningShipper]:
    """A shipper from the gateway's folder to the database, ended at the end; what it has not shipped stays there."""
    with open(folder / "shipper.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "babylon_rl.serving.gateway.shipper", "--folder", str(folder), "--parent-pipe"],
            # It watches its standard input and ends when this process does, however that happens.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **database.variables()},
        )
        try:
            yield RunningShipper(process)
        finally:
            end(process, END_SECONDS)


def await_shipped(folder: Path, seconds: float, stop: Any = lambda: False) -> int:
    """Wait until all that is spooled is in PostgreSQL, `seconds` at most or until `stop()`; bytes that are left."""
    deadline = time.monotonic() + seconds
    while (left := waiting_bytes(folder)) and time.monotonic() < deadline and not stop():
        time.sleep(0.05)
    return left
