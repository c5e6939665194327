"""How noisy an experiment's observations will be: measured on past windows as if it had run in them, or assumed."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from babylon_rl.errors import EmptyWindowError, SettingsError
from babylon_rl.evaluation.blocks import LEAST_SHARE_OF_BLOCK
from babylon_rl.serving.routing import Design

DRAWS = 50
LEAST_WINDOWS = 8
# Observations' worth of past hours below which their noise is told from that of hours.
_LEAST_OBSERVATIONS = 4
_PARTS = 8


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What of an experiment decides its power. `alpha`: of the whole family; `tried`: this candidate's number in it."""

    design: Design
    block_hours: int
    share: float = 0.5
    burn_in: int = 1
    alpha: float = 0.05
    tried: int = 1

    @property
    def hours_an_observation(self) -> int:
        """Hours that one observation takes: a block, or two neighbouring ones."""
        return self.block_hours * (2 if self.design == "switchback" else 1)

    @property
    def skipped(self) -> int:
        """Hours at a block's start that do not count. SettingsError where that is all of them."""
        skipped = self.burn_in if self.design == "switchback" else 0
        if skipped >= self.block_hours:
            raise SettingsError(
                f"A burn-in of {skipped} hours leaves nothing of blocks of {self.block_hours} hours; "
                "set BABYLON_RL_EXPERIMENT_BURN_IN below BABYLON_RL_EXPERIMENT_BLOCK_HOURS."
            )
        return skipped


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What figures vary by without an effect. Deviations in the metric's unit.

    `hour`: of an hour's difference of the arms (`paired-by-window`) or of its level over all agents (`switchback`);
    `observation`: of one observation, a block's mean or the difference of two neighbouring ones; `autocorrelation`: of
    neighbouring observations; `kept`: share of observations that have hours enough; `windows`: past windows it was
    measured on, 0 where it was assumed.
    """

    hour: float
    observation: float
    autocorrelation: float = 0.0
    kept: float = 1.0
    windows: int = 0


def measure_noise(past: Sequence[Sequence[float] | np.ndarray], plan: Plan, seed: int = 0) -> Noise:
    """Noise of an experiment with the agents of these windows. EmptyWindowError for fewer than 8 of them with agents.

    `past`: the metric by hour and agent, hours in order, an empty one for a window that is missing. For
    `paired-by-window` the arms are drawn in each window as the experiment draws them, many times over: what lasts in an
    agent (its persona, its capital) is noise there too, as arms are drawn anew.
    The deviation of an observation is taken from all stretches of its length, and one standard error above its
    estimate, which comes from the spread over an eighth of the past each: a horizon that is too short finds nothing.
    """
    hours = [np.asarray(each, dtype=float) for each in past]
    there = [each[np.isfinite(each)] for each in hours]
    played = sum(len(each) > 0 for each in there)
    if played < LEAST_WINDOWS:
        raise EmptyWindowError(
            f"There are {played} past windows to measure noise on; a forecast needs at least {LEAST_WINDOWS}. Play or "
            "record more windows first."
        )
    if plan.design == "switchback":
        series = np.array([[each.mean() if len(each) else np.nan for each in there]])
    else:
        generator = np.random.default_rng(seed)
        series = np.stack([_drawn_differences(each, plan.share, generator) for each in there], axis=1)
    if not np.nanstd(series) > 0:
        raise EmptyWindowError("The past windows show no noise at all: the metric is the same for all of them.")
    return _of_series(series, plan, played)


def assumed_noise(plan: Plan, *, agent: float, agents: int, market: float = 0.0, autocorrelation: float = 0.0) -> Noise:
    """Noise where there is no past: of so many agents a window, arms together, whose own figures have this deviation.

    An hour's difference has the deviation agent / sqrt(agents * share * (1 - share)), and an hour's level
    sqrt(market^2 + agent^2 / agents), with `market` the deviation of what all agents of an hour share.
    `autocorrelation`: of neighbouring hours' differences or levels, a first-order autoregression.
    """
    if plan.design == "switchback":
        return of_hours(math.hypot(market, agent / math.sqrt(agents)), autocorrelation, 0.0, plan)
    missing = plan.share**agents + (1 - plan.share) ** agents
    return of_hours(agent / math.sqrt(agents * plan.share * (1 - plan.share)), autocorrelation, missing, plan)


def of_hours(hour: float, autocorrelation: float, missing: float, plan: Plan, windows: int = 0) -> Noise:
    """Noise of observations whose hours are a first-order autoregression, a share of them missing."""
    places = np.arange(plan.block_hours - plan.skipped)
    apart = np.subtract.outer(places, places)
    of_a_mean = (autocorrelation ** np.abs(apart)).mean()
    # A missing hour takes from a block what independent hours would.
    of_a_mean += missing / (1 - missing) / len(places)
    neighbours = (autocorrelation ** np.abs(apart + plan.block_hours)).mean()
    switching = plan.design == "switchback"
    return Noise(
        hour=float(hour),
        observation=float(hour * math.sqrt(2 * (of_a_mean - neighbours) if switching else of_a_mean)),
        # Which block of a pair is the candidate's is drawn, so that neighbouring pairs are not correlated.
        autocorrelation=0.0 if switching else float(neighbours / of_a_mean),
        kept=_kept(missing, len(places)) ** (2 if switching else 1),
        windows=windows,
    )


def _of_series(series: np.ndarray, plan: Plan, windows: int) -> Noise:
    hour = float(np.nanstd(series))
    # Of the windows that were played: a pause of the recording says nothing of an experiment's hours.
    played = np.isfinite(series).any(axis=0)
    missing = min(float(np.isnan(series[:, played]).mean()), 0.9)
    if series.shape[1] < _LEAST_OBSERVATIONS * plan.hours_an_observation:
        found = of_hours(hour, _correlation(series, 1), missing, plan, windows)
        return msgspec.structs.replace(found, observation=found.observation * (1 + 1 / math.sqrt(2 * windows)))
    means = _sliding_means(series, plan.block_hours, plan.skipped)
    if plan.design == "switchback":
        means = means[:, : -plan.block_hours] - means[:, plan.block_hours :]
    else:
        means = means - np.nanmean(means)
    squares = means**2
    parts = [np.nanmean(part) for part in np.array_split(squares, _PARTS, axis=1) if np.isfinite(part).any()]
    error = np.std(parts, ddof=1) / math.sqrt(len(parts)) if len(parts) > 1 else 0.0
    return Noise(
        hour=hour,
        observation=float(np.sqrt(np.nanmean(squares) + error)),
        autocorrelation=0.0 if plan.design == "switchback" else _correlation(means, plan.block_hours),
        kept=_kept(missing, plan.block_hours - plan.skipped) ** (2 if plan.design == "switchback" else 1),
        windows=windows,
    )


def _sliding_means(series: np.ndarray, block_hours: int, skipped: int) -> np.ndarray:
    """Mean of the block that starts at each hour, without what is skipped; NaN where too few of its hours are there."""
    windows = np.lib.stride_tricks.sliding_window_view(series, block_hours, axis=1)[..., skipped:]
    count = np.isfinite(windows).sum(axis=-1)
    enough = count >= max(1.0, LEAST_SHARE_OF_BLOCK * windows.shape[-1])
    return np.where(enough, np.nansum(windows, axis=-1) / np.maximum(count, 1), np.nan)


def _drawn_differences(agents: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Differences of arms drawn in one window, one a draw; NaN where an arm is empty."""
    ours = generator.random((DRAWS, len(agents))) < share
    count = ours.sum(axis=1)
    both = (count > 0) & (count < len(agents))
    total = (ours * agents).sum(axis=1)
    difference = total / np.maximum(count, 1) - (agents.sum() - total) / np.maximum(len(agents) - count, 1)
    return np.where(both, difference, np.nan)


def _correlation(series: np.ndarray, apart: int) -> float:
    """Correlation of figures so far apart, over all rows; from 0 to 0.95."""
    centred = series - np.nanmean(series)
    pairs = centred[:, apart:] * centred[:, :-apart]
    return float(np.clip(np.nanmean(pairs) / np.nanmean(centred**2), 0.0, 0.95)) if np.isfinite(pairs).any() else 0.0


def _kept(missing: float, hours: int) -> float:
    """Share of blocks of which so many hours are there that they count."""
    least = math.ceil(max(1.0, LEAST_SHARE_OF_BLOCK * hours))
    there = range(least, hours + 1)
    return max(sum(math.comb(hours, n) * (1 - missing) ** n * missing ** (hours - n) for n in there), 0.01)
