"""Simulated experiments: hours of agents under both designs, without an effect or with a planted one.

What real hours have that a textbook's have not is in the settings: neighbours that resemble each other, seldom large
gains or losses, spells of wild hours, arms of unequal noise, few and changing agents, missing windows.
"""

from typing import Literal

import msgspec
import numpy as np

from babylon_rl.evaluation.blocks import block_means, switchback_differences
from babylon_rl.serving.routing import Design

Tails = Literal["normal", "fat", "losses", "spells"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of experiment. Noise is in deviations of an agent's hour.

    `autocorrelation`: of neighbouring hours' differences (`paired-by-window`) or levels (`switchback`). `tails`: of an
    agent's hour: normal; fat, Student's t with 3 degrees of freedom; losses, a lognormal turned around, many small
    gains and seldom a large loss; spells, normal with a deviation that wanders. `candidate_noise`: deviation of the
    candidate's agents over the baseline's. `agents`: most agents of a window, each of which is there nine times in ten.
    `missing`: share of windows that are lost. `market`: deviation of what all agents of an hour share.
    """

    design: Design = "paired-by-window"
    share: float = 0.5
    autocorrelation: float = 0.0
    tails: Tails = "normal"
    candidate_noise: float = 1.0
    agents: int = 8
    missing: float = 0.02
    market: float = 1.0
    block_hours: int = 6
    burn_in: int = 1
    hours: int = 672

    @property
    def horizon_blocks(self) -> int:
        return self.hours // (self.block_hours * (2 if self.design == "switchback" else 1))


def simulated_observations(
    setting: Setting, paths: int, generator: np.random.Generator, effect: float = 0.0
) -> np.ndarray:
    """Observations of so many experiments, paths by blocks; a path with fewer of them ends in NaN.

    They pass through `block_means` and `switchback_differences`. `effect`: of the candidate, in an agent's deviations.
    """
    hours, ours = simulated_hours(setting, paths, generator, effect)
    found = np.full((paths, setting.horizon_blocks), np.nan)
    for path in range(paths):
        if setting.design == "switchback":
            row = switchback_differences(hours[path], ours[path], setting.block_hours, setting.burn_in)
        else:
            row = block_means(hours[path], setting.block_hours)
        found[path, : len(row)] = row
    return found


def simulated_hours(
    setting: Setting, paths: int, generator: np.random.Generator, effect: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Figures by path and hour, NaN where there is none, and whether the candidate answered then (`switchback`)."""
    shape = (paths, setting.hours)
    own, there = simulated_agents(setting, shape, generator)
    lost = generator.random(shape) < setting.missing
    if setting.design == "switchback":
        ours = _drawn_blocks(setting, paths, generator)
        noise = _mean(own, there) * np.where(ours, setting.candidate_noise, 1.0)
        levels = setting.market * _autoregression(generator.standard_normal(shape), setting.autocorrelation) + noise
        return np.where(lost, np.nan, levels + effect * ours), ours
    drawn = generator.random(own.shape, dtype=np.float32) < setting.share
    differences = setting.candidate_noise * _mean(own, there & drawn) - _mean(own, there & ~drawn)
    gone = lost | np.isnan(differences)
    # An hour that is not seen happens nevertheless, with the noise of the others on average none.
    noise = _autoregression(np.nan_to_num(differences), setting.autocorrelation)
    return np.where(gone, np.nan, noise + effect), np.zeros(shape, dtype=bool)


def simulated_past(setting: Setting, hours: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Hours before an experiment as they are recorded: the figures of the agents that were there, one array an hour."""
    own, there = simulated_agents(setting, (1, hours), generator)
    there &= generator.random((1, hours, 1)) >= setting.missing
    rho = setting.autocorrelation if setting.design == "switchback" else 0.0
    market = setting.market * _autoregression(generator.standard_normal((1, hours)), rho)
    return [market[0, hour] + own[0, hour, there[0, hour]] for hour in range(hours)]


def simulated_agents(
    setting: Setting, shape: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each agent's own part of each hour, of mean 0 and deviation 1, and whether it was there."""
    full = (*shape, setting.agents)
    there = generator.random(full, dtype=np.float32) < 0.9
    match setting.tails:
        case "normal":
            own = generator.standard_normal(full, dtype=np.float32)
        case "fat":
            own = generator.standard_normal(full, dtype=np.float32)
            # A chi-square of 3 degrees of freedom is twice a gamma of 3/2; the variance of this t is 3.
            own /= np.sqrt(2 * generator.standard_gamma(1.5, full, dtype=np.float32))
        case "losses":
            own = np.exp(0.5) - np.exp(generator.standard_normal(full, dtype=np.float32))
            own /= np.sqrt((np.e - 1) * np.e)
        case "spells":
            wild = np.exp(0.7 * _autoregression(generator.standard_normal(shape), 0.95) - 0.49)
            own = generator.standard_normal(full, dtype=np.float32) * wild[..., None]
    return own, there


def _mean(own: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the counted agents of each hour, NaN where there is none."""
    count = counted.sum(axis=-1)
    return np.where(count > 0, np.where(counted, own, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _drawn_blocks(setting: Setting, paths: int, generator: np.random.Generator) -> np.ndarray:
    """Whether the candidate answers, by path and hour: of two neighbouring blocks in one, which one is drawn."""
    block = np.arange(setting.hours) // setting.block_hours
    first = generator.random((paths, block[-1] // 2 + 1)) < 0.5
    return first[:, block // 2] == (block % 2 == 0)


def _autoregression(fresh: np.ndarray, rho: float) -> np.ndarray:
    """A first-order autoregression along the last axis with the deviation of what is fresh."""
    if rho == 0:
        return fresh
    found, scale = np.array(fresh, dtype=float), np.sqrt(1 - rho**2)
    for hour in range(1, fresh.shape[-1]):
        found[..., hour] = rho * found[..., hour - 1] + scale * found[..., hour]
    return found
