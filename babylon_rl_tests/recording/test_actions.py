import pytest

from babylon_rl.recording.actions import kind_of
from babylon_rl.recording.records import Action


def kind(name, parameters=None, **fields):
    return kind_of(Action(action_type=name, parameters=parameters, success=True, **fields))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "trade") for name in ("TRADING_DECISION", "BUY_SHARES", "SELL_SHARES", "open_long", "open_short",
                                       "buy_yes", "buy_no", "close_position", "BUY", "Sell", "buyShares", "OPEN-LONG")),
        *((name, "post") for name in ("CREATE_POST", "post")),
        *((name, "comment") for name in ("CREATE_COMMENT", "POST_COMMENT", "reply")),
        *((name, "message") for name in ("SEND_MESSAGE", "dm")),
        *((name, "hold") for name in ("HOLD", "hold", "no_action")),
        ("pending", "pending"),
        ("malformed", "malformed"),
        *((name, "other") for name in ("BUYBACK_NEWS", "REPOST", "UNBUY", "POSTPONE", "SELLER_RATING", "", "HOLDING")),
    ],
)  # fmt: skip
def test_an_action_is_what_its_whole_name_says(name, expected):
    assert kind(name) == expected


def test_a_decision_to_hold_is_no_trade():
    assert kind("TRADING_DECISION", {"action": "HOLD"}) == "hold"
    assert kind("TRADING_DECISION", {"decision": {"action": "hold"}}) == "hold"
    assert kind("TRADING_DECISION", {"side": "YES"}, result={"action": "wait"}) == "hold"
    assert kind("TRADING_DECISION", {"side": "YES", "ticker": "HOLD"}) == "trade"
    assert kind("BUY_SHARES", {"action": "hold"}) == "trade"
    assert kind("TRADING_DECISION", "all of the state") == "trade"


def test_a_plugins_action_name_decides_where_the_type_says_nothing():
    assert kind("EXECUTE_ACTION", action_name="BUY_SHARES") == "trade"
    assert kind("CREATE_POST", action_name="BUY_SHARES") == "post"
