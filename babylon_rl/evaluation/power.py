"""What an experiment can find in which time: power of the very sequence that decides it, by simulation with a seed."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from babylon_rl.errors import SettingsError
from babylon_rl.evaluation.noise import Noise, Plan
from babylon_rl.evaluation.sequential import LEAST_BLOCKS, bounds, deflated_alpha
from babylon_rl.serving.routing import Design

POWER = 0.8
PATHS = 2_000
MOST_HOURS = 26 * 168
DAY, WEEK, FOUR_WEEKS = 24, 168, 672
# Standard errors that the simulated power must lie above the wanted one by, so that it is reached and not nearly so.
_SURE = 2.0
_CHUNK = 250
_HARM = 0.05  # any will do: only the lower bound is used here


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment can find. Effects in the metric's unit, mean candidate less baseline an hour.

    `hours`: the horizon at which a true `effect` is promoted with 80 % power, None where it would be over half a year
    or no effect was asked; `horizon_blocks`: the same in observations; `half_of_them`: hours by which half of such
    experiments have ended; `plain_hours`: what one two-sided 5 % z-test at the end needs, without a look before, for
    orientation. `detectable`: by hours of horizon, the effect with 80 % power; None where there are too few blocks.
    `curve`: hours and the power until then.
    """

    design: Design
    block_hours: int
    noise: Noise
    alpha: float
    effect: float | None
    hours: int | None
    horizon_blocks: int | None
    half_of_them: int | None
    plain_hours: int | None
    detectable: dict[int, float | None]
    curve: list[tuple[int, float]]

    def __str__(self) -> str:
        measured = f"measured on {self.noise.windows} windows" if self.noise.windows else "assumed"
        lines = [
            f"{self.design}, blocks of {self.block_hours} h, alpha {self.alpha:.4f}; an hour varies by "
            f"{self.noise.hour:.4g}, an observation by {self.noise.observation:.4g} (autocorrelation "
            f"{self.noise.autocorrelation:.2f}, {measured})"
        ]
        if self.effect is not None and self.hours is None:
            lines.append(f"an effect of {self.effect:+.4g} is not found in {MOST_HOURS} h with {POWER:.0%} power")
        elif self.effect is not None:
            lines.append(
                f"an effect of {self.effect:+.4g} is found within {self.hours} h ({self.hours / DAY:.1f} days) with "
                f"{POWER:.0%} power, in half of all cases within {self.half_of_them} h; a plain test would take "
                f"{self.plain_hours} h"
            )
        for hours, effect in self.detectable.items():
            found = "nothing: too few blocks" if effect is None else f"{effect:+.4g} or more"
            lines.append(f"in {hours} h: {found}")
        return "\n".join(lines)


def forecast(noise: Noise, plan: Plan, effect: float | None = None, seed: int = 0, paths: int = PATHS) -> Forecast:
    """Hours that a true effect needs for 80 % power, and what is found in a day, a week and four weeks.

    A second or two. The paths are normal observations with the noise's autocorrelation; the sequence is that of `look`,
    tuned for each horizon. SettingsError for an effect that is not above zero.
    """
    if effect is not None and not effect > 0:
        raise SettingsError(f"The effect to be found is {effect}; it is above zero.")
    alpha, simulated = deflated_alpha(plan.alpha, plan.tried), _Simulated(noise, plan, seed, paths)
    blocks = None if effect is None else simulated.blocks_for(effect)
    horizon = {} if blocks is None else {"hours": simulated.hours(blocks), "horizon_blocks": blocks}
    curve = [] if effect is None or blocks is None else simulated.curve(effect, blocks)
    return Forecast(
        design=plan.design,
        block_hours=plan.block_hours,
        noise=noise,
        alpha=alpha,
        effect=effect,
        hours=horizon.get("hours"),
        horizon_blocks=horizon.get("horizon_blocks"),
        half_of_them=next((hours for hours, power in curve if power >= 0.5), None),
        plain_hours=None if effect is None else plain_hours(noise, plan, effect),
        detectable={hours: simulated.detectable(simulated.blocks(hours)) for hours in (DAY, WEEK, FOUR_WEEKS)},
        curve=curve,
    )


def power_at(noise: Noise, plan: Plan, effect: float, hours: int, seed: int = 0, paths: int = PATHS) -> float:
    """Power for the effect, of an experiment with a horizon of so many hours."""
    simulated = _Simulated(noise, plan, seed, paths)
    blocks = simulated.blocks(hours)
    return 0.0 if blocks < LEAST_BLOCKS else float((simulated.needed(blocks)[:, -1] < effect).mean())


def plain_hours(noise: Noise, plan: Plan, effect: float) -> int:
    """Hours that one two-sided 5 % z-test at the end needs for 80 % power, its observations taken as independent."""
    needed = ((1.959964 + 0.841621) * noise.observation / effect) ** 2
    return math.ceil(needed * plan.hours_an_observation / noise.kept)


def plot_power(forecasts: Sequence[Forecast], path: Path) -> None:
    """Write a picture of power against hours, a line for each forecast that found its horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for each in forecasts:
        if each.curve:
            axes.plot(*zip(*each.curve, strict=True), label=f"{each.design}, effect {each.effect:+.4g}")
    axes.axhline(POWER, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="hours since the start", ylabel="share of experiments that promoted", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=120)


class _Simulated:
    """Paths without an effect. The bounds move with the mean: what effect a path needs tells its power for any."""

    def __init__(self, noise: Noise, plan: Plan, seed: int, paths: int) -> None:
        self.alpha = deflated_alpha(plan.alpha, plan.tried)
        most = MOST_HOURS // plan.hours_an_observation
        if most < LEAST_BLOCKS:
            raise SettingsError(f"In {MOST_HOURS} hours there are {most} observations of so long blocks; shorten them.")
        self.paths = _normal_observations(noise, most, paths, np.random.default_rng(seed))
        self.wanted = POWER + _SURE * math.sqrt(POWER * (1 - POWER) / paths)
        self.hours_each = plan.hours_an_observation / noise.kept

    def hours(self, blocks: int) -> int:
        """Hours that so many observations take, those that are left out for missing hours included."""
        return math.ceil(blocks * self.hours_each)

    def blocks(self, hours: int) -> int:
        return min(int(hours / self.hours_each), self.paths.shape[1])

    def needed(self, blocks: int) -> np.ndarray:
        """The effect that each path needs to be promoted until each block, with this horizon; paths by blocks."""
        parts = [self.paths[start : start + _CHUNK, :blocks] for start in range(0, len(self.paths), _CHUNK)]
        lows = [np.maximum.accumulate(bounds(part, self.alpha, _HARM, blocks).low, axis=1) for part in parts]
        return -np.concatenate(lows)

    def detectable(self, blocks: int) -> float | None:
        """The effect with 80 % power."""
        if blocks < LEAST_BLOCKS:
            return None
        found = float(np.quantile(self.needed(blocks)[:, -1], self.wanted))
        return found if math.isfinite(found) else None

    def blocks_for(self, effect: float) -> int | None:
        """The least horizon with 80 % power for the effect."""
        few, many, most = LEAST_BLOCKS - 1, LEAST_BLOCKS, self.blocks(MOST_HOURS)
        # Doubled until it suffices, then halved in between: short horizons cost little to simulate.
        while not self._found(effect, min(many, most)):
            if many >= most:
                return None
            few, many = many, 2 * many
        many = min(many, most)
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if self._found(effect, middle) else (middle, many)
        return many

    def curve(self, effect: float, blocks: int) -> list[tuple[int, float]]:
        power = (self.needed(blocks) < effect).mean(axis=0)
        return [(self.hours(number), float(each)) for number, each in enumerate(power, 1)]

    def _found(self, effect: float, blocks: int) -> bool:
        detectable = self.detectable(blocks)
        return detectable is not None and detectable <= effect


def _normal_observations(noise: Noise, most: int, paths: int, generator: np.random.Generator) -> np.ndarray:
    """Observations without an effect, paths by observations: a first-order autoregression."""
    found = generator.standard_normal((paths, most))
    fresh = math.sqrt(1 - noise.autocorrelation**2)
    for number in range(1, most if noise.autocorrelation > 0 else 0):
        found[:, number] = noise.autocorrelation * found[:, number - 1] + fresh * found[:, number]
    return noise.observation * found
