"""Features of one trajectory: what a scorer may look at, computed from the recorded steps alone.

A trade's size and side come from the action's parameters and result, under the names that the simulated market and
the application write. Amounts are dollars, shares of capital are plain fractions (0.01 is 1 %).
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.recording.records import Action, Step

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory

TICKER, QUESTION = "ticker", "question"

# How the application and the simulated market name the direction of a trade.
LONG = frozenset({"buy", "long", "yes", "open_long", "buy_yes", "buy_shares"})
SHORT = frozenset({"sell", "short", "no", "open_short", "buy_no", "sell_shares"})
MALFORMED = frozenset({"invalid", "malformed", "parse_error"})


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What one trajectory did in its window."""

    trajectory_id: str
    agent_id: str
    capital: float | None  # dollars at the window's start; None where nothing tells it
    window_pnl: float  # dollars after fees, last minus first of the window
    fees: float
    notional: dict[str, float]  # dollars traded, by instrument
    exposure: dict[str, float]  # the same, signed: bought is positive
    kinds: dict[str, str]  # ticker | question, by instrument
    decisions: int  # recorded LLM calls
    steps: int
    trades_tried: int
    trades_succeeded: int
    malformed: int
    acted: str  # what a person reads: "BUY ACME", "HOLD"
    last_state_pnl: float  # agentPnL of the last step's state: the lifetime figure, which only `heuristic` reads

    def exposure_to(self, kind: str) -> float:
        """Signed dollars in instruments of the kind."""
        return math.fsum(value for name, value in self.exposure.items() if self.kinds[name] == kind)


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What the market did in the window, as far as scorers need it."""

    move: float  # mean change of all tickers; 0 where there is none
    tickers: int
    kinds: dict[str, str]


def market_of(outcomes: pd.DataFrame) -> Market:
    """The window's market from its rows of `market_outcomes` (any order)."""
    tickers = outcomes[(outcomes["kind"] == TICKER) & outcomes["change"].notna()]
    changes = sorted(float(change) for change in tickers["change"])
    kinds = dict(zip(outcomes["instrument"], outcomes["kind"], strict=True))
    return Market(move=math.fsum(changes) / len(changes) if changes else 0.0, tickers=len(changes), kinds=kinds)


def features(trajectory: "UsableTrajectory", outcomes: pd.DataFrame | Market) -> Features:
    """Features of a trajectory; `outcomes`: the window's rows of `market_outcomes`, or the `Market` made from them."""
    market = outcomes if isinstance(outcomes, Market) else market_of(outcomes)
    notional: dict[str, float] = {}
    exposure: dict[str, float] = {}
    kinds: dict[str, str] = {}
    fees, tried, succeeded = 0.0, 0, 0
    for action in (step.action for step in trajectory.steps):
        direction = direction_of(action)
        if direction == 0:
            continue
        tried += 1
        if not action.success:
            continue
        succeeded += 1
        fees += _amount(action, "fees", "fee")
        instrument, kind = _instrument(action, market)
        size = abs(_amount(action, "notional", "amount", "size"))
        notional[instrument] = notional.get(instrument, 0.0) + size
        exposure[instrument] = exposure.get(instrument, 0.0) + direction * size
        kinds[instrument] = kind
    return Features(
        trajectory_id=trajectory.trajectory_id,
        agent_id=trajectory.agent_id,
        capital=_capital(trajectory.steps, sum(notional.values())),
        window_pnl=float(trajectory.window_pnl),
        fees=fees,
        notional=notional,
        exposure=exposure,
        kinds=kinds,
        decisions=sum(len(step.llm_calls) for step in trajectory.steps),
        steps=len(trajectory.steps),
        trades_tried=tried,
        trades_succeeded=succeeded,
        malformed=sum(is_malformed(step.action) for step in trajectory.steps),
        acted=", ".join(dict.fromkeys(_spoken(step.action) for step in trajectory.steps)) or "nothing",
        last_state_pnl=_last_state_pnl(trajectory.steps),
    )


def direction_of(action: Action) -> int:
    """1 where the action buys exposure, -1 where it sells, 0 where it is no trade."""
    words = (action.action_type, _said(action, "side"), _said(action, "direction"))
    names = [str(word).lower() for word in words if word is not None]
    # An explicit side outranks the action's name: BUY with side "no" is exposure against the question.
    for name in reversed(names):
        if name in LONG or name in SHORT:
            return _closing(action) * (1 if name in LONG else -1)
    return 0


def is_malformed(action: Action) -> bool:
    """Whether the answer could not be read as an action."""
    return not action.success and action.action_type.lower() in MALFORMED


def _closing(action: Action) -> int:
    """-1 where a named side is given up instead of taken: YES shares that are sold, a long position that is closed."""
    name, side = action.action_type.lower(), str(_said(action, "side") or "").lower()
    gives_up = name == "close_position" or (name in {"sell", "sell_shares"} and side in {"yes", "no"})
    return -1 if gives_up and side else 1


def _said(action: Action, *names: str) -> Any:
    """The first of the names that the result or the parameters give a value."""
    for source in (action.result, action.parameters):
        for name in names:
            if isinstance(source, Mapping) and source.get(name) is not None:
                return source[name]
    return None


def _amount(action: Action, *names: str) -> float:
    value = _said(action, *names)
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    return number if math.isfinite(number) else 0.0


def _instrument(action: Action, market: Market) -> tuple[str, str]:
    name = _said(action, "instrument", "ticker", "marketId", "market_id")
    if name is None:
        return "unknown", QUESTION
    named_as_ticker = _said(action, "ticker") is not None
    return str(name), market.kinds.get(str(name), TICKER if named_as_ticker else QUESTION)


def _spoken(action: Action) -> str:
    verb = {1: "BUY", -1: "SELL", 0: action.action_type}[direction_of(action)]
    verb = "HOLD" if verb.lower() == "hold" else verb
    name = _said(action, "instrument", "ticker", "marketId", "market_id")
    words = verb if name is None or verb == "HOLD" else f"{verb} {name}"
    return words if action.success else f"{words} (failed)"


def _capital(steps: list[Step], traded: float) -> float | None:
    """Dollars at the window's start; where only what was traded is known, that is the capital at risk."""
    state = steps[0].environment_state if steps else {}
    for name in ("capital", "portfolioValue", "agentBalance"):
        value = state.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return float(value)
    return traded if traded > 0 else None


def _last_state_pnl(steps: list[Step]) -> float:
    value = steps[-1].environment_state.get("agentPnL") if steps else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
