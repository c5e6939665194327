"""Market makers: prices sum to one, losses are bounded, nothing is won by going round."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.pricing import Cpmm, Lmsr

pools = st.builds(Cpmm, st.floats(10, 1e5), st.floats(10, 1e5))
sides = st.sampled_from(["yes", "no"])
dollars = st.floats(0.01, 1e4)
fees = st.floats(0, 0.2)
lmsrs = st.builds(Lmsr, st.floats(5, 500), st.lists(st.floats(-200, 200), min_size=2, max_size=6).map(tuple))


@given(st.floats(0.01, 0.99), st.floats(1, 1e6))
def test_a_maker_opened_at_a_probability_stands_there(probability, liquidity):
    maker = Cpmm.at(probability, liquidity)
    assert maker.probability == pytest.approx(probability)
    assert maker.yes_shares * maker.no_shares == pytest.approx(liquidity**2)


@given(pools, sides, dollars, fees)
def test_buying_keeps_the_product_and_makes_the_side_likelier(maker, side, amount, fee):
    shares, after = maker.buy(side, amount, fee)
    assert after.yes_shares * after.no_shares == pytest.approx(maker.yes_shares * maker.no_shares)
    assert (after.probability - maker.probability) * (1 if side == "yes" else -1) >= 0
    # A share costs more than the price before the trade and, like any share, less than the dollar that it may pay.
    price = maker.probability if side == "yes" else 1 - maker.probability
    assert amount * (1 - fee) / shares >= price * (1 - 1e-9)
    assert shares >= amount * (1 - fee)


@given(pools, sides, dollars, fees)
def test_no_profit_from_buying_and_selling_back(maker, side, amount, fee):
    shares, after = maker.buy(side, amount, fee)
    back, end = after.sell(side, shares, fee)
    assert back <= amount * (1 - fee) ** 2 * (1 + 1e-6)
    assert end.probability == pytest.approx(maker.probability, rel=1e-6)


@given(pools, sides, dollars, dollars)
def test_two_purchases_cost_what_one_does_without_fees(maker, side, first, second):
    one, after_one = maker.buy(side, first + second)
    a, between = maker.buy(side, first)
    b, after_two = between.buy(side, second)
    assert a + b == pytest.approx(one, rel=1e-6)
    assert after_two.probability == pytest.approx(after_one.probability)


@given(pools, st.lists(st.tuples(sides, dollars), max_size=8))
def test_the_constant_product_maker_never_loses_more_than_it_put_in(maker, trades):
    paid, sold = 0.0, {"yes": 0.0, "no": 0.0}
    state = maker
    for side, amount in trades:
        shares, state = state.buy(side, amount)
        paid += amount
        sold[side] += shares
    put_in = max(maker.yes_shares, maker.no_shares)
    assert max(sold.values()) - paid <= put_in + 1e-6 * (1 + paid)


@given(lmsrs)
def test_lmsr_prices_are_probabilities_that_sum_to_one(maker):
    assert math.fsum(maker.prices) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in maker.prices)


@given(lmsrs, st.data())
def test_lmsr_costs_do_not_depend_on_the_path(maker, data):
    n = len(maker.quantities)
    trades = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.floats(-100, 100)), max_size=6))
    order = data.draw(st.permutations(trades))
    totals, ends = [], []
    for path in (trades, order):
        total, state = 0.0, maker
        for outcome, shares in path:
            cost, state = state.trade(outcome, shares)
            total += cost
        totals.append(total)
        ends.append(state.prices)
    assert totals[0] == pytest.approx(totals[1], abs=1e-6)
    assert ends[0] == pytest.approx(ends[1])


@given(lmsrs, st.data())
def test_no_profit_from_an_lmsr_round_trip(maker, data):
    outcome = data.draw(st.integers(0, len(maker.quantities) - 1))
    shares = data.draw(st.floats(-200, 200))
    cost, after = maker.trade(outcome, shares)
    back, _ = after.trade(outcome, -shares)
    assert cost + back == pytest.approx(0, abs=1e-6)
    # Nothing is free: a share costs between nothing and a dollar.
    assert min(0, shares) - 1e-6 <= cost <= max(0, shares) + 1e-6


@given(st.integers(2, 6), st.floats(5, 500), st.data())
def test_an_lmsr_maker_never_loses_more_than_b_ln_n(outcomes, b, data):
    maker = state = Lmsr.open(outcomes, b)
    assert maker.prices == pytest.approx([1 / outcomes] * outcomes)
    earned = 0.0
    for outcome, shares in data.draw(
        st.lists(st.tuples(st.integers(0, outcomes - 1), st.floats(-300, 300)), max_size=8)
    ):
        cost, state = state.trade(outcome, shares)
        earned += cost
    assert max(state.quantities) - earned <= maker.max_loss + 1e-6


@pytest.mark.parametrize("side, amount, fee", [("maybe", 1, 0), ("yes", -1, 0), ("yes", math.nan, 0), ("yes", 1, 1)])
def test_nonsense_trades_are_refused(side, amount, fee):
    with pytest.raises(ValueError):
        Cpmm(100, 100).buy(side, amount, fee)


def test_nonsense_makers_are_refused():
    for yes, no in ((0, 1), (1, -1), (math.inf, 1)):
        with pytest.raises(ValueError):
            Cpmm(yes, no)
    with pytest.raises(ValueError):
        Lmsr(0, (0, 0))
    with pytest.raises(ValueError):
        Lmsr(1, (0,))
    with pytest.raises(ValueError):
        Lmsr(1, (0, 0)).cost(2, 1)
