"""Guardrails: what no gain in reward may cost. Valid actions, drawdown and latency of a checkpoint, against another's.

The same rules hold for the candidate of an experiment and for what is served after a promotion. Each says what it saw.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from babylon_rl.evaluation.arms import ArmWindow
from babylon_rl.settings.serving import ExperimentSettings

LEAST_WINDOWS = 3  # of each side, before a guardrail counts
# A fall of the share of valid actions must also be this many standard errors: looked at hourly for weeks, three come up
# by chance in a few experiments of a hundred, two in a third of them.
STANDARD_ERRORS = 3.0
FLOOR_MS = 50.0  # a difference of latency that nobody waiting for a language model notices


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the guardrails; shares are 0 to 1, `latency` a factor."""

    valid: float
    drawdown: float
    latency: float
    least_windows: int = LEAST_WINDOWS

    @classmethod
    def of(cls, settings: ExperimentSettings) -> "Limits":
        return cls(valid=settings.guard_valid, drawdown=settings.guard_drawdown, latency=settings.guard_latency)


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """What one guardrail saw. `candidate`, `baseline`: None where too few windows tell; `said`: a line for a person."""

    name: Literal["valid", "drawdown", "latency"]
    breached: bool
    candidate: float | None
    baseline: float | None
    limit: float
    said: str


def guard(candidate: Sequence[ArmWindow], baseline: Sequence[ArmWindow], limits: Limits) -> list[Guard]:
    """The three guardrails over the windows of both sides, each in order; they need not be the same windows."""
    enough = min(len(candidate), len(baseline)) >= limits.least_windows
    if not enough:
        said = (
            f"{len(candidate)} windows of the candidate and {len(baseline)} of the baseline; it counts from "
            f"{limits.least_windows} of each on"
        )
        return [_unknown(name, getattr(limits, name), said) for name in ("valid", "drawdown", "latency")]
    return [
        _valid(candidate, baseline, limits.valid),
        _drawdown(candidate, baseline, limits.drawdown),
        _latency(candidate, baseline, limits),
    ]


def breach(guards: Sequence[Guard]) -> str | None:
    """What was breached, in words; None where nothing was."""
    return "; ".join(f"{one.name}: {one.said}" for one in guards if one.breached) or None


def _unknown(name: Literal["valid", "drawdown", "latency"], limit: float, said: str) -> Guard:
    return Guard(name=name, breached=False, candidate=None, baseline=None, limit=limit, said=said)


def _valid(candidate: Sequence[ArmWindow], baseline: Sequence[ArmWindow], limit: float) -> Guard:
    """A fall of the share of valid actions beyond the limit that chance does not explain.

    Agents are the units. The standard error is of shares with one success and one failure added to each side (Agresti
    and Caffo, The American Statistician 54, 2000), so that it is no zero where all or none are valid.
    """
    (ours, our_agents), (theirs, their_agents) = _valid_share(candidate), _valid_share(baseline)
    fall = theirs - ours
    adjusted = [(share * n + 1) / (n + 2) for share, n in ((ours, our_agents), (theirs, their_agents))]
    error = math.sqrt(sum(p * (1 - p) / (n + 2) for p, n in zip(adjusted, (our_agents, their_agents), strict=True)))
    clear = adjusted[1] - adjusted[0] > STANDARD_ERRORS * error
    said = f"{ours:.1%} valid actions against {theirs:.1%}, a fall of {limit:.1%} is allowed"
    if fall > limit and not clear:
        said += f"; {our_agents} and {their_agents} agents are too few to tell it from chance"
    return Guard(name="valid", breached=fall > limit and clear, candidate=ours, baseline=theirs, limit=limit, said=said)


def _valid_share(windows: Sequence[ArmWindow]) -> tuple[float, int]:
    """Share over agents, and how many there are."""
    agents = sum(one.agents for one in windows)
    return sum(one.valid * one.agents for one in windows) / agents, agents


def _drawdown(candidate: Sequence[ArmWindow], baseline: Sequence[ArmWindow], limit: float) -> Guard:
    ours, theirs = largest_drawdown(candidate), largest_drawdown(baseline)
    said = f"{ours:.1%} of capital lost from the peak against {theirs:.1%}, {limit:.1%} more are allowed"
    return Guard(
        name="drawdown", breached=ours - theirs > limit, candidate=ours, baseline=theirs, limit=limit, said=said
    )


def largest_drawdown(windows: Sequence[ArmWindow]) -> float:
    """Largest fall of the sum of mean returns from its peak, over the windows in order, or within one of them.

    A share of capital, 0 or more. The sum starts at 0.
    """
    peak = level = fall = 0.0
    for one in windows:
        level += one.earned
        peak = max(peak, level)
        fall = max(fall, peak - level, one.drawdown)
    return fall


def _latency(candidate: Sequence[ArmWindow], baseline: Sequence[ArmWindow], limits: Limits) -> Guard:
    """The median over windows of the 95th percentile: one slow hour of the machine is no property of a checkpoint."""
    ours, theirs = ([one.latency_ms for one in side if one.latency_ms is not None] for side in (candidate, baseline))
    if min(len(ours), len(theirs)) < limits.least_windows:
        return _unknown("latency", limits.latency, "too few windows with calls through the gateway")
    mine, base = statistics.median(ours), statistics.median(theirs)
    said = (
        f"{mine:.0f} ms against {base:.0f} ms (95th percentile, median of windows), {limits.latency:g} times that and "
        f"{FLOOR_MS:.0f} ms more are allowed"
    )
    breached = mine > limits.latency * base and mine - base > FLOOR_MS
    return Guard(name="latency", breached=breached, candidate=mine, baseline=base, limit=limits.latency, said=said)
