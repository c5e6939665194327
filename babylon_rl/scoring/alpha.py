"""Scorer `alpha`, the default: what an agent earned beyond what the market's own move gave it.

A run's raw figure is (P&L - sum of exposure x move) / capital at risk, and its reward is the raw figure, squashed. P&L
is the window's, dollars after fees; exposure the signed dollars of its trades in a ticker; move the mean change of the
other tickers: a ticker's own move is what its trader foresaw or not, and is not the market's. A question's price
already nets its consensus, so nothing is taken off there. Capital at risk is the capital at the window's start, or what
its trades held open at once where that is more (leverage): a loss of all that was at stake is -1. Trades that close
again are not added up, so that who trades to and fro does not dilute its losses.

The squash follows the neutralisation, for what it bends must be the skill and not the market. See
`babylon_rl.scoring.values` for the value of what was not done.
"""

import math
from collections.abc import Sequence
from itertools import repeat

from babylon_rl.scoring.features import TICKER, Features, Market
from babylon_rl.scoring.seam import NO_CAPITAL, Runs, Score, Scorer, register
from babylon_rl.scoring.spoken import money
from babylon_rl.scoring.values import alpha_values, at_risk, best_in_hindsight, squash, squash_factor

# P&L of the trades and of the window may differ by so much: dollars, and a share of the window's P&L.
CENT, ROUNDING = 0.01, 1e-6


def alpha(window: Runs) -> list[Score]:
    """Reward of each run; who makes no trade gets exactly 0, whatever older positions did: holding is not paid.

    `decision_rewards` where the position of each step can be attributed (`decision_pnls`): the run's squash factor
    times (own P&L - own exposure x move) / capital at risk, exactly 0 for a step that did not trade; they sum to the
    reward. `counterfactuals`: `flat` is 0, `hold` what older positions alone gave where that is known, `best` the best
    in hindsight, at least 0 and the reward; None where it is not known.
    """
    moved = f"market {100 * window.market.move:+.1f} %"
    return [_alpha(one, window.market, moved, own) for one, own in zip(window.features, _values(window), strict=True)]


def alpha_outcomes(window: Runs) -> list[Score]:
    """The rewards and counterfactuals of `alpha` alone, for the rows of another scorer."""
    return [_outcome(one, window.market, own) for one, own in zip(window.features, _values(window), strict=True)]


def _values(window: Runs) -> Sequence[dict[str, float] | None]:
    return window.values or list(repeat(None, len(window.features)))


def _alpha(one: Features, market: Market, moved: str, values: dict[str, float] | None) -> Score:
    if one.capital is None:
        return Score(0.0, {}, f"{money(one)} {one.acted}: no capital is recorded, so no reward", NO_CAPITAL)
    risked, share, by_market, raw = _raw(one)
    reward = squash(raw)
    best = best_in_hindsight(one, market, values, reward)
    pnls = decision_pnls(one) if one.trades else None
    parts = {
        "pnl_over_capital": share,
        "exposure": one.exposure_to(TICKER) / risked,
        "market_move": market.move,
        "market_part": by_market,
        "fees_over_capital": one.fees / risked,
        "capital_at_risk": risked,
        "squashed_from": raw,
    }
    if best is not None:
        parts["regret"] = best - reward
    return Score(
        reward,
        parts,
        f"{money(one)} ({100 * share:.2f} % of ${risked:,.0f}) {one.acted}; {moved}",
        decision_rewards=_decision_rewards(one, pnls, risked, reward, raw),
        counterfactuals={"flat": 0.0, "hold": _held(one, pnls, risked), "best": best},
    )


def _outcome(one: Features, market: Market, values: dict[str, float] | None) -> Score:
    if one.capital is None:
        return Score(0.0, {}, "", NO_CAPITAL)
    risked, _, _, raw = _raw(one)
    reward = squash(raw)
    held = _held(one, decision_pnls(one) if one.trades else None, risked)
    best = best_in_hindsight(one, market, values, reward)
    return Score(reward, {}, "", counterfactuals={"flat": 0.0, "hold": held, "best": best})


def _raw(one: Features) -> tuple[float, float, float, float]:
    """Capital at risk in dollars; P&L and the market's part over it; the raw figure; of a run with a capital."""
    risked = at_risk(one.capital or 0.0, one.most_open)
    share, by_market = one.window_pnl / risked, 0.0
    if not one.trades:
        return risked, share, by_market, 0.0
    for trade in one.trades:
        by_market += trade[2]
    by_market /= risked
    return risked, share, by_market, share - by_market


def decision_pnls(one: Features) -> list[float] | None:
    """P&L of each successful trade of a run, dollars, where its window's P&L falls into them; None elsewhere.

    It does where each trade says its own and they sum to the window's within a cent or a millionth of it. What is left
    of that is rounding, and is spread evenly, so that they sum to the window's P&L.
    """
    pnls = [pnl for _, pnl, _ in one.trades if pnl is not None]
    if not pnls or len(pnls) < one.trades_succeeded:
        return None
    left = one.window_pnl - math.fsum(pnls)
    if not abs(left) <= max(CENT, ROUNDING * abs(one.window_pnl)):
        return None
    return [pnl + left / len(pnls) for pnl in pnls]


def _decision_rewards(
    one: Features, pnls: list[float] | None, risked: float, reward: float, raw: float
) -> dict[int, float] | None:
    """Reward of each step by its number; None where it is the run's alone, or where two steps share a number."""
    if len(one.step_numbers) == 1:
        return {one.step_numbers[0]: reward}
    rewards = dict.fromkeys(one.step_numbers, 0.0)
    if len(rewards) < one.steps or (pnls is None and one.trades_succeeded):
        return None
    # One factor for all of a run: each decision keeps its part of the run's reward.
    factor = squash_factor(raw) / risked
    for (step, _, by_market), pnl in zip(one.trades, pnls or (), strict=True):
        rewards[step] += factor * (pnl - by_market)
    return rewards


def _held(one: Features, pnls: list[float] | None, risked: float) -> float | None:
    """What the positions from before the window gave, squashed: all that a run gained which did not trade, and nothing
    where the window's P&L falls into its trades."""
    if not one.trades_succeeded:
        return squash(one.window_pnl / risked)
    return None if pnls is None else 0.0


ALPHA = Scorer("alpha", "2", alpha, alpha_values)
register(ALPHA)
