"""`babylon-rl bench experiments`: how often what decides experiments is wrong, and how often it finds what is there.

Experiments without an effect under the settings that could mislead it, each looked at after every block, which is all
that hourly looks see; a planted effect at the horizon that the forecast told; ten candidates in a row; broken shares.
Each is compared to a plain test that is looked at as often.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from babylon_rl.evaluation.noise import Plan, measure_noise, of_hours
from babylon_rl.evaluation.power import POWER, forecast
from babylon_rl.evaluation.sample_ratio import log_evidence
from babylon_rl.evaluation.sequential import LEAST_BLOCKS, bounds, deflated_alpha
from babylon_rl.evaluation.simulated import Setting, simulated_observations, simulated_past

ALPHA = 0.05
FAMILY = 10
PAST_HOURS = 672
PASTS = 10
POWER_SIMULATIONS = 2_000  # a share of 80 % is known within 1.8 points
RATIO_ALPHA = 0.01
_CHUNK = 500
_STREAM = 5_000
RARE = (20, 50, 100, 1_000)
_PLAIN_Z = 1.644854  # a one-sided 5 % test

Say = Callable[[str], None]

FOUR_WEEKS, EIGHT_WEEKS = 672, 1344
ALIKE: dict[str, Setting] = {
    "normal hours": Setting(),
    "one week": Setting(hours=168),
    "fat tails": Setting(tails="fat", autocorrelation=0.3),
    "half the hour before": Setting(autocorrelation=0.5),
    "0.8 of the hour before": Setting(autocorrelation=0.8),
    "0.8, one week": Setting(autocorrelation=0.8, hours=168),
    "0.8, fat, blocks of a day": Setting(autocorrelation=0.8, tails="fat", block_hours=24),
    "0.8, blocks of one hour": Setting(autocorrelation=0.8, block_hours=1, hours=336),
    "seldom large losses": Setting(tails="losses"),
    "a tenth of agents, fat": Setting(share=0.1, tails="fat"),
    "a tenth, losses": Setting(share=0.1, tails="losses"),
    "a tenth, losses, twice the noise": Setting(share=0.1, tails="losses", candidate_noise=2.0, autocorrelation=0.5),
    "a fifth, losses, one week of 3 h": Setting(
        share=0.2, tails="losses", candidate_noise=2.0, hours=168, block_hours=3
    ),
    "wild spells": Setting(share=0.3, tails="spells", autocorrelation=0.3),
    "two agents, a third missing": Setting(agents=2, missing=0.33, tails="fat"),
    "switchback": Setting(design="switchback", hours=EIGHT_WEEKS),
    "switchback, fat, 0.5": Setting(design="switchback", tails="fat", autocorrelation=0.5, hours=EIGHT_WEEKS),
    "switchback, 0.8": Setting(design="switchback", autocorrelation=0.8, hours=EIGHT_WEEKS),
    "switchback, losses, twice the noise": Setting(
        design="switchback", tails="losses", candidate_noise=2.0, market=0.1, agents=2, hours=EIGHT_WEEKS
    ),
}  # fmt: skip
# A setting and the planted effect, in deviations of an agent's hour.
PLANTED: dict[str, tuple[Setting, float]] = {
    "normal hours": (Setting(), 0.2),
    "small effect": (Setting(), 0.12),
    "fat tails": (Setting(tails="fat"), 0.4),
    "half the hour before": (Setting(autocorrelation=0.5), 0.2),
    "a fifth of agents": (Setting(share=0.2), 0.3),
    "switchback": (Setting(design="switchback"), 0.3),
    "switchback, 0.5": (Setting(design="switchback", autocorrelation=0.5), 0.4),
}


class Alike(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments without an effect: shares that were promoted, stopped for harm, and promoted by the plain test."""

    name: str
    simulations: int
    promoted: float
    harmed: float
    plain: float


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments with an effect and the horizon that the forecast told for it.

    `power`: share promoted until then; `plain_hours`: of one plain test at the end; `harm`: share stopped for harm
    where the effect is as large but bad.
    """

    name: str
    simulations: int
    effect: float
    hours: int
    plain_hours: int
    power: float
    harm: float


class Experiments(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured. Shares of simulations.

    `family`: of ten candidates in a row without an effect, at least one promoted; `family_undeflated`: the same at 5 %
    each. `ratio_false`: planned shares that were called broken at 1 %; `ratio_needed`: assignments until 45 % instead
    of 50 % was found, by half and by nine tenths of the streams. `rare_losses`: hours in which a candidate loses
    once all that it gains, and how often it is promoted; a limit, not a figure to reach.
    """

    seed: int
    simulations: int
    alike: list[Alike]
    planted: list[Planted]
    family: float
    family_undeflated: float
    ratio_false: float
    ratio_needed: tuple[int, int]
    rare_losses: dict[int, float]

    @property
    def reached(self) -> bool:
        false = [self.family, *(max(each.promoted, each.harmed) for each in self.alike)]
        return (
            max(false) <= ALPHA
            and self.ratio_false <= RATIO_ALPHA
            and all(min(each.power, each.harm) >= POWER for each in self.planted)
        )

    def as_json(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "reached": self.reached}

    def table(self) -> str:
        """The tables as Markdown."""
        lines = [
            f"Seed {self.seed}, {self.simulations} simulations a row, {self.planted[0].simulations} with an effect.",
            "",
        ]
        lines += ["| no effect | promoted | stopped for harm | plain test, as many looks |", "|---|---|---|---|"]
        lines += [f"| {row.name} | {row.promoted:.2%} | {row.harmed:.2%} | {row.plain:.1%} |" for row in self.alike]
        lines += ["", "| planted effect | size | horizon told | promoted by then | as bad: stopped | plain test |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.effect:g} | {row.hours} h | {row.power:.1%} | {row.harm:.1%} | {row.plain_hours} h |"
            for row in self.planted
        ]
        half, most = self.ratio_needed
        return "\n".join(
            [
                *lines,
                "",
                f"Ten candidates in a row: one promoted in {self.family:.2%}; at 5 % each in "
                f"{self.family_undeflated:.2%}.",
                f"Planned shares called broken at 1 %: {self.ratio_false:.2%}; 45 % instead of 50 % is found after "
                f"{half} assignments in half of all streams, after {most} in nine tenths.",
                "Promoted though one loss takes all gains: "
                + ", ".join(f"{share:.1%} (one in {hours} h)" for hours, share in self.rare_losses.items())
                + ".",
            ]
        )


def measure_experiments(seed: int, simulations: int, say: Say) -> Experiments:
    """Simulate all of it. A setting's numbers depend on the seed, its name and the number of simulations alone."""
    alike = []
    for name, setting in ALIKE.items():
        say(f"no effect: {name}")
        alike.append(measure_alike(name, setting, seed, simulations))
    planted = []
    for name, (setting, effect) in PLANTED.items():
        say(f"planted: {name}")
        planted.append(measure_planted(name, setting, effect, seed, min(simulations, POWER_SIMULATIONS)))
    say("families, shares, rare losses")
    return Experiments(
        seed=seed,
        simulations=simulations,
        alike=alike,
        planted=planted,
        family=measure_family(seed, simulations, deflated=True),
        family_undeflated=measure_family(seed, simulations, deflated=False),
        ratio_false=float(np.isfinite(_ratio_found(0.5, seed, simulations)).mean()),
        ratio_needed=_ratio_needed(seed, simulations),
        rare_losses={hours: measure_rare_loss(hours, seed, min(simulations, POWER_SIMULATIONS)) for hours in RARE},
    )


def measure_alike(name: str, setting: Setting, seed: int, simulations: int, alpha: float = ALPHA) -> Alike:
    """Experiments without an effect."""
    generator = _stream(seed, f"alike/{name}")
    promoted = harmed = plain = 0
    for paths in _parts(simulations):
        found = simulated_observations(setting, paths, generator)
        own = bounds(found, alpha, alpha, setting.horizon_blocks)
        promoted += int((own.low > 0).any(axis=1).sum())
        harmed += int((own.high < 0).any(axis=1).sum())
        plain += int(_plainly_promoted(found).sum())
    return Alike(
        name=name,
        simulations=simulations,
        promoted=promoted / simulations,
        harmed=harmed / simulations,
        plain=plain / simulations,
    )


def measure_planted(
    name: str, setting: Setting, effect: float, seed: int, simulations: int, pasts: int = PASTS
) -> Planted:
    """Experiments with an effect, each of the length that a forecast told from hours recorded before it.

    There are `pasts` forecasts, each from a past of its own; `hours` is their median.
    """
    generator = _stream(seed, f"planted/{name}")
    told, hits = [], {1: 0, -1: 0}
    for paths in _parts(simulations, max(simulations // pasts, 1)):
        horizon = _told(setting, effect, generator)
        told.append(horizon)
        lasting, alpha = msgspec.structs.replace(setting, hours=horizon.hours), deflated_alpha(ALPHA, 1)
        for sign in hits:
            blocks = simulated_observations(lasting, paths, generator, sign * effect)
            own = bounds(blocks, alpha, alpha, horizon.blocks)
            hits[sign] += int(((own.low > 0) if sign > 0 else (own.high < 0)).any(axis=1).sum())
    return Planted(
        name=name,
        simulations=simulations,
        effect=effect,
        hours=int(np.median([each.hours for each in told])),
        plain_hours=int(np.median([each.plain_hours for each in told])),
        power=hits[1] / simulations,
        harm=hits[-1] / simulations,
    )


class _Horizon(NamedTuple):
    hours: int
    blocks: int
    plain_hours: int


def _told(setting: Setting, effect: float, generator: np.random.Generator) -> _Horizon:
    plan = Plan(
        design=setting.design,
        block_hours=setting.block_hours,
        share=setting.share,
        burn_in=setting.burn_in,
        alpha=ALPHA,
    )
    noise = measure_noise(simulated_past(setting, PAST_HOURS, generator), plan)
    if setting.design == "paired-by-window" and setting.autocorrelation > 0:
        # A drift of the effect leaves no trace in hours without one, so that the forecast is told of it.
        drifting = of_hours(noise.hour, setting.autocorrelation, 0.0, plan)
        noise = msgspec.structs.replace(drifting, kept=noise.kept)
    found = forecast(noise, plan, effect)
    if found.hours is None or found.horizon_blocks is None or found.plain_hours is None:
        raise ValueError(f"An effect of {effect} is too small for half a year: {setting}")
    return _Horizon(found.hours, found.horizon_blocks, found.plain_hours)


def measure_family(seed: int, families: int, *, deflated: bool) -> float:
    """Share of families of ten candidates without an effect of which at least one is promoted; two weeks each."""
    setting, generator = Setting(hours=336, agents=4, autocorrelation=0.3, tails="fat"), _stream(seed, "family")
    hit = np.zeros(families, dtype=bool)
    for tried in range(1, FAMILY + 1):
        alpha, start = deflated_alpha(ALPHA, tried) if deflated else ALPHA, 0
        for paths in _parts(families):
            found = simulated_observations(setting, paths, generator)
            hit[start : start + paths] |= (bounds(found, alpha, ALPHA, setting.horizon_blocks).low > 0).any(axis=1)
            start += paths
    return float(hit.mean())


def measure_rare_loss(hours: int, seed: int, simulations: int) -> float:
    """How often a candidate is promoted in four weeks that gains 0.3 deviations an hour and loses all of it at once.

    The loss comes with probability 1 / hours in each; on average there is neither gain nor loss.
    """
    generator, hits = _stream(seed, f"rare/{hours}"), 0
    for paths in _parts(simulations):
        lost = generator.random((paths, FOUR_WEEKS)) < 1 / hours
        found = generator.standard_normal((paths, FOUR_WEEKS)) + 0.3 * (1 - hours * lost)
        means = found.reshape(paths, -1, 6).mean(axis=-1)
        hits += int((bounds(means, ALPHA, ALPHA, means.shape[1]).low > 0).any(axis=1).sum())
    return hits / simulations


def _ratio_found(true_share: float, seed: int, streams: int) -> np.ndarray:
    """Assignments until a planned half is called broken at 1 %, by stream; infinite where it is not in 5,000."""
    generator, found = _stream(seed, f"ratio/{true_share}"), []
    number = np.arange(1, _STREAM + 1)
    for paths in _parts(streams):
        ours = np.cumsum(generator.random((paths, _STREAM)) < true_share, axis=1)
        broken = log_evidence(ours, number - ours, 0.5) >= -math.log(RATIO_ALPHA)
        found.append(np.where(broken.any(axis=1), broken.argmax(axis=1) + 1.0, np.inf))
    return np.concatenate(found)


def _ratio_needed(seed: int, streams: int) -> tuple[int, int]:
    half, most = np.quantile(_ratio_found(0.45, seed, min(streams, 2_000)), (0.5, 0.9), method="higher")
    return int(half), int(most)


def _plainly_promoted(found: np.ndarray) -> np.ndarray:
    """Which paths a one-sided 5 % z-test promotes that is asked after every block from the tenth on."""
    count = np.arange(1, found.shape[1] + 1)
    mean = np.cumsum(found, axis=1) / count
    deviation = np.sqrt(np.maximum(np.cumsum(found**2, axis=1) / count - mean**2, 0) * count / np.maximum(count - 1, 1))
    return ((count >= LEAST_BLOCKS) & (mean > _PLAIN_Z * deviation / np.sqrt(count))).any(axis=1)


def _parts(simulations: int, size: int = _CHUNK) -> list[int]:
    return [min(size, simulations - start) for start in range(0, simulations, size)]


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])
