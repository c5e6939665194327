import pytest

from babylon_rl.recording.records import Action
from babylon_rl.scoring.features import direction_of, features, market_of
from babylon_rl_tests.scoring import made


def one(**fields):
    return features(made.trajectory("t", **fields), made.outcomes())


def test_exposure_is_signed_and_summed_by_instrument():
    bought, sold = one(verbs=["BUY", "BUY"]), one(verbs=["BUY", "SELL"])
    assert bought.exposure == {"ACME": 200.0} and sold.exposure == {"ACME": 0.0}
    assert bought.notional == sold.notional == {"ACME": 200.0}
    assert bought.fees == pytest.approx(0.4)


def test_only_successful_trades_count_as_exposure_and_malformed_answers_are_counted():
    failed = Action(action_type="malformed", parameters={"instrument": "ACME"}, success=False, error="no choice")
    refused = Action(action_type="open_long", parameters={"instrument": "ACME"}, success=False, error="no cash")
    steps = [made.step(0, failed, "hm"), made.step(1, refused, "BUY"), made.step(2, made.action("SELL"), "SELL")]
    result = one(steps=steps)
    assert (result.trades_tried, result.trades_succeeded, result.malformed, result.decisions) == (2, 1, 1, 3)
    assert result.exposure == {"ACME": -100.0}


def test_capital_is_the_balance_at_the_start_else_what_was_traded_else_unknown():
    assert one(balance=800.0).capital == 800.0
    assert one(balance=0.0).capital == 100.0
    assert one(balance=0.0, verb="HOLD").capital is None


@pytest.mark.parametrize(
    ("kind", "parameters", "direction"),
    [
        ("open_long", {}, 1),
        ("open_short", {}, -1),
        ("buy_yes", {}, 1),
        ("buy_no", {}, -1),
        ("BUY_SHARES", {"side": "NO"}, -1),
        ("SELL_SHARES", {"side": "YES"}, -1),
        ("SELL_SHARES", {"side": "NO"}, 1),
        ("SELL", {"side": "short"}, -1),
        ("TRADING_DECISION", {"side": "long"}, 1),
        ("close_position", {"side": "long"}, -1),
        ("hold", {}, 0),
        ("CREATE_POST", {"postId": "1"}, 0),
    ],
)
def test_direction_of_every_name_that_is_recorded(kind, parameters, direction):
    assert direction_of(Action(action_type=kind, parameters=parameters, success=True)) == direction


def test_the_markets_move_is_the_mean_of_the_tickers_only():
    market = market_of(made.outcomes())
    assert market.move == pytest.approx(0.02) and market.tickers == 3
    assert market_of(made.outcomes().iloc[3:]).move == 0.0
