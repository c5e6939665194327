"""The bench environment of TRL, and a process in it.

TRL is no dependency of this package; its environment has the same torch, transformers and peft as this one.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from babylon_rl.bench.environments import make_environment
from babylon_rl.errors import BabylonError

TRL = "trl==1.16.0"
_SCRIPT = Path(__file__).with_name("trl_step.py")


def requirements() -> list[list[str]]:
    """What is installed, in turn: torch first, so that the wheels come from where this environment's come from."""
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers", "peft", "accelerate")]
    return [same[:1], [TRL, *same]]


def trl_python(home: Path, say: Callable[[str], None]) -> Path:
    """The Python of TRL's environment under `home`; SettingsError where pip cannot install it."""
    return make_environment(home, "trl", requirements(), "2 GB", say)


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
