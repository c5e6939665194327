"""Rounds of play and update without a model: planted answers, and a trainer that learns nothing."""

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups, scored_trajectories, trained_checkpoints
from babylon_rl.evaluation.schedule import make_schedule
from babylon_rl.groups.build import build_group
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.scoring.scorers import score_window
from babylon_rl.settings import Settings
from babylon_rl.training.due import DueUpdate, due_updates
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, list_checkpoints, start_run
from babylon_rl.training.trainer import WEIGHTS_FILE, TrainerRequest, TrainerResult, weights_digest
from babylon_rl.training.updates import update_checkpoints
from babylon_rl.windows import parse_window_id, shift_window, window_range
from babylon_rl_tests.scoring import made

SIZE = 2
MIXED = ("BUY", "SELL", "HOLD", "SELL", "BUY", "HOLD", "BUY", "SELL")
ONE_SIDED = ("SELL",) * 8
ALL_HOLD = ("HOLD",) * 8
STEP = {"loss": 0.1, "entropy": 1.0, "ratio": 1.0, "grad_norm": 0.5, "clipped": 0.0}


def trained(request: TrainerRequest) -> TrainerResult:
    """The trainer's place: weights that are told apart, and nothing learned."""
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_text(request.checkpoint_id)
    return TrainerResult(folder=request.folder, weights_sha256=weights_digest(folder), metrics=STEP, steps=[STEP])


class Rounds:
    """A run of rounds of `SIZE` windows; `trained`: the requests that the trainer got."""

    def __init__(self, database: Database, folder: Path, rounds: int = 8, later: int = 4) -> None:
        (folder / "config.json").write_text("{}")
        self.database = database
        self.settings = Settings().model_copy(update={"home": folder})
        self.trained: list[TrainerRequest] = []
        schedule = make_schedule(made.WINDOW, 8, rounds * SIZE, later, later, later)
        self.run = TrainingRun(
            training_run="run",
            base_model=str(folder),
            seed=0,
            recipe=Recipe(windows_per_update=SIZE, minibatches=1, exploration=0.1),
            schedule=msgspec.to_builtins(schedule),
            first_window=made.WINDOW,
            last_window=schedule.last,
            state="running",
        )
        with database.connect() as connection:
            start_run(connection, self.run)

    def windows(self, number: int) -> list[str]:
        """Windows of a round; rounds count from 1."""
        return [shift_window(made.WINDOW, (number - 1) * SIZE + i) for i in range(SIZE)]

    def play(self, number: int, verbs: tuple[str, ...], checkpoint: str, exploration: float = 0.1) -> None:
        """Plant a round's answers, the same in each window, as scored trajectories and groups."""
        plant(self.database, self.windows(number), verbs, [checkpoint] * len(verbs), exploration)

    def update(self, number: int) -> dict:
        """Row of `trained_checkpoints` of the round's last window, written as the asset writes it."""
        frame = update_checkpoints(self.database, self.settings, self.windows(number), self._launch).frame
        with self.database.connect() as connection:
            replace_windows(connection, trained_checkpoints, self.windows(number), frame)
        return frame.iloc[-1].to_dict()

    def _launch(self, request: TrainerRequest) -> TrainerResult:
        self.trained.append(request)
        return trained(request)


def plant(
    database: Database,
    window_ids: Sequence[str],
    verbs: Sequence[str],
    checkpoints: Sequence[str],
    exploration: float = 0.1,
    scale: float = 1.0,
    texts: Collection[int] = (),
    **choices,
) -> None:
    """Plant answers, the same in each window, as scored trajectories and groups; who gave each is in `checkpoints`.

    `scale`: of the P&L, so that the same answers make another group. `texts`: places of answers whose tokens are not
    recorded. `choices`: those of `build_group`.
    """
    scored, groups = [], []
    for window_id in window_ids:
        window = made.recorded(
            *(
                made.trajectory(
                    name := f"{window_id}-{place}",
                    verb,
                    0.0 if verb == "HOLD" else scale * (0.5 + place * (-1) ** place),
                    window_id=window_id,
                    calls=[]
                    if place in texts
                    else [
                        msgspec.structs.replace(made.call(name, verb, checkpoint=checkpoint), exploration=exploration)
                    ],
                    provenance="no_logprobs" if place in texts else "logged",
                )
                for place, (verb, checkpoint) in enumerate(zip(verbs, checkpoints, strict=True))
            ),
            window_id=window_id,
        )
        scored.append(score_window(window, made.outcomes(window_id)))
        groups.append(build_group({"status": "ready", "reason": ""}, window, scored[-1], **choices))
    with database.connect() as connection:
        replace_windows(connection, scored_trajectories, window_ids, pd.concat(scored))
        replace_windows(connection, art_groups, window_ids, pd.DataFrame(groups, dtype=object))


class OpenRun:
    """A run without an end whose updates take `SIZE` groups; `trained`: the requests that the trainer got."""

    def __init__(self, database: Database, folder: Path, name: str = "run", first: int = 0, **recipe) -> None:
        (folder / "config.json").write_text("{}")
        self.database = database
        self.settings = Settings().model_copy(update={"home": folder})
        self.trained: list[TrainerRequest] = []
        self.run = TrainingRun(
            training_run=name,
            base_model=str(folder),
            seed=0,
            recipe=Recipe(**{"windows_per_update": SIZE, "minibatches": 1, "stale_limit": 8} | recipe),
            schedule={},
            first_window=window(first),
            last_window=None,
            state="running",
        )
        with database.connect() as connection:
            start_run(connection, self.run)

    def play(
        self,
        *places: int,
        verbs: Sequence[str] = MIXED,
        checkpoint: str = "run@0",
        scale: float = 1.0,
        texts: Collection[int] = (),
    ) -> None:
        """Plant the answers of the windows at these places."""
        windows = [window(p) for p in sorted(places)]
        plant(self.database, windows, verbs, [checkpoint] * len(verbs), scale=scale, texts=texts)

    def compute(self, first: str, last: str) -> list[dict]:
        """Rows of `trained_checkpoints` from first to last, written as the asset writes them."""
        windows = list(window_range(first, last))
        frame = update_checkpoints(self.database, self.settings, windows, self.launch).frame
        with self.database.connect() as connection:
            replace_windows(connection, trained_checkpoints, windows, frame)
        return frame.to_dict("records")

    def launch(self, request: TrainerRequest) -> TrainerResult:
        self.trained.append(request)
        return trained(request)

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The run's checkpoints after the start, by id."""
        with self.database.connect() as connection:
            return {c.checkpoint_id: c for c in list_checkpoints(connection, self.run.training_run) if c.step}

    def batches(self) -> dict[str, list[str]]:
        """Windows that each checkpoint's snapshot holds, by checkpoint."""
        with self.database.connect() as connection:
            return {
                name: list(load_snapshot(connection, checkpoint.snapshot_id or "").window_ids)
                for name, checkpoint in self.checkpoints().items()
            }


def window(place: int) -> str:
    """The window at a place, counted from the first."""
    return shift_window(made.WINDOW, place)


PARTITIONS_START = "2024-01-01T00:00"


def due(opened: OpenRun, now: int = 100, start: str = PARTITIONS_START) -> tuple[list[DueUpdate], list[str]]:
    """What is due in the hour at place `now`, which is not over."""
    with opened.database.connect() as connection:
        return due_updates(connection, parse_window_id(window(now)), start)


def make_due_updates(opened: OpenRun, now: int = 100) -> int:
    """Do what the sensor requests until nothing is due; how many requests there were."""
    count = 0
    while updates := due(opened, now)[0]:
        opened.compute(updates[0].first, updates[0].last)
        count += 1
        assert count < 20
    return count
