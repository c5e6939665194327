"""The bench environment of TRL: a virtual environment of its own, made on first use, and a process in it.

TRL is no dependency of this package; its environment has the same torch, transformers and peft as this one.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from babylon_rl.errors import BabylonError, SettingsError

TRL = "trl==1.16.0"
_SCRIPT = Path(__file__).with_name("trl_step.py")


def requirements() -> list[list[str]]:
    """What is installed, in turn: torch first, so that the wheels come from where this environment's come from."""
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers", "peft", "accelerate")]
    return [same[:1], [TRL, *same]]


def make_environment(home: Path, say: Callable[[str], None]) -> Path:
    """The Python of the environment in `home`/bench/trl, made where it is missing or of other versions.

    SettingsError where pip cannot install it.
    """
    folder = home / "bench" / "trl"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made, wanted = folder / ".installed", json.dumps(requirements())
    python = folder / "bin" / "python"
    with open(folder.parent / ".trl.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benches install once
        if made.is_file() and made.read_text() == wanted and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        say(f"installing {TRL} into an environment of its own, {folder}; this takes some minutes, once")
        _run([sys.executable, "-m", "venv", str(folder)])
        for packages in requirements():
            _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
        made.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        said = " ".join((found.stderr or found.stdout).strip().splitlines()[-4:])
        raise SettingsError(
            f"The bench environment of TRL could not be installed: {said} It needs a package index that pip reaches "
            "(PIP_INDEX_URL) and 2 GB of disk; run the command again then."
        )


class TrlProcess:
    """A running `trl_step`: asked for one loss step at a time, it is idle between them."""

    def __init__(self, python: Path, job: Path, log: Any, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WANDB"))}
        quiet = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.log = log
        self.process = subprocess.Popen(
            [str(python), "-I", str(_SCRIPT), str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment | quiet,
        )
        self._read()

    def step(self, workload: int) -> dict[str, float]:
        """Seconds and loss of one loss step."""
        return self._ask(f"step {workload}")

    def gradient(self, workload: int, file: Path) -> dict[str, float]:
        """The same, and its gradient in a safetensors file, by the name of the parameter."""
        return self._ask(f"gradient {workload} {file}")

    def _ask(self, line: str) -> dict[str, float]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last is told below
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = " ".join(self.log.read().decode(errors="replace").strip().splitlines()[-4:])
            raise BabylonError(f"TRL's process ended: {said or 'it said nothing'}")
        return json.loads(line)


@contextlib.contextmanager
def trl_process(python: Path, job: Path, threads: int) -> Iterator[TrlProcess]:
    """A process on the job, ended afterwards."""
    with tempfile.TemporaryFile() as log:
        running = None
        try:
            running = TrlProcess(python, job, log, threads)
            yield running
        finally:
            if running is not None:
                assert running.process.stdin is not None
                running.process.stdin.close()
                try:
                    running.process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    running.process.kill()
                    running.process.wait()
