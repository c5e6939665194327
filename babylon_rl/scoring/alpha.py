"""Scorer `alpha`, the default: what an agent earned beyond what the market's own move gave it."""

from babylon_rl.scoring.features import TICKER, Features, Market
from babylon_rl.scoring.seam import NO_CAPITAL, Runs, Score, Scorer, register
from babylon_rl.scoring.spoken import money
from babylon_rl.scoring.values import alpha_values


def alpha(window: Runs) -> list[Score]:
    """P&L after fees over capital, less the part that the market's own move gave to the ticker exposure.

    A question's price already nets its consensus, so nothing is taken off there. Who makes no trade gets exactly 0,
    whatever older positions did: holding is not paid and not punished.
    """
    return [_alpha(one, window.market) for one in window.features]


def _alpha(one: Features, market: Market) -> Score:
    if one.capital is None:
        return Score(0.0, {}, f"{money(one)} {one.acted}: no capital is recorded, so no reward", NO_CAPITAL)
    share = one.window_pnl / one.capital
    exposure = one.exposure_to(TICKER) / one.capital
    by_market = exposure * market.move
    parts = {
        "pnl_over_capital": share,
        "exposure": exposure,
        "market_move": market.move,
        "market_part": by_market,
        "fees_over_capital": one.fees / one.capital,
    }
    reward = share - by_market if one.trades_succeeded else 0.0
    reason = f"{money(one)} ({100 * share:.2f} % of ${one.capital:,.0f}) {one.acted}; market {100 * market.move:+.1f} %"
    return Score(reward, parts, reason)


ALPHA = Scorer("alpha", "1", alpha, alpha_values)
register(ALPHA)
