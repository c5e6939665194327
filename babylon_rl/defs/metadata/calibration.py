"""What a person sees of a window's judge: the verdict, the means with their intervals, and how they came about."""

from collections.abc import Mapping, Sequence
from typing import Any

from babylon_rl.defs.metadata.data import NO_ROW
from babylon_rl.defs.metadata.plots import curves, intervals
from babylon_rl.defs.metadata.stages import this_window
from babylon_rl.defs.metadata.tables import Rows, cell, figures, table
from babylon_rl.scoring.calibration import WindowFigures

MEANS = (
    ("agreement with alpha", "agreement", "agreement"),
    ("with itself", "repeat", "repeat"),
    ("with place in prompt", "order_bias", "order"),
    ("with length of text", "length_bias", "length"),
)
OWN = ("question", "runs", "agreement", "repeat", "order", "length", "length_given_outcome", "noise")


def calibration_metadata(
    courses: Mapping[str, Sequence[WindowFigures]], window_id: str, rows: Rows
) -> Mapping[str, Any]:
    """Verdict and reason; of a judged window the means over `courses`, its own figures, and agreement by window."""
    if not rows:
        return dict(NO_ROW)
    row = rows[0]
    found: dict[str, Any] = {"status": row["verdict"], "reason": row["reason"]}
    if row["judge"] is None:
        return {**found, **this_window("judge_calibration", window_id)}
    own, course = row["statistics"], courses.get(window_id, ())
    asked = [{"question": question, **own[question]} for question in ("hindsight", "process")]
    drawn = [
        (name, row[column], row[f"{part}_low"], row[f"{part}_high"])
        for name, column, part in MEANS
        if row[f"{part}_low"] is not None
    ]
    return {
        **found,
        "judge": cell(row["judge"]),
        "question that is the reward": own["reward"],
        "rank correlation, 95 % interval": intervals("rank correlation of the judge with 95 % interval", drawn),
        "agreement with alpha by window": curves("agreement by window", {"agreement": _agreements(course)}),
        "this window": table(asked, OWN),
        **figures({name: row[column] for name, column, _ in MEANS}),
        **figures({"noise": row["noise"], "judged runs": row["runs"], "windows pooled": row["windows"]}),
        **figures({"agreement in this window": own[own["reward"]]["agreement"]}),
        **this_window("judge_calibration", window_id),
    }


def _agreements(course: Sequence[WindowFigures]) -> list[float]:
    """The agreement of each window in which it is known, of the question that gives the last one's reward."""
    found = [one.of(course[-1].reward).agreement for one in course]
    return [value for value in found if value is not None]
