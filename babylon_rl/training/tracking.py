"""What an update came to, told to Weights & Biases: files on this machine, or the service where there is a key.

One run there per training run, one step per checkpoint: means of the optimizer steps' metrics, tables of the steps, of
the windows trained and of what was left out, and the checkpoint's folder as an artifact. No texts, no prompts, no names
of agents. The wandb library runs in a short process of its own (`tracking_process`), which is ended after a time; an
update never waits longer for it and never fails by it.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from babylon_rl import __version__
from babylon_rl.database.connect import Database
from babylon_rl.groups.snapshots import load_header, stream_groups
from babylon_rl.groups.trained_view import Group
from babylon_rl.settings import Settings
from babylon_rl.training.runs import Checkpoint, TrainingRun
from babylon_rl.training.trainer import TrainerResult

log = logging.getLogger(__name__)

# Seconds: for the service's first answer, for the last of what is sent, and for the whole.
INIT_TIMEOUT, FINISH_TIMEOUT, TIMEOUT = 20, 60, 120
MOST_WINDOWS = 10_000  # rows of the table of windows
LONGEST_SAID = 300
# Of the environment, in upper case: where programs and certificates are, how the network is reached, wandb's server.
ENVIRONMENT = {
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("SYSTEMROOT", "WANDB_BASE_URL"),
}


def track(
    database: Database,
    settings: Settings,
    run: TrainingRun,
    checkpoint: Checkpoint,
    result: TrainerResult,
    folder: Path | None,
) -> str | None:
    """Tell of the update that made the checkpoint, once; what went wrong, which is also a warning in the log, or None.

    `folder`: of the checkpoint on this machine, None where a service keeps it.
    """
    if settings.tracking == "off":
        return None
    try:
        home = Path(settings.home).resolve() / "tracking"
        marker = home / "told" / f"{quote(checkpoint.checkpoint_id, safe='@')}.json"
        if marker.exists():
            return None
        said = story(database, settings, run, checkpoint, result, folder)
        marker.parent.mkdir(parents=True, exist_ok=True)
        # Before it is told: an attempt that dies in the middle leaves a gap there and not the same step twice.
        marker.write_text(json.dumps({"checkpoint": checkpoint.checkpoint_id, "state": "started"}))
        told = _tell(said, home, settings)
        if told.get("logged"):
            partial = marker.with_suffix(".partial")
            partial.write_text(json.dumps({"checkpoint": checkpoint.checkpoint_id, "state": "told", **told}))
            partial.rename(marker)
        else:
            marker.unlink()
        wrong = told.get("wrong")
    except Exception as error:  # tracking is never required: whatever it fails with, the update stands
        wrong = f"{type(error).__name__}: {error}"
    if wrong is None:
        return None
    warning = f"{checkpoint.checkpoint_id} was not tracked as it should be: {wrong}. The update itself is complete."
    log.warning(warning)
    return warning


def run_id(training_run: str) -> str:
    """The run's id at Weights & Biases, of letters that it allows; one for one name."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", training_run)[:40]
    return plain if plain == training_run else f"{plain}-{hashlib.sha256(training_run.encode()).hexdigest()[:8]}"


def story(
    database: Database,
    settings: Settings,
    run: TrainingRun,
    checkpoint: Checkpoint,
    result: TrainerResult,
    folder: Path | None,
) -> dict[str, Any]:
    """All that is told of the update, as plain JSON values. Holds no text of a trajectory, no agent and no secret."""
    with database.connect() as connection:
        header = load_header(connection, str(checkpoint.snapshot_id))
        windows = _windows(stream_groups(connection, str(checkpoint.snapshot_id)))
    made = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "snapshot_id": checkpoint.snapshot_id,
        "parent_id": checkpoint.parent_id,
        "weights_sha256": checkpoint.weights_sha256,
        "inference_name": checkpoint.inference_name,
        "last_window": checkpoint.last_window,
    }
    means = {
        **{f"update/{name}": value for name, value in result.metrics.items()},
        "update/windows": float(header.groups),
        "update/trajectories": float(sum(row[1] for row in windows)),
        "update/left_out": float(sum(header.left_out.values())),
    }
    return {
        "project": settings.wandb_project,
        "entity": settings.wandb_entity,
        "id": run_id(run.training_run),
        "name": run.training_run,
        "step": checkpoint.step,
        "config": {
            "recipe": run.recipe.as_json(),
            # A folder's place is of this machine; what else has a slash in it is a model's name on a hub.
            "base_model": Path(run.base_model).name if Path(run.base_model).is_absolute() else run.base_model,
            "seed": run.seed,
            "backend": run.backend,
            "code_version": checkpoint.code_version or __version__,
        },
        "metrics": {name: value for name, value in means.items() if math.isfinite(value)},
        "tables": {
            "optimizer_steps": _steps(result.steps),
            "windows": {"columns": ["window", "members", "reward_mean", "reward_sd"], "data": windows[-MOST_WINDOWS:]},
            "left_out": {
                "columns": ["reason", "count"],
                "data": [[reason, count] for reason, count in sorted(header.left_out.items())],
            },
        },
        "summary": {name: value for name, value in made.items() if value is not None},
        "artifact": str(folder) if folder is not None and folder.is_dir() else None,
        "timeouts": [INIT_TIMEOUT, FINISH_TIMEOUT],
    }


def _windows(groups: Iterable[Group]) -> list[list[Any]]:
    """Window, members, and mean and population standard deviation of their rewards."""
    rows = []
    for group in groups:
        rewards = [member.reward for member in group.members]
        rows.append([group.window_id, len(rewards), statistics.fmean(rewards), statistics.pstdev(rewards)])
    return rows


def _steps(steps: list[dict[str, float]]) -> dict[str, Any]:
    """The optimizer steps' metrics as a table; an empty cell where a step has no finite number of that name."""
    names = sorted(set(itertools.chain.from_iterable(steps)))

    def cell(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    rows = [[place, *(cell(step.get(name)) for name in names)] for place, step in enumerate(steps, 1)]
    return {"columns": ["optimizer_step", *names], "data": rows}


def _tell(said: dict[str, Any], home: Path, settings: Settings) -> dict[str, Any]:
    """What telling came to: `logged`, `mode`, and what was `wrong`. Into files where no service is reached."""
    home.mkdir(parents=True, exist_ok=True)
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key is not None else ""
    told = _attempt(said, home, key)
    if not key or told["logged"]:
        return told
    wrong = f"Weights & Biases was not reached ({told['wrong']}); `wandb sync` in {home} sends what is kept there"
    return {**_attempt(said, home, ""), "wrong": wrong}


def _attempt(said: dict[str, Any], home: Path, key: str) -> dict[str, Any]:
    """What one process with the wandb library came to."""
    # By its path and with -P: neither this folder's modules nor a folder called wandb may stand in a library's place.
    command = [sys.executable, "-P", str(Path(__file__).with_name("tracking_process.py"))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(said, allow_nan=False),
            cwd=home,
            env=_environment(home, key),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        wrote, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        wrote, errors = _text(expired.stdout), f"wandb was not done after {TIMEOUT} s and was ended"
    lines = wrote.splitlines()
    for line in reversed(lines):
        if line.startswith('{"logged"'):
            return json.loads(_without(key, line))
    last = (errors.strip().splitlines() or ["its process ended without a word"])[-1]
    return {"logged": "logging" in lines, "mode": None, "wrong": _without(key, last)[:LONGEST_SAID]}


def _environment(home: Path, key: str) -> dict[str, str]:
    """What that process needs of this one's environment, wandb's folders, and the key; no password and no other key."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in ENVIRONMENT}
    places = {name: str(home) for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    asked = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    return {**kept, **places, **asked, **({"WANDB_API_KEY": key} if key else {})}


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else (output or "")


def _without(key: str, text: str) -> str:
    return text.replace(key, "[key]") if key else text
