"""One window scored for a person to look at: its outcomes, its runs best first, and two of them side by side.

Nothing is written, but for what a judge answers, which is kept as always.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pandas as pd

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.errors import EmptyWindowError, ScoringError, SettingsError
from babylon_rl.outcomes.outcomes import COLUMNS as OUTCOME_COLUMNS
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.window import UsableTrajectory
from babylon_rl.scoring.compare_runs import Comparison, best_and_worst, compare
from babylon_rl.scoring.scorers import scorer_of
from babylon_rl.scoring.seam import Scorer
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import Settings
from babylon_rl.windows import parse_window_id

Row = Mapping[str, Any]

# Of a row of `scored_trajectories`: what is the same for the whole window, or for the machine alone.
LEFT_OUT = ("window_id", "scorer", "scorer_version", "scorer_settings", "window_revision", "outcome_revision")


class ScoredWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window under a scorer. `runs`: rows of `scored_trajectories` best first; `outcomes`: of `market_outcomes`.

    `outcomes_stored`: whether they are the materialized ones or were computed for this look. `compared` is None where
    there are not two runs with a valid reward.
    """

    window_id: str
    scorer: str
    scorer_version: str
    scorer_settings: Mapping[str, Any]
    outcomes_stored: bool
    outcomes: Sequence[Row]
    runs: Sequence[Row]
    compared: Comparison | None


def inspect_window(
    database: Database, window_id: str, settings: Settings, scorer: str, asked: tuple[str, str] | None = None
) -> ScoredWindow:
    """Score the window and compare its best run with its worst, or the two of `asked` (ids of runs or of agents).

    WindowIdError, EmptyWindowError where it holds no usable run, SettingsError for an unknown scorer or one that is
    not set up and for a run that is not in the window, ScoringError where scoring fails.
    """
    parse_window_id(window_id)
    made = scorer_of(scorer, settings, database)
    outcomes, stored = _outcomes(database, window_id)
    scored = score_windows(database, [window_id], outcomes, scorer, settings=settings)
    if scored.failed:
        error = scored.failed[window_id]
        raise ScoringError(f"{window_id} cannot be scored: {error.detail}")
    rows = _records(scored.frame)
    if not rows:
        raise EmptyWindowError(_why_empty(database, window_id))
    told = _records(outcomes)
    pair = best_and_worst(rows) if asked is None else (_run(rows, asked[0]), _run(rows, asked[1]))
    return _window(window_id, made, stored, told, rows, None if pair is None else _compare(database, pair, told))


def _window(
    window_id: str, scorer: Scorer, stored: bool, outcomes: list[Row], rows: list[Row], compared: Comparison | None
) -> ScoredWindow:
    return ScoredWindow(
        window_id=window_id,
        scorer=scorer.name,
        scorer_version=scorer.version,
        scorer_settings=scorer.settings,
        outcomes_stored=stored,
        outcomes=[{name: row.get(name) for name in OUTCOME_COLUMNS} for row in outcomes],
        runs=[{name: value for name, value in row.items() if name not in LEFT_OUT} for row in rows],
        compared=compared,
    )


def _outcomes(database: Database, window_id: str) -> tuple[pd.DataFrame, bool]:
    """The materialized outcomes, else those that the application's tables tell now; whether they are materialized."""
    with database.connect() as connection:
        stored = read_frame(connection, current_rows(market_outcomes, [window_id]))
    return (stored, True) if len(stored) else (outcome_windows(database, [window_id]).frame, False)


def _records(frame: pd.DataFrame) -> list[Row]:
    """Rows as dictionaries; pandas says NaN for what is missing in a column of texts or numbers."""
    return [
        {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _run(rows: Sequence[Row], asked: str) -> Row:
    """The run of that id, or the best ranked one of the agent."""
    for name in ("trajectory_id", "agent_id"):
        found = [row for row in rows if row[name] == asked]
        if found:
            return min(found, key=lambda row: row["rank"])
    agents = ", ".join(dict.fromkeys(str(row["agent_id"]) for row in rows))
    raise SettingsError(f"No run and no agent of {rows[0]['window_id']} is called {asked!r}. Its agents are {agents}.")


def _compare(database: Database, pair: tuple[Row, Row], outcomes: list[Row]) -> Comparison:
    """Side by side, with texts: scoring let them go."""
    wanted = {row["trajectory_id"] for row in pair}
    with database.recordings() as recordings:
        window_id = pair[0]["window_id"]
        stream = RangeReader(recordings, [window_id]).stream(window_id)
        found = {run.trajectory_id: run for run in stream if run.trajectory_id in wanted}
    runs = [found.get(row["trajectory_id"]) for row in pair]
    for row, run in zip(pair, runs, strict=True):
        if not isinstance(run, UsableTrajectory):
            raise ScoringError(f"The run {row['trajectory_id']} changed while it was looked at. Run the command again.")
    return compare(pair, (runs[0], runs[1]), outcomes)  # type: ignore[arg-type]


def _why_empty(database: Database, window_id: str) -> str:
    with database.recordings() as recordings:
        found = RangeReader(recordings, [window_id]).brief(window_id)
    if not found.recorded:
        return (
            f"Nothing is recorded in {window_id}. `babylon-rl windows --live` lists the windows in which something is; "
            "`babylon-rl play` records a simulated one."
        )
    reasons = Counter(row.reason for row in found.rejected).most_common()
    told = ", ".join(f"{reason} {count}" for reason, count in reasons)
    return (
        f"None of the {found.recorded} rows recorded in {window_id} can be scored: {told}. `babylon-rl verify` and "
        "docs/verify.md say what each reason means and what mends it."
    )
