"""What the actions of a window earn: order sizes, quotes, fees, fills, and profit and loss at the hour's close.

The P&L of a window counts the trades of this hour only. Holdings an agent brought along are background: they are shown
in the prompt and not marked, so that HOLD earns exactly nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl.errors import BabylonError
from babylon_rl.market.actions import MalformedAction, ParsedAction, choices
from babylon_rl.market.agents import AgentState
from babylon_rl.market.world import Instrument, MarketWindow
from babylon_rl.pricing import Cpmm
from babylon_rl.recording.records import Quote

TICKER_ORDER = 0.10  # of capital
TICKER_FEE = 0.002  # of the order
QUESTION_ORDER = 0.005  # of capital: a wrong answer loses all of it
QUESTION_FEE = 0.02  # of the stake


@dataclass(frozen=True)
class Settlement:
    """What one agent's action came to, in dollars.

    `notional`: size of the order. `exposure`: signed dollars that move with the tickers' market (long +, short -; zero
    for a question, which pays by its own outcome). `entry_price`: dollars a share. `pnl` is after `fees`.
    """

    agent_id: str
    instrument: str
    action_type: str
    success: bool
    error: str | None
    capital: float
    notional: float
    exposure: float
    entry_price: float | None
    shares: float
    fees: float
    pnl: float


def quotes(window: MarketWindow, agent: AgentState, name: str) -> list[Quote]:
    """A quote for each answer that the agent may give, at the hour's opening; nothing in it is known only later.

    `name`: under which `market_outcomes` lists the instrument.
    """
    instrument = window.instrument(agent.instrument)
    buy, sell, hold = choices(agent.instrument)
    if instrument.maker is not None:
        stake = QUESTION_ORDER * agent.capital
        offers = [
            (buy, "YES", stake, 0.0, QUESTION_FEE * stake, instrument.maker.buy("yes", stake)[0]),
            (sell, "NO", stake, 0.0, QUESTION_FEE * stake, instrument.maker.buy("no", stake)[0]),
        ]
    else:
        notional = TICKER_ORDER * agent.capital
        shares = notional / instrument.open
        offers = [
            (buy, "long", notional, notional, TICKER_FEE * notional, shares),
            (sell, "short", notional, -notional, TICKER_FEE * notional, shares),
        ]
    return [
        Quote(instrument=name, answer=answer, side=side, notional=size, exposure=exposure, fees=fees, shares=shares)
        for answer, side, size, exposure, fees, shares in [*offers, (hold, None, 0.0, 0.0, 0.0, 0.0)]
    ]


def settle(
    window: MarketWindow, agents: Sequence[AgentState], actions: Sequence[ParsedAction | MalformedAction]
) -> list[Settlement]:
    """Settlement of each agent's action, in the agents' order, which is also the order in which they trade.

    Ticker orders fill at the opening price and close at the hour's last; stakes on the question go through its maker,
    so an earlier agent's stake moves the price of a later one's, and each right share pays a dollar.
    """
    if len(agents) != len(actions):
        raise BabylonError(f"{len(agents)} agents have {len(actions)} actions; each agent needs exactly one.")
    makers = {i.name: i.maker for i in window.instruments if i.maker is not None}
    settled = []
    for agent, action in zip(agents, actions, strict=True):
        if action.instrument != agent.instrument:
            raise BabylonError(f"{agent.agent_id} covers {agent.instrument} and cannot trade {action.instrument}.")
        instrument = window.instrument(agent.instrument)
        if action.direction == 0:
            settled.append(_nothing(agent, action))
        elif instrument.is_question:
            settlement, makers[instrument.name] = _stake(agent, action, instrument, makers[instrument.name])
            settled.append(settlement)
        else:
            settled.append(_order(agent, action, instrument))
    return settled


def _nothing(agent: AgentState, action: ParsedAction | MalformedAction) -> Settlement:
    error = action.error if isinstance(action, MalformedAction) else None
    return Settlement(
        agent.agent_id, agent.instrument, action.action_type, error is None, error, agent.capital, 0, 0, None, 0, 0, 0
    )


def _order(agent: AgentState, action: ParsedAction, ticker: Instrument) -> Settlement:
    notional = TICKER_ORDER * agent.capital
    fees = TICKER_FEE * notional
    return Settlement(
        agent_id=agent.agent_id,
        instrument=ticker.name,
        action_type=action.action_type,
        success=True,
        error=None,
        capital=agent.capital,
        notional=notional,
        exposure=action.direction * notional,
        entry_price=ticker.open,
        shares=notional / ticker.open,
        fees=fees,
        pnl=action.direction * notional * ticker.move - fees,
    )


def _stake(agent: AgentState, action: ParsedAction, question: Instrument, maker: Cpmm) -> tuple[Settlement, Cpmm]:
    stake = QUESTION_ORDER * agent.capital
    fees = QUESTION_FEE * stake
    shares, after = maker.buy("yes" if action.direction > 0 else "no", stake)
    right = question.outcome == (action.direction > 0)
    settlement = Settlement(
        agent_id=agent.agent_id,
        instrument=question.name,
        action_type=action.action_type,
        success=True,
        error=None,
        capital=agent.capital,
        notional=stake,
        exposure=0.0,
        entry_price=stake / shares,
        shares=shares,
        fees=fees,
        pnl=(shares if right else 0.0) - stake - fees,
    )
    return settlement, after
