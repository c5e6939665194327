"""Features of one trajectory: what a scorer may look at, computed from the recorded steps alone.

A trade's size and side come from the action's parameters and result, under the names that the simulated market and
the application write. Amounts are dollars, shares of capital are plain fractions (0.01 is 1 %).
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.recording.actions import Kind, kind_of, normal
from babylon_rl.recording.records import Action, Step
from babylon_rl.recording.row_reader import finite

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory

TICKER, QUESTION = "ticker", "question"

# How the application and the simulated market name the direction of a trade.
LONG = frozenset({"buy", "long", "yes", "open_long", "buy_yes", "buy_shares", "sell_no", "close_short"})
SHORT = frozenset({"sell", "short", "no", "open_short", "buy_no", "sell_shares", "sell_yes", "close_long"})
INSTRUMENT = ("instrument", "ticker", "marketId", "market_id")


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
    posts_succeeded: int
    posts_failed: int
    comments_succeeded: int
    comments_failed: int
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
    fees = 0.0
    counts: Counter[tuple[Kind, bool]] = Counter()
    acted: dict[str, None] = {}
    for step in trajectory.steps:
        action = step.action
        what = kind_of(action)
        counts[what, action.success] += 1
        direction = direction_of(action) if what is Kind.TRADE else 0
        acted[_spoken(action, what, direction)] = None
        if what is not Kind.TRADE or not action.success:
            continue
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
        trades_tried=counts[Kind.TRADE, True] + counts[Kind.TRADE, False],
        trades_succeeded=counts[Kind.TRADE, True],
        malformed=counts[Kind.MALFORMED, False],
        posts_succeeded=counts[Kind.POST, True],
        posts_failed=counts[Kind.POST, False],
        comments_succeeded=counts[Kind.COMMENT, True],
        comments_failed=counts[Kind.COMMENT, False],
        acted=", ".join(acted) or "nothing",
        last_state_pnl=_last_state_pnl(trajectory.steps),
    )


def direction_of(action: Action) -> int:
    """1 where a trade buys exposure, -1 where it sells, 0 where nothing says which."""
    name = normal(action.action_type)
    side = _said(action, "side")
    # An explicit side outranks the action's name: BUY with side "no" is exposure against the question.
    for said in (_said(action, "direction"), side, action.action_type):
        word = normal(said) if isinstance(said, str) else None
        if word in LONG or word in SHORT:
            return _closing(name, side) * (1 if word in LONG else -1)
    return 0


def _closing(name: str, side: Any) -> int:
    """-1 where a named side is given up instead of taken: YES shares that are sold, a long position that is closed."""
    side = normal(side) if isinstance(side, str) else ""
    gives_up = name == "close_position" or (name in {"sell", "sell_shares"} and side in {"yes", "no"})
    return -1 if gives_up and side else 1


def _said(action: Action, *names: str) -> Any:
    """The first of the names that the result or the parameters give a value."""
    for source in (action.result, action.parameters):
        if isinstance(source, dict):
            for name in names:
                value = source.get(name)
                if value is not None:
                    return value
    return None


def _amount(action: Action, *names: str) -> float:
    return finite(_said(action, *names)) or 0.0


def _instrument(action: Action, market: Market) -> tuple[str, str]:
    name = _said(action, *INSTRUMENT)
    if name is None:
        return "unknown", QUESTION
    named_as_ticker = _said(action, "ticker") is not None
    return str(name), market.kinds.get(str(name), TICKER if named_as_ticker else QUESTION)


def _spoken(action: Action, what: Kind, direction: int) -> str:
    verb = {1: "BUY", -1: "SELL"}.get(direction) or ("HOLD" if what is Kind.HOLD else action.action_type)
    name = None if what is Kind.HOLD else _said(action, *INSTRUMENT)
    words = verb if name is None else f"{verb} {name}"
    return words if action.success else f"{words} (failed)"


def _capital(steps: list[Step], traded: float) -> float | None:
    """Dollars at the window's start; where only what was traded is known, that is the capital at risk."""
    state = steps[0].environment_state if steps else {}
    for name in ("capital", "portfolioValue", "agentBalance"):
        value = finite(state.get(name))
        if value is not None and value > 0:
            return value
    return traded if traded > 0 else None


def _last_state_pnl(steps: list[Step]) -> float:
    return (finite(steps[-1].environment_state.get("agentPnL")) if steps else None) or 0.0
