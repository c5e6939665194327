"""What each seed of a recipe came to: as a record, as read from the database of its demo, and as kept in a file."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psycopg

from babylon_rl.errors import RecordingError, SettingsError, TrainingError
from babylon_rl.evaluation.paired import mean_interval
from babylon_rl.evaluation.promotion import evidence_of
from babylon_rl.evaluation.schedule import schedule_of
from babylon_rl.market.policies import INFORMED_POLICY
from babylon_rl.reporting.progress import (
    candidate_interval,
    evaluation_rows,
    policy_pnl,
    rounds,
    validation_curve,
)
from babylon_rl.training.runs import TrainingRun, base_checkpoint, list_checkpoints

MOST_SEEDS = 1000


class Estimate(msgspec.Struct, frozen=True):
    """A mean with its 95 % interval, dollars an agent and window."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Point(msgspec.Struct, frozen=True):
    """P&L after so many updates, dollars an agent and window."""

    updates: int
    pnl: float
    low: float
    high: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished demo showed. P&L on its test windows, dollars an agent and window.

    `updates`: those that were made; `candidate`: the checkpoint that was judged. `fixed`: P&L of the policies without a
    model, `informed` of the one that always follows the news. `training`: while playing to train.
    """

    promoted: bool
    updates: int
    candidate: str
    over_start: Estimate
    over_best_fixed: Estimate
    best_fixed: str
    pnl: Estimate
    informed: float
    fixed: dict[str, float]
    unseen: Estimate | None
    training: list[Point]
    validation: list[Point]

    @property
    def share(self) -> float | None:
        """The candidate's P&L as a share of the informed trader's; None where that one earns nothing."""
        return self.pnl.mean / self.informed if self.informed > 0 else None

    @property
    def unseen_above_zero(self) -> bool | None:
        """Whether the interval on unseen news lies above zero; None where none was played."""
        return None if self.unseen is None else self.unseen.low > 0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed took so far, over all its attempts. `whole`: nothing of its demo was done outside the bench."""

    seconds: float = 0.0
    peak_bytes: int = 0
    whole: bool = True

    def and_then(self, seconds: float, peak_bytes: int) -> "Spent":
        """With another attempt, or more of this one."""
        return Spent(seconds=self.seconds + seconds, peak_bytes=max(self.peak_bytes, peak_bytes), whole=self.whole)


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One seed: its evidence, or the error that its demo ended with."""

    seed: int
    spent: Spent
    evidence: Evidence | None = None
    error: str | None = None

    @property
    def improved(self) -> bool:
        """Whether its candidate was promoted; a seed that failed did not improve."""
        return self.evidence is not None and self.evidence.promoted


class Results(msgspec.Struct, kw_only=True):
    """The results of one plan of one base model by seed, and what seeds took that are not finished."""

    base_model: str
    plan_digest: str
    finished: dict[int, SeedResult] = {}
    begun: dict[int, Spent] = {}


def parse_seeds(text: str) -> list[int]:
    """Seeds of a text such as `11-20` or `1,5,7-9`, each once, in the order given. SettingsError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        numbers = (first, last) if dash else (first,)
        if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
            raise SettingsError(f"{text!r} are not seeds. Write them as 11-20, or 1,5,7, or both: 1,5,11-20.")
        if int(numbers[0]) > int(numbers[-1]):
            raise SettingsError(f"{part.strip()!r} names no seed: it ends before it begins. Write {last}-{first}.")
        if int(numbers[-1]) - int(numbers[0]) + len(seeds) >= MOST_SEEDS:
            raise SettingsError(f"{text!r} are more than {MOST_SEEDS} seeds, a demo each. Name fewer.")
        seeds += range(int(numbers[0]), int(numbers[-1]) + 1)
    return list(dict.fromkeys(seeds))


def over_seeds(figures: Sequence[float]) -> Estimate | None:
    """Mean of a figure a seed, with its interval over seeds; None for fewer than two."""
    return Estimate(*mean_interval(figures)) if len(figures) > 1 else None


# --- from the database -----------------------------------------------------------------------------


def read_evidence(connection: psycopg.Connection, run: TrainingRun) -> Evidence:
    """What a finished demo showed. TrainingError where its evaluation is not there."""
    schedule, start = schedule_of(run), base_checkpoint(run.training_run)
    rows = evaluation_rows(connection, schedule) if schedule else None
    found = evidence_of(rows, start) if rows is not None else None
    if schedule is None or rows is None or found is None:
        raise TrainingError(f"{run.training_run} is not evaluated yet; run its demo to the end.")
    policies = policy_pnl(rows, start)
    candidate, best, unseen = found["candidate"], found["over_best_fixed"], found["unseen"]
    validated = validation_curve(connection, run).to_dict("records")
    return Evidence(
        promoted=found["decision"] == "promote",
        updates=max(c.step for c in list_checkpoints(connection, run.training_run)),
        candidate=candidate,
        over_start=Estimate(found["effect"], *found["interval"]),
        over_best_fixed=Estimate(best["effect"], *best["interval"]),
        best_fixed=best["policy"],
        pnl=Estimate(found["candidate_pnl"], *candidate_interval(connection, schedule, candidate)),
        informed=policies.pop(INFORMED_POLICY),
        fixed=policies,
        unseen=Estimate(unseen["effect"], *unseen["interval"]) if unseen else None,
        training=[Point(r.number - 1, r.pnl, r.low, r.high) for r in rounds(connection, run)],
        validation=[Point(int(v["step"]), float(v["pnl"]), float(v["low"]), float(v["high"])) for v in validated],
    )


# --- the file --------------------------------------------------------------------------------------


def load_results(path: Path, base_model: str, plan_digest: str) -> Results:
    """The results kept in the file, empty where there is none. BabylonError where it is damaged or another model's."""
    if not path.exists():
        return Results(base_model=base_model, plan_digest=plan_digest)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as error:
        raise RecordingError(f"{path} cannot be read ({error}). Move it away, or take another --out.") from None
    if (found.base_model, found.plan_digest) != (base_model, plan_digest):
        raise SettingsError(f"{path} holds results of {found.base_model}. Name another folder by --out.")
    return found


def save_results(path: Path, results: Results) -> None:
    """Write the file whole or not at all."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(results), indent=1))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
