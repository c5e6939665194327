"""How noisy an experiment's hours will be: measured on past windows as if arms had been drawn in them."""

from collections.abc import Sequence

import msgspec
import numpy as np

from babylon_rl.errors import EmptyWindowError
from babylon_rl.serving.routing import Design

DRAWS = 50
LEAST_WINDOWS = 12


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What an hour's figure varies by without any effect. Unit of `hour`: the metric's.

    `hour`: standard deviation of an hour's difference of the arms (`paired-by-window`) or of its level over all agents
    (`switchback`); `autocorrelation`: of neighbouring hours; `missing`: share of hours without a figure; `windows`:
    past windows it was measured on, 0 where it was assumed.
    """

    hour: float
    autocorrelation: float = 0.0
    missing: float = 0.0
    windows: int = 0


def measure_noise(past: Sequence[Sequence[float]], design: Design, share: float, seed: int = 0) -> Noise:
    """Noise of an experiment with the agents of these windows. EmptyWindowError for fewer than 12 of them with agents.

    `past`: the metric by hour and agent, hours in order without a gap, an empty one for a window that is missing. For
    `paired-by-window` the arms are drawn in them as the experiment will draw them, many times over: what lasts in an
    agent (its persona, its capital) is noise there too, as arms are drawn anew each window.
    """
    hours = [np.asarray(each, dtype=float) for each in past]
    there = [each[np.isfinite(each)] for each in hours]
    played = sum(len(each) > 0 for each in there)
    if played < LEAST_WINDOWS:
        raise EmptyWindowError(
            f"There are {played} past windows to measure noise on; a forecast needs at least {LEAST_WINDOWS}. Play or "
            "record more windows first."
        )
    if design == "switchback":
        series = np.array([[each.mean() if len(each) else np.nan for each in there]])
    else:
        generator = np.random.default_rng(seed)
        series = np.stack([_drawn_differences(each, share, generator) for each in there], axis=1)
    deviation = float(np.sqrt(np.nanmean((series - np.nanmean(series)) ** 2))) if np.isfinite(series).any() else np.nan
    if not deviation > 0:
        raise EmptyWindowError("The past windows show no noise at all: the metric is the same for all of them.")
    return Noise(
        hour=deviation,
        autocorrelation=_autocorrelation(series),
        missing=float(np.isnan(series[:, [len(each) > 0 for each in there]]).mean()),
        windows=played,
    )


def assumed_noise(agent: float, agents: float, share: float, autocorrelation: float = 0.0) -> Noise:
    """Noise of an hour's difference of arms of so many agents in all, where an agent's figure has this deviation.

    `paired-by-window`: agent / sqrt(agents * share * (1 - share)); an hour is missing where either arm stays empty.
    """
    missing = share**agents + (1 - share) ** agents
    return Noise(
        hour=agent / np.sqrt(agents * share * (1 - share)), autocorrelation=autocorrelation, missing=float(missing)
    )


def _drawn_differences(agents: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Differences of arms drawn in one window, one a draw; NaN where an arm is empty."""
    ours = generator.random((DRAWS, len(agents))) < share
    count = ours.sum(axis=1)
    both = (count > 0) & (count < len(agents))
    total = (ours * agents).sum(axis=1)
    difference = total / np.maximum(count, 1) - (agents.sum() - total) / np.maximum(len(agents) - count, 1)
    return np.where(both, difference, np.nan)


def _autocorrelation(series: np.ndarray) -> float:
    """Correlation of neighbouring hours over all rows, corrected for its bias (Kendall 1954), from 0 to 0.95."""
    centred = series - np.nanmean(series)
    variance, pairs = np.nanmean(centred**2), centred[:, 1:] * centred[:, :-1]
    if not np.isfinite(pairs).any():
        return 0.0
    found, hours = float(np.nanmean(pairs) / variance), series.shape[1]
    return float(np.clip((hours * found + 1) / (hours - 3) if len(series) == 1 else found, 0.0, 0.95))
