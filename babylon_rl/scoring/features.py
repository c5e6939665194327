"""Features of one trajectory: what a scorer may look at, computed from the recorded steps alone.

A trade's size and side come from the action's parameters and result, under the names that the simulated market and
the application write. Amounts are dollars, shares of capital are plain fractions (0.01 is 1 %).
"""

import functools
import math
from collections.abc import Mapping
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pandas as pd

from babylon_rl.recording.actions import Kind, kind_of, normal
from babylon_rl.recording.records import Action, ReadStep
from babylon_rl.recording.row_reader import finite

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory

TICKER, QUESTION = "ticker", "question"

# How the application and the simulated market name the direction of a trade.
LONG = frozenset({"buy", "long", "yes", "open_long", "buy_yes", "buy_shares", "sell_no", "close_short"})
SHORT = frozenset({"sell", "short", "no", "open_short", "buy_no", "sell_shares", "sell_yes", "close_long"})
COUNTED = (Kind.TRADE, Kind.POST, Kind.COMMENT, Kind.MALFORMED)
FEES, SIZE = ("fees", "fee"), ("notional", "amount", "size")
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
    counts: dict[tuple[Kind, bool], int] = {}
    acted: dict[tuple, None] = {}
    for step in trajectory.steps:
        action = step.action
        what, done = kind_of(action), action.success
        counts[what, done] = counts.get((what, done), 0) + 1
        if what is Kind.HOLD:
            acted["", what, 0, None, done] = None
            continue
        said = _said(action)
        instrument = _word(_first(said, INSTRUMENT))
        direction = _direction(action.action_type, said) if what is Kind.TRADE else 0
        acted[action.action_type, what, direction, instrument, done] = None
        if done and what is Kind.TRADE:
            fees += _amount(said, FEES)
            name, kind = _instrument(said, instrument, market)
            size = abs(_amount(said, SIZE))
            notional[name] = notional.get(name, 0.0) + size
            exposure[name] = exposure.get(name, 0.0) + direction * size
            kinds[name] = kind
    succeeded, failed = ({kind: counts.get((kind, done), 0) for kind in COUNTED} for done in (True, False))
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
        trades_tried=succeeded[Kind.TRADE] + failed[Kind.TRADE],
        trades_succeeded=succeeded[Kind.TRADE],
        malformed=failed[Kind.MALFORMED],
        posts_succeeded=succeeded[Kind.POST],
        posts_failed=failed[Kind.POST],
        comments_succeeded=succeeded[Kind.COMMENT],
        comments_failed=failed[Kind.COMMENT],
        acted=", ".join(dict.fromkeys(starmap(_spoken, acted))) or "nothing",
        last_state_pnl=_last_state_pnl(trajectory.steps),
    )


def spoken_action(action: Action) -> str:
    """What was done, as a person reads it: `BUY ACME`, `HOLD`, `SELL BOLT (failed)`."""
    what, said = kind_of(action), _said(action)
    direction = _direction(action.action_type, said) if what is Kind.TRADE else 0
    return _spoken(action.action_type, what, direction, _word(_first(said, INSTRUMENT)), action.success)


def direction_of(action: Action) -> int:
    """1 where a trade buys exposure, -1 where it sells, 0 where nothing says which."""
    return _direction(action.action_type, _said(action))


class Trade(NamedTuple):
    """What an action names and moved: `dollars` are signed, bought is positive; both are 0 where no trade was made."""

    instrument: str | None
    dollars: float
    fees: float


def trade_of(action: Action) -> Trade:
    """The action's instrument, and what a successful trade put into it, by the names that `features` knows."""
    said = _said(action)
    instrument = _word(_first(said, INSTRUMENT))
    if kind_of(action) is not Kind.TRADE or not action.success:
        return Trade(instrument, 0.0, 0.0)
    direction = _direction(action.action_type, said)
    return Trade(instrument, direction * abs(_amount(said, SIZE)), _amount(said, FEES))


def _direction(action_type: str, said: Mapping[str, Any]) -> int:
    direction, side = said.get("direction"), said.get("side")
    return _heading(action_type, direction if type(direction) is str else "", side if type(side) is str else "")


@functools.lru_cache(maxsize=4096)
def _heading(action_type: str, direction: str, side: str) -> int:
    name, side = normal(action_type), normal(side)
    # An explicit side outranks the action's name: BUY with side "no" is exposure against the question.
    for word in (normal(direction), side, name):
        if word in LONG or word in SHORT:
            # A named side may be given up instead of taken: YES shares that are sold, a long position that is closed.
            gives_up = name == "close_position" or (name in {"sell", "sell_shares"} and side in {"yes", "no"})
            return (-1 if gives_up and side else 1) * (1 if word in LONG else -1)
    return 0


def _said(action: Action) -> Mapping[str, Any]:
    """What the action's result and parameters say; the result outranks, where it says something."""
    asked = action.parameters if type(action.parameters) is dict else {}
    result = action.result
    if type(result) is not dict or not result:
        return asked
    if None in result.values():
        result = {name: value for name, value in result.items() if value is not None}
    return {**asked, **result} if asked else result


def _first(said: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the names that is given a value."""
    for name in names:
        value = said.get(name)
        if value is not None:
            return value
    return None


def _amount(said: Mapping[str, Any], names: tuple[str, ...]) -> float:
    return finite(_first(said, names)) or 0.0


def _instrument(said: Mapping[str, Any], name: str | None, market: Market) -> tuple[str, str]:
    if name is None:
        return "unknown", QUESTION
    kind = market.kinds.get(name)
    return name, kind or (TICKER if said.get("ticker") is not None else QUESTION)


def _word(name: Any) -> str | None:
    """A name as text; one that was recorded as a number has no fraction."""
    if name is None or type(name) is str:
        return name
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def _spoken(action_type: str, what: Kind, direction: int, instrument: str | None, done: bool) -> str:
    if what is Kind.HOLD:
        words = "HOLD"
    else:
        verb = "BUY" if direction > 0 else "SELL" if direction else action_type
        words = verb if instrument is None else f"{verb} {instrument}"
    return words if done else f"{words} (failed)"


def _capital(steps: list[ReadStep], traded: float) -> float | None:
    """Dollars at the window's start; where only what was traded is known, that is the capital at risk."""
    state = steps[0].environment_state if steps else {}
    for name in ("capital", "portfolioValue", "agentBalance"):
        value = finite(state.get(name))
        if value is not None and value > 0:
            return value
    return traded if traded > 0 else None


def _last_state_pnl(steps: list[ReadStep]) -> float:
    return (finite(steps[-1].environment_state.get("agentPnL")) if steps else None) or 0.0
