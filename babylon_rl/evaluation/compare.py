"""From recorded evaluations to comparisons: a figure a window, the choice of a candidate, the rows that are stored.

Frames are those of `recording.reader.read_evaluation`: a row per window, arm and agent with `pnl` in dollars.
"""

import re
from collections.abc import Sequence

import pandas as pd

from babylon_rl.errors import EmptyWindowError
from babylon_rl.evaluation.gates import Decision
from babylon_rl.evaluation.paired import Effect, mean_interval

DESIGN = "paired-by-window"
PROMOTE, KEEP, INFO = "promote", "keep", "info"

COLUMNS = (
    "window_id",
    "candidate",
    "baseline",
    "split",
    "design",
    "windows",
    "effect",
    "low",
    "high",
    "candidate_pnl",
    "baseline_pnl",
    "decision",
    "reason",
)


def window_pnl(evaluation: pd.DataFrame, arm: str) -> pd.Series:
    """Mean P&L of an arm, dollars an agent, by window id; EmptyWindowError where the arm has no row."""
    own = evaluation[evaluation["arm"] == arm]
    if own.empty:
        raise EmptyWindowError(f"Nothing is recorded for {arm!r} in the evaluation. Evaluate it on the same windows.")
    return own.groupby("window_id")["pnl"].mean().astype(float).sort_index()


def choose_candidate(validation: pd.DataFrame, candidates: Sequence[str] | None = None) -> tuple[str, pd.DataFrame]:
    """The arm with the best mean P&L over the windows that all candidates played, and a table of all of them.

    `candidates`: arms in the order of their steps, by default all arms of the frame in the natural order of their names
    (`demo@2` before `demo@10`). A tie goes to the earlier. The table has arm, windows, pnl, low, high, valid (share of
    valid actions). EmptyWindowError where they share fewer than two windows.
    """
    names = list(candidates) if candidates is not None else sorted(set(validation["arm"]), key=_natural)
    if not names:
        raise EmptyWindowError("There is no checkpoint to choose from. Train at least one and evaluate it.")
    figures = {name: window_pnl(validation, name) for name in names}
    shared = sorted(set.intersection(*(set(series.index) for series in figures.values())))
    rows = []
    for name in names:
        mean, low, high = mean_interval(figures[name].reindex(shared))
        own = validation[(validation["arm"] == name) & validation["window_id"].isin(shared)]
        valid = float(own["valid"].astype(float).mean())
        rows.append({"arm": name, "windows": len(shared), "pnl": mean, "low": low, "high": high, "valid": valid})
    table = pd.DataFrame(rows)
    # idxmax takes the first of equals, and the rows stand in the order of the steps.
    return str(table.loc[table["pnl"].idxmax(), "arm"]), table


def comparison_rows(
    decision: Decision, *, window_id: str, candidate: str, start: str, split: str = "test"
) -> pd.DataFrame:
    """A decision as rows of `checkpoint_evaluations`, one a baseline, filed under the evaluation's last window.

    The comparisons that decided carry the decision, the others `info`. On another split than `test` nothing is decided.
    """
    verdict = (PROMOTE if decision.promote else KEEP) if split == "test" else INFO
    rows = [_row(decision.over_start, window_id, candidate, start, split, verdict, decision.reason)]
    for name, effect in decision.comparisons.items():
        decisive = name == decision.best_fixed
        reason = decision.reason if decisive else f"{candidate} over {name}: {effect}"
        rows.append(_row(effect, window_id, candidate, name, split, verdict if decisive else INFO, reason))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def info_row(effect: Effect, *, window_id: str, candidate: str, baseline: str, split: str) -> pd.DataFrame:
    """A comparison that decides nothing (validation, unseen news) as a row of `checkpoint_evaluations`."""
    reason = f"{candidate} over {baseline} on {split} windows: {effect}"
    return pd.DataFrame([_row(effect, window_id, candidate, baseline, split, INFO, reason)], columns=list(COLUMNS))


def _row(effect: Effect, window_id: str, candidate: str, baseline: str, split: str, decision: str, reason: str) -> dict:
    return {
        "window_id": window_id,
        "candidate": candidate,
        "baseline": baseline,
        "split": split,
        "design": DESIGN,
        "windows": effect.windows,
        "effect": effect.effect,
        "low": effect.low,
        "high": effect.high,
        "candidate_pnl": effect.candidate_mean,
        "baseline_pnl": effect.baseline_mean,
        "decision": decision,
        "reason": reason,
    }


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that reads digits as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
