"""Traders whose skill is known: the edge that was planted is the edge that they have, whatever their persona."""

import random
from dataclasses import replace

import pytest

from babylon_rl.market.skill import Account, Climate, Order, hour_of, make_traders, play_hour, trader_orders
from babylon_rl.market.world import make_window
from babylon_rl.scoring.alpha import ALPHA

WINDOW = "2026-01-05T00:00"
DEMO, LEANING = Climate("demo"), Climate("leaning", leaning=True)


def play(orders, capital=1000, climate=DEMO, index=0, account=None):
    hour = hour_of(WINDOW, climate.window(0, index))
    return hour, play_hour(hour, [account or Account("a", capital)], [orders])


@pytest.mark.parametrize("climate", [DEMO, LEANING])
@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.4])
def test_a_trader_takes_the_right_side_as_often_as_its_edge_says(climate, edge):
    trader = replace(make_traders(0, 0, 0.1, 8, climate)[0], edge=edge, decisions=4)
    balances = [
        trader_orders(trader, climate.window(0, index), random.Random(index))[1] / trader.decisions
        for index in range(800)
    ]
    assert sum(balances) / len(balances) == pytest.approx(edge, abs=0.05)  # three standard errors


def test_a_trader_with_an_edge_of_one_always_gains():
    trader = replace(make_traders(0, 0, 0.1, 8, DEMO)[0], edge=1.0, tilt=0.0, decisions=4)
    for index in range(20):
        hour = hour_of(WINDOW, DEMO.window(0, index))
        runs = play_hour(
            hour, [Account("a", trader.capital)], [trader_orders(trader, hour.window, random.Random(1))[0]]
        )
        assert runs.features[0].window_pnl > 0


def test_draws_of_another_size_of_edge_have_the_same_personas():
    small, large = (make_traders(3, 5, edge, 8, DEMO) for edge in (0.05, 0.2))
    assert [replace(one, edge=0.0) for one in small] == [replace(one, edge=0.0) for one in large]
    assert [one.edge * 4 for one in small] == pytest.approx([one.edge for one in large])
    assert make_traders(3, 6, 0.2, 8, DEMO) != large


def test_a_tilt_is_a_position_of_its_share_of_capital():
    for trader in make_traders(0, 0, 0.0, 8, DEMO):
        orders, _ = trader_orders(replace(trader, decisions=0), DEMO.window(0, 0), random.Random(0))
        _, runs = play(orders, trader.capital)
        (one,) = runs.features
        assert one.exposure_to("ticker") / one.capital == pytest.approx(trader.tilt, abs=0.02)
        # The same share of each ticker is the market itself: alpha leaves the fees alone.
        assert ALPHA.score(runs)[0].reward == pytest.approx(-one.fees / one.capital, rel=0.05)


def test_who_holds_earns_exactly_nothing_and_is_paid_nothing():
    _, runs = play([Order("HOLD", "ACME"), Order("HOLD", "MOON")])
    assert runs.features[0].window_pnl == 0.0 and ALPHA.score(runs)[0].reward == 0.0


def test_records_of_an_hour_say_what_was_traded_and_the_last_state_the_lifetime():
    account = Account("a", 2000, lifetime=50.0)
    hour, runs = play([Order("BUY", "ACME", 0.5), Order("SELL", "MOON")], account=account)
    (one,) = runs.features
    acme = hour.window.instrument("ACME")
    assert one.capital == 2000 and one.steps == one.decisions == one.trades_succeeded == 2
    assert one.exposure["ACME"] == pytest.approx(100) and one.kinds["ACME"] == "ticker"
    assert one.notional[f"MOON-{WINDOW}"] == pytest.approx(10)
    assert account.lifetime == one.last_state_pnl == pytest.approx(50 + one.window_pnl)
    assert runs.market.move == pytest.approx(hour.window.market_move) and runs.market.tickers == 3
    _, alone = play([Order("BUY", "ACME", 0.5)], capital=2000)
    assert alone.features[0].window_pnl == pytest.approx(100 * acme.move - 0.2)


def test_a_drift_moves_all_tickers_and_changes_nothing_else():
    plain, drifting = make_window(4, "train", 9), make_window(4, "train", 9, common_move=(0.01, 0.01))
    assert [one.move + 0.01 for one in plain.tickers] == pytest.approx([one.move for one in drifting.tickers], abs=1e-5)
    assert [one.news for one in plain.instruments] == [one.news for one in drifting.instruments]
    assert plain.instrument("MOON") == drifting.instrument("MOON")
