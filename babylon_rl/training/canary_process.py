"""Canaries from stored weights, for checkpoints whose trainer computed none and for step 0: a process of its own.

`python -m babylon_rl.training.canary_process` reads a base model and an adapter and prints their canaries as JSON. It
knows no database; `ensure_canaries` starts it and stores what it printed, so that its caller imports no torch.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec
import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.errors import BabylonError, TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.canaries import Canaries, Likely, Precision, canary_logprobs, load_canaries, save_canaries
from babylon_rl.training.checkpoint_store import check_base, local_folder
from babylon_rl.training.runs import Checkpoint, TrainingRun, load_checkpoint, load_run, precision_of_run

SECONDS = 600  # that the process may take, reading the weights included


def ensure_canaries(
    database: Database, settings: Settings, checkpoint_id: str, precision: Precision | None = None
) -> Canaries | None:
    """The checkpoint's canaries, computed from its stored weights where there are none, and then stored.

    None where a service keeps the weights: nothing here can compute them. `precision`: of the model that is served;
    without it that of the run's recipe. TrainingError where base model or weights are missing or altered.
    """
    with database.connect() as connection:
        checkpoint = load_checkpoint(connection, checkpoint_id)
        run = _run_of(connection, checkpoint)
        precision = precision or precision_of_run(run)
        stored = load_canaries(connection, checkpoint_id, precision)
    if stored is not None or kept_by_a_service(checkpoint):
        return stored
    made = _computed(settings, run, checkpoint, precision)
    with database.connect() as connection:
        save_canaries(connection, made)
    return made


def kept_by_a_service(checkpoint: Checkpoint) -> bool:
    """Whether the weights are a service's, so that no log-probabilities can be computed here."""
    return checkpoint.path is None and checkpoint.step > 0


def _run_of(connection: psycopg.Connection, checkpoint: Checkpoint) -> TrainingRun:
    run = load_run(connection, checkpoint.training_run)
    if run is None:
        raise TrainingError(
            f"{checkpoint.checkpoint_id} names the run {checkpoint.training_run}, which is not in the database."
        )
    return run


def _computed(settings: Settings, run: TrainingRun, checkpoint: Checkpoint, precision: Precision) -> Canaries:
    base = prepare_base_model(run.base_model, settings.home, run.seed)
    check_base(checkpoint, base, settings.home)
    folder = local_folder(checkpoint, settings.home) if checkpoint.step > 0 else None
    return Canaries(
        checkpoint_id=checkpoint.checkpoint_id,
        precision=precision,
        prompts=_in_a_process(base, folder, precision, settings.device, settings.threads),
        made_by="afterwards",
        weights_sha256=checkpoint.weights_sha256,
    )


def _in_a_process(base: Path, adapter: Path | None, precision: Precision, device: str, threads: int) -> list[Likely]:
    command = [sys.executable, "-m", "babylon_rl.training.canary_process", "--base", str(base), "--device", device]
    command += ["--precision", precision, "--threads", str(threads), *(("--adapter", str(adapter)) if adapter else ())]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        raise TrainingError(
            f"The canaries of {adapter or base} were not computed within {SECONDS} s. Is the machine overloaded?"
        ) from None
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise TrainingError(f"The canaries of {adapter or base} could not be computed: {said[0]}")
    return msgspec.json.decode(ended.stdout.splitlines()[-1], type=list[Likely])


def main() -> None:
    """Entry point: the canaries on the last line of standard output."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl.training.canary_process", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter; the base model itself without it")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()

    from babylon_rl.training.policy import Policy, use_threads

    try:
        use_threads(options.threads)
        policy = Policy(options.base, options.device, None if options.precision == "float32" else options.precision)
        if options.adapter is not None:
            policy.add_adapter(options.adapter)
        found = canary_logprobs(policy, None if options.adapter is None else "default")
    except BabylonError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
