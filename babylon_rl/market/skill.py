"""Agents whose skill is known, trading the simulated market: what scorers are put to the test with.

A trader has a persona that lasts (capital, a tilt to one side, order size, how often it decides) and an edge that was
planted in it. Its hours are settled like any agent's and become records like any agent's, which the scorers are then
shown; nothing here computes a reward.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd

from babylon_rl.market.actions import VERBS, choices, parse_action
from babylon_rl.market.agents import AgentState
from babylon_rl.market.policies import INFORMED_POLICY, choose
from babylon_rl.market.settlement import TICKER_ORDER, Settlement, settle
from babylon_rl.market.trajectories import DECIDES_AFTER, ENDS_AFTER, market_id, settled_action
from babylon_rl.market.world import COMMON_MOVE_STD, TICKERS, MarketWindow, make_window
from babylon_rl.outcomes.outcomes import COLUMNS, with_revision
from babylon_rl.recording.records import KnownState, LLMCall, ReadStep
from babylon_rl.recording.rows import epoch_ms
from babylon_rl.recording.window import UsableTrajectory
from babylon_rl.scoring.features import QUESTION, TICKER, Market, features, market_of
from babylon_rl.scoring.seam import Runs
from babylon_rl.windows import parse_window_id

CAPITAL, CAPITAL_SIGMA, LEAST_CAPITAL, MOST_CAPITAL = 1000.0, 0.7, 100, 10_000
MOST_TILT = 0.5  # of capital
MOST_LEAN = 0.9  # of an order
ORDER_FACTOR = (0.5, 1.5)  # of the market's own order size
DECISIONS = (1, 4)  # an hour, each on another instrument
# Who overtrades: many small orders at random.
OVERTRADES, OVERTRADED_FACTOR = 20, 0.25
POLICIES = ("informed", "hold", "overtrading")

# Texts are not what is tested; every decision has the same.
_CALL = LLMCall(
    model="planted", system_prompt="You trade.", user_prompt="Decide.", response="Done.", temperature=None,
    max_tokens=None, purpose="action",
)  # fmt: skip


@dataclass(frozen=True)
class Climate:
    """Where traders are compared. `drift`, `common`: mean and deviation of what all tickers share in an hour.

    `leaning`: how a persona's tilt shows. False: in a position that it renews every hour, the same share of its capital
    in each ticker, which says nothing about any of them. True: in its own orders, of which those to buy a ticker are
    larger and those to sell one smaller.
    """

    name: str
    drift: float = 0.0
    common: float = COMMON_MOVE_STD
    leaning: bool = False

    def window(self, seed: int, index: int, news_accuracy: float = 1.0) -> MarketWindow:
        """The market's window of that index; by default its news tell each instrument's own move."""
        return make_window(seed, "train", index, news_accuracy, (self.drift, self.common))


@dataclass(frozen=True)
class Trader:
    """An agent whose skill is known.

    `capital`: dollars at the start of every hour. `tilt`: position in the tickers together that it renews every hour,
    as a share of capital, long +, short -. `lean`: share by which its orders to buy a ticker are larger, and those to
    sell one smaller. `order`: factor of the market's own order size. `edge`: it takes the right side of an instrument's
    own move with probability (1 + edge) / 2. So the edge is also what a decision gains on average before fees, as a
    share of what it can gain or lose, and tilt and lean do not change it.
    """

    agent_id: str
    capital: int
    tilt: float
    lean: float
    order: float
    decisions: int
    edge: float


@dataclass(frozen=True)
class Order:
    """What a trader wants of an instrument: a verb, and a factor of the market's own order size."""

    verb: str
    instrument: str
    factor: float = 1.0


def make_traders(seed: int, draw: int, edge: float, count: int, climate: Climate) -> list[Trader]:
    """Traders of one draw; their edges have mean 0 and standard deviation `edge` before they are cut to -1..1.

    Draws that differ in `edge` alone have the same personas, and edges in proportion.
    """
    stream = random.Random(f"skill/{seed}/{draw}/traders")
    traders = []
    for number in range(1, count + 1):
        capital = _capital(stream)
        bias = stream.uniform(-1, 1)
        traders.append(
            Trader(
                agent_id=f"trader-{number}",
                capital=capital,
                tilt=0.0 if climate.leaning else MOST_TILT * bias,
                lean=MOST_LEAN * bias if climate.leaning else 0.0,
                order=stream.uniform(*ORDER_FACTOR),
                decisions=stream.randint(*DECISIONS),
                edge=max(-1.0, min(1.0, edge * stream.gauss(0, 1))),
            )
        )
    return traders


def trader_orders(trader: Trader, window: MarketWindow, stream: random.Random) -> tuple[list[Order], int]:
    """A trader's orders of an hour, and how many more of its decisions took the right side than the wrong one.

    The news of `window` tell each instrument's own move (`Climate.window`).
    """
    orders = []
    if trader.tilt:
        verb, factor = "BUY" if trader.tilt > 0 else "SELL", abs(trader.tilt) / len(TICKERS) / TICKER_ORDER
        orders = [Order(verb, name, factor) for name in TICKERS]
    balance = 0
    for instrument in stream.sample(window.instruments, trader.decisions):
        right = stream.random() < (1 + trader.edge) / 2
        side = 1 if instrument.news_is_good == right else -1
        lean = 0.0 if instrument.is_question else trader.lean
        orders.append(Order("BUY" if side > 0 else "SELL", instrument.name, trader.order * (1 + side * lean)))
        balance += 1 if right else -1
    return orders, balance


def policy_orders(policy: str, window: MarketWindow, stream: random.Random) -> list[Order]:
    """Orders of an hour of one of `POLICIES`: an informed one follows the news of every instrument."""
    names = [one.name for one in window.instruments]
    if policy == "informed":
        answers = [choose(INFORMED_POLICY, window, AgentState(policy, name, 0, 0)) for name in names]
        return [Order(answer.partition(" ")[0], name) for answer, name in zip(answers, names, strict=True)]
    if policy == "hold":
        return [Order("HOLD", name) for name in names]
    return [Order(stream.choice(("BUY", "SELL")), stream.choice(names), OVERTRADED_FACTOR) for _ in range(OVERTRADES)]


def policy_capital(seed: int, life: int) -> int:
    """Capital of the policies in a life, dollars; drawn as the traders' is."""
    return _capital(random.Random(f"skill/{seed}/{life}/capital"))


def _capital(stream: random.Random) -> int:
    return round(min(MOST_CAPITAL, max(LEAST_CAPITAL, CAPITAL * math.exp(stream.gauss(0, CAPITAL_SIGMA)))))


# --- from orders to what a scorer sees -------------------------------------------------------------


@dataclass
class Account:
    """Whose trades are recorded, and its P&L since it began, dollars after fees."""

    agent_id: str
    capital: int
    lifetime: float = 0.0


@dataclass(frozen=True)
class Hour:
    """A window that is played, with what `market_outcomes` says of it."""

    window_id: str
    window: MarketWindow
    outcomes: pd.DataFrame
    market: Market


def hour_of(window_id: str, window: MarketWindow) -> Hour:
    """The hour in which a window is played."""
    outcomes = outcome_rows(window_id, window)
    return Hour(window_id, window, outcomes, market_of(outcomes))


def play_hour(hour: Hour, accounts: Sequence[Account], orders: Sequence[Sequence[Order]]) -> Runs:
    """What a scorer sees of an hour in which each account gives its orders; they trade in the accounts' order.

    Adds the hour's P&L to each account. A trajectory has a step an order. The state of its last step shows the
    account's P&L with this hour's in it: a scorer that reads it is told as much as can be known.
    """
    window, states, actions = hour.window, [], []
    for account, own in zip(accounts, orders, strict=True):
        for order in own:
            # The market's own order is a share of capital, so that is where the factor goes.
            states.append(AgentState(account.agent_id, order.instrument, round(account.capital * order.factor), 0))
            answer = choices(order.instrument)[VERBS.index(order.verb)]
            actions.append(parse_action(answer, window.instrument(order.instrument)))
    settled = iter(settle(window, states, actions))
    seen = []
    for account, own in zip(accounts, orders, strict=True):
        settlements = [replace(next(settled), capital=account.capital) for _ in own]
        seen.append(features(_trajectory(hour, account, settlements), hour.market))
    return Runs(window_id=hour.window_id, features=seen, market=hour.market, outcomes=hour.outcomes)


def outcome_rows(window_id: str, window: MarketWindow) -> pd.DataFrame:
    """The window's rows of `market_outcomes`, as they are made from its recorded history."""
    rows: list[dict[str, Any]] = [
        {
            "window_id": window_id,
            "instrument": market_id(window_id, one.name) if one.is_question else one.name,
            "kind": QUESTION if one.is_question else TICKER,
            "question": one.question,
            "open": one.open,
            "close": one.close,
            "change": one.move,
            "outcome": ("YES" if one.outcome else "NO") if one.is_question else "up" if one.rises else "down",
            "settled": True,
            "source": "simulated market",
        }
        for one in window.instruments
    ]
    rows = with_revision(rows)
    # By columns and as plain objects, which takes half the time: there is a frame for every hour.
    return pd.DataFrame({name: [row[name] for row in rows] for name in COLUMNS}, dtype=object)


def _trajectory(hour: Hour, account: Account, settlements: Sequence[Settlement]) -> UsableTrajectory:
    start = parse_window_id(hour.window_id)
    before = account.lifetime
    account.lifetime += math.fsum(settlement.pnl for settlement in settlements)
    return UsableTrajectory(
        trajectory_id=f"{account.agent_id}/{hour.window_id}",
        agent_id=account.agent_id,
        window_id=hour.window_id,
        start_time=start,
        end_time=start + ENDS_AFTER,
        steps=list(_steps(hour, start, account, before, settlements)),
        first_pnl=before,
        last_pnl=account.lifetime,
        window_pnl=account.lifetime - before,
        final_balance=account.capital + account.lifetime - before,
        calls=[],
        provenance="no_logprobs",
        digest="",
    )


def _steps(
    hour: Hour, start: datetime, account: Account, before: float, settlements: Sequence[Settlement]
) -> Iterator[ReadStep]:
    decided = epoch_ms(start + DECIDES_AFTER)
    for number, settlement in enumerate(settlements):
        pnl = account.lifetime if number == len(settlements) - 1 else before
        yield ReadStep(
            step_number=number,
            timestamp=decided + number,
            environment_state=KnownState(agentPnL=pnl, agentBalance=float(account.capital)),
            llm_calls=[_CALL],
            action=settled_action(hour.window_id, hour.window.instrument(settlement.instrument), settlement),
        )
