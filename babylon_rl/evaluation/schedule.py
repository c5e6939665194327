"""How a training run lays out its windows over time, and the comparisons that its evaluation windows come to.

Splits follow each other in time with an embargo between them: training, validation (a candidate is chosen), test (the
candidate is judged, once), unseen news. Results are filed under the last window of their split.
"""

from collections.abc import Sequence

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.kept import one_frame
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.evaluation.compare import COLUMNS, choose_candidate, comparison_rows, info_row, window_pnl
from babylon_rl.evaluation.gates import decide
from babylon_rl.evaluation.paired import paired_effect
from babylon_rl.market.policies import FIXED_POLICIES, INFORMED_POLICY
from babylon_rl.recording.reader import read_evaluation
from babylon_rl.training.alarm_log import standing_checkpoints
from babylon_rl.training.runs import TrainingRun, base_checkpoint, list_runs
from babylon_rl.windows import shift_window, window_range

EMBARGO = 1  # windows; nothing is held longer than the hour


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First and last window of each split, and the agents a window."""

    agents: int
    train: tuple[str, str]
    validation: tuple[str, str]
    test: tuple[str, str]
    unseen: tuple[str, str]

    def windows(self, split: str) -> list[str]:
        """Windows of a split, in order; a window's place is its index in the simulated market."""
        return list(window_range(*getattr(self, split)))

    @property
    def last(self) -> str:
        return self.unseen[1]


def make_schedule(first: str, agents: int, train: int, validation: int, test: int, unseen: int) -> Schedule:
    """Splits of the given numbers of windows, one after the other from `first` on."""
    splits, start = {}, first
    for name, windows in (("train", train), ("validation", validation), ("test", test), ("unseen", unseen)):
        last = shift_window(start, windows - 1)
        splits[name] = (start, last)
        start = shift_window(last, 1 + EMBARGO)
    return Schedule(agents=agents, **splits)


def schedule_of(run: TrainingRun) -> Schedule | None:
    """The run's schedule; None where it has none (it trains on a user's own windows)."""
    return msgspec.convert(run.schedule, Schedule) if "test" in run.schedule else None


def evaluate_windows(connection: psycopg.Connection, window_ids: Sequence[str]) -> WindowRows:
    """Rows of `checkpoint_evaluations` of the splits that end in one of the windows; none for other windows."""
    waiting = waiting_for(connection, ("trained_checkpoints",), window_ids)
    made, failed = each_window(sorted(window_ids), lambda window_id: _comparisons(connection, window_id), waiting)
    return WindowRows(one_frame([frame for frames in made for frame in frames], COLUMNS), tuple(window_ids), failed)


def _comparisons(connection: psycopg.Connection, window_id: str) -> list[pd.DataFrame]:
    # Not the run that trains on the window: one that was started later must not take away what an earlier one showed.
    for run in list_runs(connection):
        schedule = schedule_of(run)
        if schedule is None:
            continue
        if window_id == schedule.validation[1]:
            return _validation(connection, run, schedule)
        if window_id == schedule.test[1]:
            return _test(connection, run, schedule)
        if window_id == schedule.unseen[1]:
            return _unseen(connection, run, schedule)
    return []


def candidate_of(
    connection: psycopg.Connection, run: TrainingRun, schedule: Schedule
) -> tuple[str, pd.DataFrame] | None:
    """The checkpoint that earned most on the validation windows, and the table of all of them; None before that."""
    played = read_evaluation(connection, schedule.windows("validation"), "validation")
    steps = [c.checkpoint_id for c in standing_checkpoints(connection, run) if c.step > 0]
    candidates = [checkpoint for checkpoint in steps if checkpoint in set(played["arm"])]
    return choose_candidate(played, candidates) if candidates else None


def _validation(connection: psycopg.Connection, run: TrainingRun, schedule: Schedule) -> list[pd.DataFrame]:
    chosen = candidate_of(connection, run, schedule)
    played = read_evaluation(connection, schedule.windows("validation"), "validation")
    start = base_checkpoint(run.training_run)
    if chosen is None or start not in set(played["arm"]):
        return []
    return [
        _over_start(played, arm, start, run, schedule.validation[1], "validation") for arm in chosen[1]["arm"].tolist()
    ]


def _test(connection: psycopg.Connection, run: TrainingRun, schedule: Schedule) -> list[pd.DataFrame]:
    chosen = candidate_of(connection, run, schedule)
    played = read_evaluation(connection, schedule.windows("test"), "test")
    start = base_checkpoint(run.training_run)
    arms = set(played["arm"])
    fixed = [policy for policy in FIXED_POLICIES if policy in arms]
    if chosen is None or not {chosen[0], start} <= arms or not fixed:
        return []
    candidate = chosen[0]
    decision = decide(
        window_pnl(played, candidate),
        window_pnl(played, start),
        {policy: window_pnl(played, policy) for policy in fixed},
        run.seed,
    )
    frames = [comparison_rows(decision, window_id=schedule.test[1], candidate=candidate, start=start)]
    if INFORMED_POLICY in arms:  # the informed ceiling: shown, never a rival of the gate
        frames.append(_over_start(played, candidate, INFORMED_POLICY, run, schedule.test[1], "test"))
    return frames


def _unseen(connection: psycopg.Connection, run: TrainingRun, schedule: Schedule) -> list[pd.DataFrame]:
    chosen = candidate_of(connection, run, schedule)
    played = read_evaluation(connection, schedule.windows("unseen"), "unseen")
    start = base_checkpoint(run.training_run)
    if chosen is None or not {chosen[0], start} <= set(played["arm"]):
        return []
    return [_over_start(played, chosen[0], start, run, schedule.unseen[1], "unseen")]


def _over_start(
    played: pd.DataFrame, candidate: str, baseline: str, run: TrainingRun, window_id: str, split: str
) -> pd.DataFrame:
    effect = paired_effect(window_pnl(played, candidate), window_pnl(played, baseline), run.seed)
    return info_row(effect, window_id=window_id, candidate=candidate, baseline=baseline, split=split)
