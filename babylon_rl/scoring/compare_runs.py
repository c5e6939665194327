"""Two scored runs side by side: which of their decisions is shown, and what the market then did, in words.

Pure: what is compared was read and scored before.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.recording.window import action_calls
from babylon_rl.scoring.features import TICKER, spoken_action, trade_of
from babylon_rl.scoring.seam import NO_CAPITAL

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory

Row = Mapping[str, Any]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of a run: what the agent was shown, what it answered, what was done with which instrument.

    `dollars`: traded, bought is positive. `reward`: the decision's own, where the scorer attributes one.
    """

    step: int
    goal: str
    saw: str
    answered: str
    did: str
    instrument: str | None
    dollars: float
    fees: float
    reward: float | None


class ComparedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A scored run with the one of its decisions that is shown, and what the market did with that instrument.

    `instrument`: the decision's, or the other run's where this one names none. `market`: in words. `pnl`: dollars of
    the whole window. `counterfactuals`: rewards of what was not done.
    """

    trajectory_id: str
    agent_id: str
    rank: int
    reward: float
    pnl: float
    reason: str
    decisions: int
    decision: Decision | None
    instrument: str | None
    market: str
    counterfactuals: Mapping[str, float | None] | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs side by side. `same_instrument`: whether both decisions are about one."""

    first: ComparedRun
    second: ComparedRun
    same_instrument: bool


def best_and_worst(rows: Iterable[Row]) -> tuple[Row, Row] | None:
    """First and last by rank of the rows with a valid reward; None where there are not two of them."""
    valid = sorted((row for row in rows if row.get("provenance") != NO_CAPITAL), key=lambda row: row["rank"])
    return (valid[0], valid[-1]) if len(valid) > 1 else None


def decisions_of(trajectory: "UsableTrajectory", rewards: Mapping[Any, float] | None = None) -> list[Decision]:
    """The run's decisions, oldest first; `rewards`: by the number of the step, which JSON makes a text."""
    own = {int(number): reward for number, reward in (rewards or {}).items()}
    return [
        Decision(
            step=step.step_number,
            goal=next((call.system_prompt for call in action_calls(step) if call.system_prompt), ""),
            saw="\n\n".join(call.user_prompt for call in action_calls(step)),
            answered="\n\n".join(call.response for call in action_calls(step)),
            did=spoken_action(step.action),
            instrument=(trade := trade_of(step.action)).instrument,
            dollars=trade.dollars,
            fees=trade.fees,
            reward=own.get(step.step_number),
        )
        for step in trajectory.steps
    ]


def weights(decisions: Iterable[Decision]) -> dict[str, float]:
    """How much each instrument counts in a run: the rewards of its decisions where they are known, else the dollars."""
    known = list(decisions)
    attributed = any(one.reward for one in known)
    found: dict[str, float] = {}
    for one in known:
        if one.instrument is not None:
            found[one.instrument] = found.get(one.instrument, 0.0) + _weight(one, attributed)
    return found


def _weight(decision: Decision, attributed: bool) -> float:
    return abs(decision.reward or 0.0) if attributed else abs(decision.dollars)


def instruments_to_compare(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[str | None, str | None]:
    """Of each run the instrument that is looked at; the same one where both had to do with one.

    `first`, `second`: weight of each instrument in its run. Of several shared ones it is the one with the largest
    share of both runs, else each run's own largest; by name where they are equal.
    """
    shared = sorted(first.keys() & second.keys())
    if shared:
        one = max(shared, key=lambda name: _share(first, name) + _share(second, name))
        return one, one
    return _largest(first), _largest(second)


def _share(weights: Mapping[str, float], name: str) -> float:
    return weights[name] / (math.fsum(weights.values()) or 1.0)


def _largest(weights: Mapping[str, float]) -> str | None:
    return max(sorted(weights), key=lambda name: weights[name], default=None)


def most_important(decisions: Sequence[Decision], instrument: str | None) -> Decision | None:
    """The decision about the instrument with the largest reward of its own, else the most dollars; the first of equals.

    Where none is about it, of all.
    """
    among = [one for one in decisions if one.instrument == instrument] or list(decisions)
    attributed = any(one.reward for one in among)
    return max(among, key=lambda one: _weight(one, attributed), default=None)


def compare(
    rows: tuple[Row, Row],
    trajectories: tuple["UsableTrajectory", "UsableTrajectory"],
    outcomes: Iterable[Row],
) -> Comparison:
    """The runs of two rows of `scored_trajectories` side by side; `outcomes`: rows of `market_outcomes`."""
    made = [decisions_of(run, row.get("decision_rewards")) for row, run in zip(rows, trajectories, strict=True)]
    names = instruments_to_compare(weights(made[0]), weights(made[1]))
    chosen = [most_important(own, name) for own, name in zip(made, names, strict=True)]
    by_name = {str(row["instrument"]): row for row in outcomes}
    # A run that names no instrument is shown beside what the other one traded.
    looked = (names[0] or names[1], names[1] or names[0])
    runs = [
        ComparedRun(
            trajectory_id=row["trajectory_id"],
            agent_id=row["agent_id"],
            rank=int(row["rank"]),
            reward=float(row["reward"]),
            pnl=row["features"]["window_pnl"],
            reason=row["reason"],
            decisions=len(own),
            decision=decision,
            instrument=name,
            market=market_then(name, by_name),
            counterfactuals=row.get("counterfactuals"),
        )
        for row, own, decision, name in zip(rows, made, chosen, looked, strict=True)
    ]
    return Comparison(first=runs[0], second=runs[1], same_instrument=looked[0] is not None and looked[0] == looked[1])


def market_then(instrument: str | None, outcomes: Mapping[str, Row]) -> str:
    """What the market did with the instrument in the window, in words: `ACME 100.00 to 105.00, +5.0 %`."""
    if instrument is None:
        return "no instrument was named"
    row = outcomes.get(instrument)
    return f"{instrument}: no outcome is known" if row is None else f"{instrument} {move_of(row)}"


def move_of(row: Row) -> str:
    """A row of `market_outcomes` in words, without the instrument's name: prices in dollars, probabilities of YES."""
    first, last, change = (_number(row.get(name)) for name in ("open", "close", "change"))
    if row["kind"] == TICKER:
        prices = f"{_price(first)} to {_price(last)}"
        return f"{prices}, {100 * change:+.1f} %" if change is not None else f"{prices}, change unknown"
    outcome = row.get("outcome")
    resolved = f"resolved {outcome}" if isinstance(outcome, str) and outcome else "not resolved"
    return f"YES {_percent(first)} to {_percent(last)}, {resolved}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _price(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}"


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.0f} %"


def not_done(counterfactuals: Mapping[str, float | None] | None, most: int = 6) -> str:
    """Rewards of what was not done: `flat +0.0000, hold +0.0012, best +0.0140`; empty where none is known."""
    known = [(name, _number(value)) for name, value in (counterfactuals or {}).items()]
    return ", ".join(f"{name} {value:+.4f}" for name, value in known[:most] if value is not None)
