"""What every legal answer of a decision would have earned: from the quotes that were recorded when it was taken, and
from where the market stood at the window's end.

Exact where orders are small against the market: an answer that was not given is valued without the price impact it
would have had on others.
"""

import math
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.recording.records import Quote
from babylon_rl.scoring.features import TICKER, Market

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory


def quotes_of(trajectory: "UsableTrajectory") -> list[Quote]:
    """The quotes of the trajectory's only decision; none where there are several, or where they are not recorded.

    With several decisions the window's reward belongs to all of them, and none has a value of its own.
    """
    calls = [call for call in trajectory.calls if call.choices]
    if len(trajectory.steps) != 1 or len(trajectory.calls) != 1 or not calls:
        return []
    try:
        quotes = msgspec.convert(trajectory.steps[0].environment_state.get("quotes") or [], list[Quote])
    except msgspec.ValidationError:
        return []  # another application's own field of that name
    return quotes if {quote.answer for quote in quotes} == set(calls[0].choices or ()) else []


def alpha_values(
    trajectory: "UsableTrajectory", capital: float | None, market: Market, outcomes: pd.DataFrame
) -> dict[str, float] | None:
    """Reward `alpha` of each legal answer, by its text; None where one of them cannot be known.

    `outcomes`: the window's rows of `market_outcomes`.
    """
    quotes = quotes_of(trajectory)
    if not quotes or not capital:
        return None
    rows = {str(row["instrument"]): row for row in outcomes.to_dict("records")}
    values = {quote.answer: _alpha(quote, rows.get(quote.instrument), capital, market) for quote in quotes}
    known = {answer: value for answer, value in values.items() if value is not None and math.isfinite(value)}
    return known if len(known) == len(values) else None


def _alpha(quote: Quote, outcome: dict[str, Any] | None, capital: float, market: Market) -> float | None:
    """P&L of the quote over capital, less what the market's own move gave to it; None where its end is not known."""
    if quote.side is None:
        return 0.0
    if outcome is None:
        return None
    if outcome["kind"] == TICKER:
        change = outcome.get("change")
        if change is None or not math.isfinite(change):
            return None
        gross = quote.exposure * float(change)
    else:
        if outcome.get("outcome") not in ("YES", "NO"):
            return None
        gross = (quote.shares if outcome["outcome"] == quote.side else 0.0) - quote.notional
    return (gross - quote.fees - quote.exposure * market.move) / capital
