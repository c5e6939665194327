"""Paired comparisons: two arms that played the same windows, compared window by window.

The window is the unit: agents of one window share its market, so they are averaged before anything is compared.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pandas as pd

from babylon_rl.errors import EmptyWindowError, RecordingError
from babylon_rl.scoring.intervals import student_t

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Values drawn at once, so that memory stays bounded however many windows there are.
_BLOCK = 4_000_000


class Effect(msgspec.Struct, frozen=True):
    """Mean difference of two arms over `windows` windows, with its 95 % interval; unit of the arms (dollars)."""

    windows: int
    effect: float
    low: float
    high: float
    candidate_mean: float
    baseline_mean: float

    @property
    def above_zero(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.effect:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_effect(candidate: pd.Series, baseline: pd.Series, seed: int) -> Effect:
    """Effect of the candidate over the baseline; series of a figure a window, indexed by window id, in any order.

    Only windows that both arms played count. EmptyWindowError for fewer than two of them.
    """
    for name, arm in (("candidate", candidate), ("baseline", baseline)):
        if arm.index.has_duplicates:
            raise RecordingError(f"The {name} has a window twice; average its agents a window first (window_pnl).")
    shared = sorted(set(candidate.index) & set(baseline.index))
    ours, theirs = (arm.reindex(shared).to_numpy(float) for arm in (candidate, baseline))
    differences = ours - theirs
    low, high = _interval(differences, seed, "to compare the arms in")
    return Effect(len(shared), float(differences.mean()), low, high, float(ours.mean()), float(theirs.mean()))


def mean_interval(values: Sequence[float] | pd.Series, seed: int = 0) -> tuple[float, float, float]:
    """Mean of one figure a window and its 95 % interval (mean, low, high); EmptyWindowError for fewer than two."""
    array = np.asarray(values, dtype=float)
    low, high = _interval(array, seed, "to average")
    return float(array.mean()), low, high


def _interval(values: np.ndarray, seed: int, purpose: str) -> tuple[float, float]:
    """95 % interval of the mean: percentile bootstrap, widened to Student's t where that is wider.

    The bootstrap follows the skew of the figures but is too narrow for few windows, where t is right.
    """
    if len(values) < 2:
        raise EmptyWindowError(
            f"There are {len(values)} windows {purpose}; an interval needs at least 2. Play more evaluation windows."
        )
    if not np.isfinite(values).all():
        raise RecordingError("A window's P&L is not a finite number. Find the evaluation's recording and reject it.")
    means = np.concatenate(list(_resampled_means(values, seed)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, (tail, 100 - tail))
    half = student_t(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(min(low, values.mean() - half)), float(max(high, values.mean() + half))


def _resampled_means(values: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    # The resamples depend on the order of the values, so that must not depend on the order of the rows.
    values = np.sort(values)
    left, rows = RESAMPLES, max(1, _BLOCK // len(values))
    while left > 0:
        drawn = generator.integers(0, len(values), size=(min(rows, left), len(values)))
        yield values[drawn].mean(axis=1)
        left -= len(drawn)
