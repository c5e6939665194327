"""Rows of `judge_calibration` for a range of windows: their own figures, pooled with those of earlier windows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import ScoringError
from babylon_rl.scoring.calibration import (
    MOST_POOLED,
    NO_JUDGE,
    Floors,
    WindowFigures,
    courses_of,
    pooled,
    verdict_of,
    window_figures,
)
from babylon_rl.settings import Settings

COLUMNS = (
    "window_id",
    "judge",
    "verdict",
    "reason",
    "runs",
    "windows",
    *("agreement", "agreement_low", "agreement_high"),
    *("repeat", "repeat_low", "repeat_high"),
    *("order_bias", "order_low", "order_high"),
    *("length_bias", "length_low", "length_high"),
    "noise",
    "statistics",
    "scores_digest",
)

# Of each judge the latest windows: as many as are pooled before the run, and those that the run left out.
_EARLIER = """
    SELECT window_id, statistics FROM (
        SELECT window_id, statistics, row_number() OVER (PARTITION BY judge ORDER BY window_id DESC) AS place
        FROM babylon_rl.judge_calibration
        WHERE superseded_at IS NULL AND judge = ANY(%(judges)s) AND window_id < %(last)s
            AND window_id <> ALL(%(computed)s)
    ) ranked WHERE place <= %(most)s ORDER BY window_id
"""


class Calibrated(NamedTuple):
    """Rows of the windows, and of each judged one the figures of the windows that its verdict rests on, by time."""

    rows: WindowRows
    courses: Mapping[str, Sequence[WindowFigures]]


def floors_of(settings: Settings) -> Floors:
    """The floors that a judge is held to."""
    return Floors(
        agreement=settings.judge_floor, repeat=settings.judge_repeat_floor, least_windows=settings.judge_least_windows
    )


def calibrate_windows(
    database: Database, window_ids: Sequence[str], scored: pd.DataFrame, floors: Floors
) -> Calibrated:
    """A row of `judge_calibration` for each window, also for one without scores or without a judge.

    `scored`: the rows of `scored_trajectories` of all the windows. The figures of earlier windows that are not computed
    here are those that stand in the table, so a window's row is the same whatever range it is computed in.
    """
    runs = scored["window_id"].value_counts().to_dict()
    digests = dict(zip(scored["window_id"], scored["digest"], strict=True)) if "digest" in scored else {}
    judged = scored[scored["judge"].notna()]
    by_window = dict(iter(judged.groupby("window_id"))) if len(judged) else {}

    def figures(window_id: str) -> tuple[str, WindowFigures | None]:
        return window_id, window_figures(by_window[window_id].to_dict("records")) if window_id in by_window else None

    with database.connect() as connection:
        waiting = waiting_for(connection, ("windows", "market_outcomes", "scored_trajectories"), window_ids)
        made, failed = each_window(window_ids, figures, waiting)
        own = dict(made)
        known = {w: one for w, one in own.items() if one is not None}
        earlier = _earlier(connection, known, list(own), most=MOST_POOLED + len(failed)) if known else {}
    courses = {w: course for w, course in courses_of(earlier | known).items() if w in known}
    rows = [
        _judged(window_id, courses[window_id], floors) if window_id in courses else _unjudged(window_id, runs)
        for window_id in own
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    frame["scores_digest"] = [digests.get(window_id) for window_id in own]
    return Calibrated(WindowRows(frame, tuple(window_ids), failed), courses)


def _earlier(
    connection: psycopg.Connection, known: Mapping[str, WindowFigures], computed: Sequence[str], most: int
) -> dict[str, WindowFigures]:
    """Figures of the windows before the last one that stand in the table and are not computed here."""
    judges = sorted({one.judge for one in known.values()})
    found = connection.execute(
        _EARLIER, {"judges": judges, "last": max(known), "computed": list(computed), "most": most}
    )
    return {window_id: _stored(window_id, statistics) for window_id, statistics in found}


def _stored(window_id: str, statistics: Any) -> WindowFigures:
    try:
        return msgspec.convert(statistics, WindowFigures)
    except msgspec.ValidationError as error:
        raise ScoringError(
            f"The figures of window {window_id} in judge_calibration cannot be read ({error}). Materialize "
            "judge_calibration of that window again."
        ) from None


def _judged(window_id: str, course: Sequence[WindowFigures], floors: Floors) -> dict[str, Any]:
    own, means = course[-1], pooled(course)
    verdict, reason = verdict_of(means, floors)
    named = {"agreement": means.agreement, "repeat": means.repeat, "order": means.order, "length": means.length}
    return {
        "window_id": window_id,
        "judge": own.judge,
        "verdict": verdict,
        "reason": reason,
        "runs": own.runs,
        "windows": means.agreement.windows,
        **{f"{name}_bias" if name in ("order", "length") else name: mean.value for name, mean in named.items()},
        **{f"{name}_low": mean.low for name, mean in named.items()},
        **{f"{name}_high": mean.high for name, mean in named.items()},
        "noise": means.noise,
        "statistics": msgspec.to_builtins(own),
    }


def _unjudged(window_id: str, runs: Mapping[str, int]) -> dict[str, Any]:
    scored = runs.get(window_id, 0)
    reason = f"no judge was asked about its {scored} scored runs" if scored else "no run of this window is scored"
    return {"window_id": window_id, "verdict": NO_JUDGE, "reason": reason, "runs": 0, "windows": 0}
