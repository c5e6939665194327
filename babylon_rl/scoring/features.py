"""Features of one trajectory: what a scorer may look at, computed from the recorded steps alone.

A trade's size and side come from the action's parameters and result, under the names that the simulated market and
the application write. Amounts are dollars, shares of capital are plain fractions (0.01 is 1 %).
"""

import functools
import math
from collections.abc import Mapping
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
FEES, SIZE = ("fees", "fee"), ("notional", "amount", "size")
INSTRUMENT = ("instrument", "ticker", "marketId", "market_id")
OWN_PNL = ("pnl", "pnlChange")
# Read once: an attribute of an enumeration takes as long as ten of a module.
HOLD, TRADE, POST, COMMENT, MALFORMED = Kind.HOLD, Kind.TRADE, Kind.POST, Kind.COMMENT, Kind.MALFORMED


class Features(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    # Dollars: the largest sum of positions that its trades held open at once; an unknown direction adds its size.
    most_open: float = 0.0
    step_numbers: list[int] = []
    # Of each successful trade: its step, the P&L that it says of itself, what the market's move gave it; dollars.
    trades: list[tuple[int, float | None, float]] = []
    yes_prices: dict[str, float] = {}  # of questions: the price of YES at which the run traded first, where it is told

    def exposure_to(self, kind: str) -> float:
        """Signed dollars in instruments of the kind."""
        if not self.exposure:
            return 0.0
        total, kinds = 0.0, self.kinds
        for name, value in self.exposure.items():
            if kinds[name] == kind:
                total += value
        return total


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What the market did in the window, as far as scorers need it."""

    move: float  # mean change of all tickers; 0 where there is none
    tickers: int
    kinds: dict[str, str]
    changes: dict[str, float] = {}  # of each ticker, where it is known
    around: dict[str, float] = {}  # of each ticker: mean change of the others, 0 where it is the only one
    answers: dict[str, str] = {}  # YES | NO, of each question that is resolved
    furthest: float = 0.0  # the largest distance of a ticker's change from that of the others

    def move_around(self, instrument: str) -> float:
        """The market's move for who holds the instrument: the mean change of the other tickers.

        A ticker's own move is what its trader foresaw or not. In a mean over few tickers it is a large part, of one
        alone it is all, and taking that off would take the skill.
        """
        return self.around.get(instrument, self.move)


def market_of(outcomes: pd.DataFrame) -> Market:
    """The window's market from its rows of `market_outcomes` (any order)."""
    # By lists: pandas takes longer to select from a frame of this size than scoring takes.
    kinds: dict[str, str] = {}
    changes: dict[str, float] = {}
    answers: dict[str, str] = {}
    resolved = outcomes["outcome"].tolist() if "outcome" in outcomes else [None] * len(outcomes)
    told = (outcomes[name].tolist() for name in ("instrument", "kind", "change"))
    for instrument, kind, change, answer in zip(*told, resolved, strict=True):
        kinds[instrument] = kind
        if kind == TICKER and change is not None and math.isfinite(change):
            changes[instrument] = float(change)
        elif kind != TICKER and answer in ("YES", "NO"):
            answers[instrument] = answer
    total, others = math.fsum(changes.values()), len(changes) - 1
    around = {name: math.fsum((total, -change)) / others if others else 0.0 for name, change in changes.items()}
    return Market(
        move=total / len(changes) if changes else 0.0,
        tickers=len(changes),
        kinds=kinds,
        changes=changes,
        around=around,
        answers=answers,
        furthest=max((abs(change - around[name]) for name, change in changes.items()), default=0.0),
    )


def features(trajectory: "UsableTrajectory", outcomes: pd.DataFrame | Market) -> Features:
    """Features of a trajectory; `outcomes`: the window's rows of `market_outcomes`, or the `Market` made from them."""
    market = outcomes if isinstance(outcomes, Market) else market_of(outcomes)
    steps = trajectory.steps
    traded, decisions = _Traded(market), 0
    acted: dict[str, None] = {}
    tried = malformed = posts = posts_failed = comments = comments_failed = 0
    for step in steps:
        decisions += len(step.llm_calls)
        action = step.action
        kind, done = kind_of(action), action.success
        if kind is HOLD:
            acted["HOLD" if done else "HOLD (failed)"] = None
            continue
        said = _said(action)
        name = _word(_first(said, INSTRUMENT))
        direction = _direction(action.action_type, said) if kind is TRADE else 0
        acted[_spoken(action.action_type, kind, direction, name, done)] = None
        if kind is TRADE:
            tried += 1
            if done:
                traded.take(step.step_number, action.action_type, said, name, direction)
        elif kind is POST:
            posts, posts_failed = posts + done, posts_failed + (not done)
        elif kind is COMMENT:
            comments, comments_failed = comments + done, comments_failed + (not done)
        elif kind is MALFORMED and not done:
            malformed += 1
    return Features(
        trajectory_id=trajectory.trajectory_id,
        agent_id=trajectory.agent_id,
        capital=_capital(steps, traded.notional),
        window_pnl=float(trajectory.window_pnl),
        fees=traded.fees,
        notional=traded.notional,
        exposure=traded.exposure,
        kinds=traded.kinds,
        decisions=decisions,
        steps=len(steps),
        trades_tried=tried,
        trades_succeeded=len(traded.trades),
        malformed=malformed,
        posts_succeeded=posts,
        posts_failed=posts_failed,
        comments_succeeded=comments,
        comments_failed=comments_failed,
        acted=", ".join(acted) or "nothing",
        last_state_pnl=_last_state_pnl(steps),
        most_open=traded.most_open,
        step_numbers=[step.step_number for step in steps],
        trades=traded.trades,
        yes_prices=traded.yes_prices,
    )


class _Traded:
    """The successful trades of one run, summed up as they come."""

    __slots__ = ("exposure", "fees", "is_open", "kinds", "market", "most_open", "notional", "trades", "yes_prices")

    def __init__(self, market: Market) -> None:
        self.market, self.fees, self.is_open, self.most_open = market, 0.0, 0.0, 0.0
        self.notional: dict[str, float] = {}
        self.exposure: dict[str, float] = {}
        self.kinds: dict[str, str] = {}
        self.trades: list[tuple[int, float | None, float]] = []
        self.yes_prices: dict[str, float] = {}

    def take(self, step: int, action_type: str, said: Mapping[str, Any], name: str | None, direction: int) -> None:
        self.fees += _amount(said, FEES)
        name, kind = _instrument(said, name, self.market)
        size = abs(_amount(said, SIZE))
        kind = self.kinds.setdefault(name, kind)
        signed = direction * size
        self.notional[name] = self.notional.get(name, 0.0) + size
        before = self.exposure.get(name, 0.0)
        self.exposure[name] = before + signed
        if kind == QUESTION and direction and name not in self.yes_prices:
            price = _yes_price(action_type, said, size)
            if price is not None:
                self.yes_prices[name] = price
        self.is_open += abs(self.exposure[name]) - abs(before) if direction else size
        if self.is_open > self.most_open:
            self.most_open = self.is_open
        pnl = _first(said, OWN_PNL)
        by_market = signed * self.market.move_around(name) if kind == TICKER else 0.0
        self.trades.append((step, None if pnl is None else finite(pnl), by_market))


def _yes_price(action_type: str, said: Mapping[str, Any], size: float) -> float | None:
    """Price of a YES share by what a trade in a question paid for its shares; None where that is not told."""
    side = said.get("side")
    share = normal(side) if type(side) is str else normal(action_type).rpartition("_")[2]
    price = finite(_first(said, ("entryPrice", "price")))
    if price is None:
        shares = finite(said.get("shares"))
        price = size / shares if shares else None
    if price is None or share not in ("yes", "no"):
        return None
    price = price if share == "yes" else 1 - price
    return price if 0 < price < 1 else None


def spoken_action(action: Action) -> str:
    """What was done, as a person reads it: `BUY ACME`, `HOLD`, `SELL BOLT (failed)`."""
    what, said = kind_of(action), _said(action)
    direction = _direction(action.action_type, said) if what is TRADE else 0
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
        if (value := said.get(name)) is not None:
            return value
    return None


def _amount(said: Mapping[str, Any], names: tuple[str, ...]) -> float:
    value = _first(said, names)
    return 0.0 if value is None else finite(value) or 0.0


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
    if what is HOLD:
        words = "HOLD"
    else:
        verb = "BUY" if direction > 0 else "SELL" if direction else action_type
        words = verb if instrument is None else f"{verb} {instrument}"
    return words if done else f"{words} (failed)"


def _capital(steps: list[ReadStep], notional: Mapping[str, float]) -> float | None:
    """Dollars at the window's start; where only what was traded is known, that is the capital at risk."""
    state = steps[0].environment_state if steps else {}
    for name in ("capital", "portfolioValue", "agentBalance"):
        told = state.get(name)
        value = None if told is None else finite(told)
        if value is not None and value > 0:
            return value
    return sum(notional.values()) or None


def _last_state_pnl(steps: list[ReadStep]) -> float:
    return (finite(steps[-1].environment_state.get("agentPnL")) if steps else None) or 0.0
