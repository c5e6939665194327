"""What was not done would have earned, in the unit of reward `alpha`: every legal answer of a decision, from the quotes
that were recorded when it was taken and from where the market stood at the window's end; and the best in hindsight.

Exact where orders are small against the market: an answer that was not given is valued without the price impact it
would have had on others.
"""

import math
from typing import TYPE_CHECKING

import msgspec
import pandas as pd

from babylon_rl.recording.records import Quote
from babylon_rl.scoring.features import Features, Market

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory

# Rewards stay within this share of capital at risk: 10 % in an hour.
LIMIT = 0.1


def squash_factor(raw: float) -> float:
    """What the raw figure is multiplied by to be squashed: 1 / sqrt(1 + (raw / LIMIT)^2), between 0 and 1."""
    return LIMIT / math.hypot(raw, LIMIT)


def squash(raw: float) -> float:
    """raw / sqrt(1 + (raw / LIMIT)^2), the algebraic sigmoid: odd, slope 1 at 0, increasing, within +-LIMIT.

    A clamp makes all of a tail equal, and tanh does from 19 times the limit on, where it rounds to 1 as a double. This
    one approaches its limit like 1/raw^2 and keeps the order of tails up to ten million times the limit. A usual hour
    (0.5 % of capital) is reduced by 0.12 % of itself.
    """
    # Not raw * factor: for a huge figure that is 0 * inf.
    return LIMIT * (raw / math.hypot(raw, LIMIT))


def at_risk(capital: float, most_open: float) -> float:
    """Dollars that rewards are shares of: the capital, or what was open at once where that is more."""
    return capital if capital > most_open else most_open


def quotes_of(trajectory: "UsableTrajectory") -> list[Quote]:
    """The quotes of the trajectory's only decision; none where there are several, or where they are not recorded.

    With several decisions the window's reward belongs to all of them, and none has a value of its own.
    """
    calls, steps = trajectory.calls, trajectory.steps
    if len(calls) != 1 or len(steps) != 1 or not calls[0].choices:
        return []
    told = steps[0].environment_state.get("quotes")
    if type(told) is not list:
        return []
    try:
        quotes = [msgspec.convert(quote, Quote) for quote in told]
    except msgspec.ValidationError:
        return []  # another application's own field of that name
    return quotes if {quote.answer for quote in quotes} == set(calls[0].choices) else []


def alpha_values(
    trajectory: "UsableTrajectory", capital: float | None, market: Market, outcomes: pd.DataFrame | None = None
) -> dict[str, float] | None:
    """Reward `alpha` of each legal answer, by its text; None where one of them cannot be known.

    `capital`: dollars at the window's start. `outcomes`: what other scorers' values may look at beside the market.
    """
    quotes = quotes_of(trajectory)
    if not quotes or not capital:
        return None
    values = {}
    for quote in quotes:
        value = _alpha(quote, capital, market)
        if value is None or not math.isfinite(value):
            return None
        values[quote.answer] = value
    return values


def _alpha(quote: Quote, capital: float, market: Market) -> float | None:
    """P&L of the quote over capital at risk, less what the market's own move gave to it, squashed; None where its end
    is not known."""
    if quote.side is None:
        return 0.0
    if quote.instrument in market.changes:
        gross = quote.exposure * market.changes[quote.instrument]
    elif quote.instrument in market.answers:
        gross = (quote.shares if market.answers[quote.instrument] == quote.side else 0.0) - quote.notional
    else:
        return None
    by_market = quote.exposure * market.move_around(quote.instrument)
    return squash((gross - quote.fees - by_market) / at_risk(capital, abs(quote.notional)))


def best_in_hindsight(
    one: Features, market: Market, values: dict[str, float] | None, reward: float = 0.0
) -> float | None:
    """The most that the run could have earned in the window, as a reward: at least 0, for it need not have traded.

    The largest of its answers' `values` where they are known. Elsewhere all dollars that it traded, at its own rate of
    fees, in the best instrument and side: tickers by their change beyond that of the others, questions that it traded
    by the price that it met. None where it traded nothing or no end is known. Never less than `reward`: it was earned.
    """
    if values is not None:
        return max(0.0, reward, *values.values())
    traded = sum(one.notional.values())
    if one.capital is None or traded <= 0:
        return None
    gain = market.furthest if market.changes else -math.inf
    for question, price in one.yes_prices.items():
        answer = market.answers.get(question)
        if answer is not None:
            gain = max(gain, 1 / (price if answer == "YES" else 1 - price) - 1)
    if gain < 0:
        return None
    raw = (traded * gain - one.fees) / at_risk(one.capital, traded)
    return max(0.0, reward, squash(raw))
