"""Scores of a range of windows: each row is read, seen and let go, so that memory does not grow with a window."""

import functools
from collections.abc import Iterator, Sequence

import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.kept import KeptFrames
from babylon_rl.database.window_rows import WindowError, WindowRows, each_window, waiting_for
from babylon_rl.recording.parallel import by_parts
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.window import Rejected, UsableTrajectory, revision_of_digests
from babylon_rl.scoring.scorers import COLUMNS, WindowScoring, scorer_of
from babylon_rl.settings import Settings, get_settings


def score_windows(
    database: Database,
    window_ids: Sequence[str],
    outcomes: pd.DataFrame,
    scorer: str,
    *,
    workers: int = 1,
    settings: Settings | None = None,
) -> WindowRows:
    """Rows of `scored_trajectories`; `outcomes` are those of all the windows, `settings` the scorer's."""
    settings = settings or get_settings()
    # A scorer that asks a judge has one budget and one limit of requests, so one process.
    workers = 1 if scorer_of(scorer, settings, database).reads_texts else workers
    made, failed = KeptFrames(COLUMNS), {}
    score = functools.partial(_score, database, outcomes, scorer, settings)
    for own, errors in by_parts(score, window_ids, workers):
        made.take(own)
        failed |= errors
    return WindowRows(made, tuple(window_ids), failed)


def _score(
    database: Database, outcomes: pd.DataFrame, name: str, settings: Settings, window_ids: Sequence[str]
) -> tuple[KeptFrames, dict[str, WindowError]]:
    made, scorer = KeptFrames(COLUMNS), scorer_of(name, settings, database)
    by_window = dict(iter(outcomes.groupby("window_id"))) if len(outcomes) else {}
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, ("windows", "market_outcomes"), window_ids)
        reader = RangeReader(recordings, window_ids)

        def score(window_id: str) -> None:
            digests: list[str] = []
            usable = _usable(reader.stream(window_id, texts=scorer.reads_texts), digests)
            scoring = WindowScoring(window_id, by_window.get(window_id, outcomes.iloc[:0]), scorer)
            made.add(scoring.scores(usable, lambda: revision_of_digests(digests)))

        _, failed = each_window(window_ids, score, waiting)
    return made, failed


def _usable(rows: Iterator[UsableTrajectory | Rejected], digests: list[str]) -> Iterator[UsableTrajectory]:
    """The usable ones; what the window's revision covers goes to `digests`."""
    for row in rows:
        if row.digest:
            digests.append(row.digest)
        if isinstance(row, UsableTrajectory):
            yield row
