"""Running a recipe over seeds: each seed's demo in a process of its own, as a user starts it, and what it takes.

An interrupted bench keeps what is finished and what each seed took so far; the same call goes on.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from babylon_rl.bench.results import (
    Evidence,
    Results,
    SeedResult,
    Spent,
    load_results,
    read_evidence,
    save_results,
)
from babylon_rl.database.connect import Database
from babylon_rl.database.urls import without_password
from babylon_rl.errors import BabylonError, SettingsError, TrainingError
from babylon_rl.plans import demo_name, plan_behind
from babylon_rl.plans import plan_digest as digest_of
from babylon_rl.training.runs import TrainingRun, load_run

SAMPLE_SECONDS = 2.0
SAVE_SECONDS = 30.0
PATIENCE_SECONDS = 30.0
MESSAGE_CHARACTERS = 400

# Books seconds and the peak of memory since the last call.
Spend = Callable[[float, int], None]


class Demos(Protocol):
    """Where seeds' demos are run; one for tests need not run any."""

    def untouched(self, seed: int) -> bool:
        """Whether nothing of the seed's demo has been done."""
        ...

    def run(self, seed: int, spend: Spend) -> Evidence:
        """Run the seed's demo to its end. BabylonError where it fails."""
        ...


def bench_learning(
    path: Path,
    base_model: str,
    plan_digest: str,
    seeds: Sequence[int],
    demos: Demos,
    finished: Callable[[Results, SeedResult], None],
) -> Results:
    """Run the seeds whose evidence the file does not hold yet; `finished` is called for each seed, run or kept.

    A seed that fails is kept with its error, and run again by the next call; the others go on.
    """
    results = load_results(path, base_model, plan_digest)
    for seed in seeds:
        kept = results.finished.get(seed)
        if kept is None or kept.evidence is None:
            kept = _run_seed(path, results, seed, demos)
        finished(results, kept)
    return results


def _run_seed(path: Path, results: Results, seed: int, demos: Demos) -> SeedResult:
    failed = results.finished.pop(seed, None)
    before = failed.spent if failed else results.begun.get(seed)
    results.begun[seed] = before or Spent(whole=demos.untouched(seed))
    save_results(path, results)

    def spend(seconds: float, peak_bytes: int) -> None:
        results.begun[seed] = results.begun[seed].and_then(seconds, peak_bytes)
        save_results(path, results)

    evidence, error = None, None
    try:
        evidence = demos.run(seed, spend)
    except BabylonError as failure:
        error = str(failure)
    result = SeedResult(seed=seed, spent=results.begun.pop(seed), evidence=evidence, error=error)
    results.finished[seed] = result
    save_results(path, results)
    return result


@contextlib.contextmanager
def only_bench(folder: Path) -> Iterator[int]:
    """Keep other benches out of the folder; the lock's descriptor, which the demos inherit.

    A demo that outlives a killed bench so holds it too: two processes must not play the same seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"Another bench, or a demo that one has left, still writes to {folder}. Wait until it has ended, "
                "or name another folder by --out and another database."
            ) from None
        yield lock.fileno()


class DemoProcesses:
    """Each seed's demo as a process, its output in a log of its own beside the results."""

    def __init__(
        self,
        database: Database,
        base_model: str,
        plan_digest: str,
        logs: Path,
        lock: int,
        stage: Callable[[int, str], None],
    ) -> None:
        """`stage` is told the seed and the last line of its log, every few seconds."""
        self.database, self.base_model, self.plan_digest = database, base_model, plan_digest
        self.logs, self.lock, self.stage = logs, lock, stage

    def log(self, seed: int) -> Path:
        """Where the output of the seed's demo goes."""
        return self.logs / f"{demo_name(self.base_model, seed)}-{self.plan_digest[:8]}.log"

    def untouched(self, seed: int) -> bool:
        return self._run_of(seed) is None

    def run(self, seed: int, spend: Spend) -> Evidence:
        self._refuse_other_plan(seed)
        log = self.log(seed)
        with open(log, "ab") as output:
            begin = output.tell()
            process = subprocess.Popen(
                self._command(seed),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
                # Ctrl-C in the terminal reaches the bench, which hands it on once.
                start_new_session=True,
            )
        code = watch(process, spend, lambda: self.stage(seed, last_line(log, begin)))
        if code != 0:
            raise TrainingError(f"{failure_in(log, begin, code)} Its output is in {log.name}.")
        self._refuse_other_plan(seed)
        run = self._run_of(seed)
        assert run is not None
        with self.database.connect() as connection:
            return read_evidence(connection, run)

    def _command(self, seed: int) -> list[str]:
        command = [sys.executable, "-m", "babylon_rl.cli", "demo", "--model", self.base_model, "--seed", str(seed)]
        return command if self.database.embedded else [*command, "--database", without_password(self.database.url)[0]]

    def _environment(self) -> dict[str, str]:
        # Libraries' warnings would stand where the stage is looked for.
        values = {"PYTHONWARNINGS": "ignore", **os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        password = None if self.database.embedded else without_password(self.database.url)[1]
        # libpq takes it from there; a command line can be read by every user of the machine.
        return values if password is None else {**values, "PGPASSWORD": password}

    def _run_of(self, seed: int) -> TrainingRun | None:
        with self.database.connect() as connection:
            return load_run(connection, demo_name(self.base_model, seed))

    def _refuse_other_plan(self, seed: int) -> None:
        run = self._run_of(seed)
        plan = plan_behind(run) if run else None
        if run is not None and (plan is None or digest_of(plan) != self.plan_digest):
            raise SettingsError(
                f"The database holds {run.training_run} with another plan than today's. Set BABYLON_RL_HOME to a new "
                "folder, which has a database of its own, or name other seeds."
            )


def watch(process: subprocess.Popen, spend: Spend, look: Callable[[], None]) -> int:
    """Wait for the process and book what its tree takes; its exit code. Ends it where this process is interrupted."""
    began, peak = time.monotonic(), 0
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(SAMPLE_SECONDS)
            peak = max(peak, tree_bytes(process.pid))
            look()
            if time.monotonic() - began >= SAVE_SECONDS:
                spend(time.monotonic() - began, peak)
                began, peak = time.monotonic(), 0
    finally:
        end(process)
        spend(time.monotonic() - began, peak)


def tree_bytes(pid: int) -> int:
    """Memory of a process and its descendants now, shared pages counted once where the system tells their share."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                told = process.memory_full_info()
                total += getattr(told, "pss", 0) or getattr(told, "uss", 0) or told.rss
    return total


def end(process: subprocess.Popen) -> None:
    """Interrupt the process, which keeps what it has finished; if it does not end, end its whole tree."""
    if process.poll() is not None:
        return
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(PATIENCE_SECONDS)
    if process.poll() is not None:
        return
    process.terminate()
    for child in tree:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    process.wait(PATIENCE_SECONDS)


def last_line(log: Path, begin: int) -> str:
    """The last line with text that was written to the log from `begin` on."""
    lines = [line.strip() for line in _text(log, begin).splitlines() if line.strip()]
    return lines[-1] if lines else "starting"


def failure_in(log: Path, begin: int, code: int) -> str:
    """What a demo said at its end: its own message, else its last line."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"The demo was ended by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}."
    text = _text(log, begin)
    said = text.rpartition("babylon-rl: ")[2].strip() if "babylon-rl: " in text else last_line(log, begin)
    return " ".join(said.split())[:MESSAGE_CHARACTERS]


def _text(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - 8192))
        return file.read().decode(errors="replace")
