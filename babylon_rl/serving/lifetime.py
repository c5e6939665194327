"""How processes of serving begin and end: alone on a folder, on a free port, with the process that started them.

Imports nothing heavy: the gateway's process does too.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from babylon_rl.errors import ServingError


@contextlib.contextmanager
def alone(lock: Path, seconds: float, refusal: str) -> Iterator[None]:
    """Hold the lock file, for one process at a time; its folder is made.

    Whoever has it may still be ending: it is waited for that long. ServingError with the refusal where it does not end.
    """
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(lock, "w") as held:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ServingError(refusal) from None
                time.sleep(0.05)
        yield


def watch_parent(ended: Callable[[], None]) -> None:
    """Call `ended`, from another thread, once the process that started this one closes our standard input."""

    def watch() -> None:
        # Not sys.stdin: its lock would keep the interpreter from ending while this thread waits.
        while os.read(0, 4096):
            pass
        ended()

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """End this process, as by SIGTERM, when the one that started it closes our standard input."""
    watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))


def end(process: subprocess.Popen, seconds: float) -> None:
    """End a process that watches its standard input; it is killed after so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A plain kill and a closed terminal end this process as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Under nohup the terminal's end is ignored, and stays so.
    wanted = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
