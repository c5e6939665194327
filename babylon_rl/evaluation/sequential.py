"""Evidence that holds however often it is looked at: a confidence sequence on the mean of an experiment's blocks.

Pure functions over block means (`blocks`). The sequence is the mixture t-test made one-sided:

    M = sqrt(c2 / (n + c2)) * ((n + c2) V / ((n + c2) V - S^2))^(n/2),   S = sum(x - mu),  V = sum((x - mu)^2)

is, for normal observations of mean mu and any unknown deviation, a non-negative martingale of the scale-invariant data
that starts at 1: the likelihood ratio of effects drawn from N(0, 1/c2) deviations, sigma integrated over 1/sigma (Lai
1976; Wang and Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance", arXiv:2310.03722). M is the mean of its two halves, effects above and effects below mu; where S > 0 the lower
half is at most 1, so 2 M - 1 is at most the upper half, and by Ville's inequality P(ever 2 M - 1 >= 1/alpha with S > 0)
<= alpha. With many observations the bound becomes the asymptotic one-sided normal mixture of Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics
2024, arXiv:2103.06476), which needs neither normal nor independent observations; with few it is wider, as Student's t.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from babylon_rl.errors import RecordingError, SettingsError

# Below so many observations nothing is concluded: no variance of skewed figures can be told from fewer.
LEAST_BLOCKS = 10
# Neighbouring blocks that resemble each other more than this count as if they did so much.
MOST_AUTOCORRELATION = 0.9


class Look(msgspec.Struct, frozen=True):
    """What the blocks so far tell. `effect`: candidate less baseline, in the metric's unit; None before there is one.

    `low` lies below the true mean in all looks but with probability alpha, `high` above it but with probability
    alpha_harm; None where the blocks do not bound it yet.
    """

    blocks: int
    effect: float | None
    low: float | None
    high: float | None
    promote: bool
    harm: bool

    def __str__(self) -> str:
        if self.effect is None or self.low is None or self.high is None:
            return f"nothing can be said yet ({self.blocks} blocks)"
        return f"{self.effect:+.4g} [{self.low:+.4g}, {self.high:+.4g}] over {self.blocks} blocks"


class Bounds(NamedTuple):
    """A confidence sequence: arrays shaped as the observations, an entry for each prefix; infinite where unbounded."""

    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray


def look(differences: Sequence[float] | np.ndarray, alpha: float, alpha_harm: float, horizon_blocks: int) -> Look:
    """What the block means so far tell; may be asked at any time, as often as wanted.

    `alpha`: probability that a candidate without an effect is ever promoted; `alpha_harm`: that one is ever stopped for
    harm. `horizon_blocks`: where the sequence is to be narrowest; it holds before and after. The same blocks give the
    same look, whatever was looked at before. RecordingError where a figure is not finite.
    """
    values = np.asarray(differences, dtype=float)
    if not np.isfinite(values).all():
        raise RecordingError("A block's mean is not a finite number. Find the window's recording and reject it.")
    if len(values) == 0:
        return Look(0, None, None, None, promote=False, harm=False)
    found = bounds(values, alpha, alpha_harm, horizon_blocks)
    effect, low, high = (float(each[-1]) for each in found)
    return Look(
        len(values),
        effect,
        low if math.isfinite(low) else None,
        high if math.isfinite(high) else None,
        promote=low > 0,
        harm=high < 0,
    )


def deflated_alpha(alpha: float, tried: int) -> float:
    """Alpha of the `tried`-th candidate (from 1) against one baseline: alpha * 6 / (pi^2 tried^2).

    They sum to alpha over any number of candidates, so that by the union bound all experiments against a baseline
    together promote one without an effect with probability alpha at most, whatever the candidates have in common and
    whenever one stops trying (alpha spending: Foster and Stine 2008, "Alpha-investing", JRSS B 70, section 2).
    """
    if tried < 1:
        raise SettingsError(f"Candidates are counted from 1, this one as {tried}.")
    return alpha * 6 / (math.pi * tried) ** 2


def bounds(values: np.ndarray, alpha: float, alpha_harm: float, horizon_blocks: float) -> Bounds:
    """The sequence at every prefix of the last axis: many experiments at once, for simulations; `look` is its end.

    A bound goes outward for autocorrelation (`_inflation`) and for a tail on its side (`_for_skewness`), never inward.
    """
    for name, one in (("alpha", alpha), ("alpha of harm", alpha_harm)):
        if not 0 < one < 0.5:
            raise SettingsError(f"The {name} is {one}; it lies above 0 and below 0.5.")
    if horizon_blocks < 1:
        raise SettingsError(f"The horizon is {horizon_blocks} blocks; it is one block or more.")
    count = np.arange(1.0, values.shape[-1] + 1)
    mean, square, cube, neighbours = _moments(values)
    inflation = _inflation(square, neighbours, count)
    alike = square <= 0  # all equal so far: nothing is known of their noise
    deviation = np.sqrt(square / np.maximum(count - inflation, 1))
    skewness = np.sqrt(count) * cube / np.where(alike, 1.0, square) ** 1.5
    unknown = alike | (count < LEAST_BLOCKS)
    sides = []
    for one, tail in ((alpha, -skewness), (alpha_harm, skewness)):
        wide = margin(count / inflation, one, horizon_blocks)
        unbounded = unknown | np.isinf(wide)
        wide = _for_skewness(np.where(unbounded, 0.0, wide), tail, count / inflation)
        sides.append(np.where(unbounded, np.inf, deviation * wide))
    return Bounds(mean, mean - sides[0], mean + sides[1])


def margin(count: np.ndarray, alpha: float, horizon_blocks: float) -> np.ndarray:
    """One-sided distance of the bound from the mean, in deviations of an observation; infinite where there are too few.

    The formula at the head of this file, solved for mu. c2 is tuned so that the bound is narrowest at the horizon
    (Waudby-Smith et al., appendix on tuning, at 2 alpha for one side).
    """
    wanted = -2 * math.log(2 * alpha)
    c2 = horizon_blocks / (wanted + math.log1p(wanted))
    exponent = (2 / count) * (math.log((1 + 1 / alpha) / 2) + 0.5 * np.log1p(count / c2))
    share = -np.expm1(-exponent) * (1 + c2 / count)
    bounded = (share < 1) & (count > 1)
    squared = np.clip(1 - 1 / count, 0, None) * share / np.where(bounded, 1 - share, 1)
    return np.where(bounded, np.sqrt(squared), np.inf)


def _inflation(square: np.ndarray, neighbours: np.ndarray, count: np.ndarray) -> np.ndarray:
    """By how much autocorrelation inflates the mean's variance: so many blocks tell as much as one independent one.

    (1 + r) / (1 - r), that of an autoregression of the first order, never below 1; r is the correlation of neighbours,
    corrected for its bias of -(1 + 3 r) / n (Kendall 1954, Biometrika 41).
    """
    correlation = neighbours / np.where(square > 0, square, 1.0)
    corrected = np.clip((count * correlation + 1) / np.maximum(count - 3, 1), 0.0, MOST_AUTOCORRELATION)
    return (1 + corrected) / (1 - corrected)


def _for_skewness(wide: np.ndarray, tail: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The distance with Johnson's correction for a tail on the bound's side (`tail` > 0), never a shorter one.

    Few blocks of a candidate that earns a little and seldom loses much look better than they are: their mean and their
    deviation are correlated (Johnson 1978, "Modified t tests and confidence intervals for asymmetrical populations",
    JASA 73).
    """
    return wide + np.maximum(tail, 0.0) * (wide**2 / 3 + 1 / (6 * count))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every prefix: mean, sums of squares and of cubes about it, and of products of neighbours about it."""
    # Sums about the first value lose no digits where the mean is far from zero.
    start = values[..., :1]
    own = values - start
    count = np.arange(1.0, values.shape[-1] + 1)
    total, squares = np.cumsum(own, axis=-1), np.cumsum(own**2, axis=-1)
    mean = total / count
    square = np.maximum(squares - count * mean**2, 0.0)
    cube = np.cumsum(own**3, axis=-1) - 3 * mean * squares + 2 * count * mean**3
    products = np.zeros_like(own)
    products[..., 1:] = own[..., 1:] * own[..., :-1]
    # The first value is 0 here, so that the sum over all but the first is the total, over all but the last less `own`.
    neighbours = np.cumsum(products, axis=-1) - mean * (2 * total - own) + (count - 1) * mean**2
    return mean + start, square, cube, neighbours
