"""The gate: whether a candidate is promoted, from the P&L of test windows that nothing was chosen by.

Two comparisons decide, and both must hold: over the model that the candidate started from, and over the best of the
fixed policies. The best is picked by these same windows, which favours it, never the candidate.
"""

from collections.abc import Mapping

import msgspec
import pandas as pd

from babylon_rl.errors import EmptyWindowError
from babylon_rl.evaluation.paired import Effect, paired_effect


class Decision(msgspec.Struct, frozen=True):
    """What the gate decided. `comparisons`: effect over every fixed policy, by name; one of them is the best."""

    promote: bool
    reason: str
    over_start: Effect
    best_fixed: str
    over_best_fixed: Effect
    comparisons: dict[str, Effect]


def decide(candidate: pd.Series, start: pd.Series, fixed: Mapping[str, pd.Series], seed: int) -> Decision:
    """Decision on a candidate; each series is the mean P&L of an arm, dollars an agent, by window id.

    All comparisons are over the windows that every arm played. EmptyWindowError for fewer than two of them, or where
    there is no fixed policy.
    """
    if not fixed:
        raise EmptyWindowError(
            "There is no fixed policy to compare the candidate with. Evaluate some on these windows."
        )
    arms = [candidate, start, *fixed.values()]
    shared = sorted(set.intersection(*(set(arm.index) for arm in arms)))
    over_start = paired_effect(candidate[candidate.index.isin(shared)], start[start.index.isin(shared)], seed)
    comparisons = {
        name: paired_effect(candidate[candidate.index.isin(shared)], arm[arm.index.isin(shared)], seed)
        for name, arm in sorted(fixed.items())
    }
    best = max(comparisons, key=lambda name: comparisons[name].baseline_mean)
    promote = over_start.above_zero and comparisons[best].above_zero
    reason = _reason(promote, over_start, best, comparisons[best])
    return Decision(promote, reason, over_start, best, comparisons[best], comparisons)


def _reason(promote: bool, over_start: Effect, best: str, over_best: Effect) -> str:
    said = [_said("the model it started from", over_start), _said(f"the best fixed policy ({best})", over_best)]
    verdict = "Promoted" if promote else "Kept as a candidate"
    return f"{verdict}: over {over_start.windows} windows it earned {' and '.join(said)} an agent and window."


def _said(baseline: str, effect: Effect) -> str:
    clear = "" if effect.above_zero else ", which does not exclude zero" if effect.high >= 0 else ", which is worse"
    more = "more" if effect.effect >= 0 else "less"
    return (
        f"${abs(effect.effect):.2f} {more} than {baseline} "
        f"(95 % interval {effect.low:+.2f} to {effect.high:+.2f}{clear})"
    )
