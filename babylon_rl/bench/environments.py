"""Virtual environments of what is measured against and is no dependency of this package, made on first use."""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from babylon_rl.errors import SettingsError


def make_environment(home: Path, name: str, steps: list[list[str]], size: str, say: Callable[[str], None]) -> Path:
    """The Python of the environment in `home`/bench/`name`, made where it is missing or of other versions.

    `steps`: what pip installs, in turn; `size`: on disk, as a person reads it. SettingsError where it cannot.
    """
    folder = home / "bench" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    made, wanted = folder / ".installed", json.dumps(steps)
    python = folder / "bin" / "python"
    with open(folder.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benches install once
        if made.is_file() and made.read_text() == wanted and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        say(f"installing {name} into an environment of its own, {folder}; this takes some minutes, once")
        _run([sys.executable, "-m", "venv", str(folder)], name, size)
        for packages in steps:
            _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], name, size)
        made.write_text(wanted)
    return python


def _run(command: list[str], name: str, size: str) -> None:
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        said = " ".join((found.stderr or found.stdout).strip().splitlines()[-4:])
        raise SettingsError(
            f"The bench environment of {name} could not be installed: {said} It needs a package index that pip reaches "
            f"(PIP_INDEX_URL) and {size} of disk; run the command again then."
        )
