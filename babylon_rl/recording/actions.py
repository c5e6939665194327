"""What an action is: a trade, a post, a wait; by its whole name, never by a part of it.

The application and its plugins name actions in upper and lower case, with underscores or in camel case. A name that is
not listed here is `other`: `BUYBACK_NEWS` is no purchase and `REPOST` no post.
"""

import functools
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from babylon_rl.recording.records import Action


class Kind(StrEnum):
    """What an action is, whether it succeeded or not."""

    TRADE = "trade"
    POST = "post"
    COMMENT = "comment"
    MESSAGE = "message"
    HOLD = "hold"
    PENDING = "pending"
    MALFORMED = "malformed"
    OTHER = "other"


# A decision to trade: its parameters say whether it is one or a hold.
DECISIONS = frozenset({"trading_decision", "trade_decision", "trade", "trading", "execute_trade", "make_trade"})

NAMES: Mapping[Kind, frozenset[str]] = {
    Kind.TRADE: DECISIONS
    | frozenset(
        "buy sell long short buy_shares sell_shares buy_yes buy_no sell_yes sell_no open_long open_short close_long "
        "close_short open_position close_position place_order place_trade market_buy market_sell "
        "buy_prediction sell_prediction buy_prediction_shares sell_prediction_shares open_perp open_perp_position "
        "close_perp close_perp_position perp_trade prediction_trade".split()
    ),
    Kind.POST: frozenset("post create_post make_post write_post publish_post".split()),
    Kind.COMMENT: frozenset(
        "comment create_comment make_comment post_comment write_comment comment_on_post add_comment reply "
        "reply_to_post reply_to_comment".split()
    ),
    Kind.MESSAGE: frozenset(
        "message send_message dm send_dm direct_message send_direct_message reply_message reply_to_message "
        "respond_to_message chat send_chat chat_message group_message send_group_message".split()
    ),
    Kind.HOLD: frozenset("hold wait none no_action no_op noop no_trade pass skip idle do_nothing".split()),
    Kind.PENDING: frozenset({"pending"}),
    Kind.MALFORMED: frozenset({"invalid", "malformed", "parse_error"}),
}
_KINDS = {name: kind for kind, names in NAMES.items() for name in names}
_SAYS = ("action", "decision", "trade", "side", "type")

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_GAP = re.compile(r"[\s\-_.]+")


def kind_of(action: Action) -> Kind:
    """What the action is. A plugin's `actionName` decides where the type says nothing."""
    kind, decides = _read(action.action_type)
    if kind is Kind.OTHER and action.action_name:
        kind, decides = _read(action.action_name)
    return Kind.HOLD if decides and _says_hold(action) else kind


@functools.lru_cache(maxsize=4096)
def _read(name: str) -> tuple[Kind, bool]:
    """What an action of that name is, and whether its parameters may make it a hold."""
    name = normal(name)
    return _KINDS.get(name, Kind.OTHER), name in DECISIONS


@functools.lru_cache(maxsize=4096)
def normal(name: str) -> str:
    """A name in one spelling: lower case, words joined by underscores."""
    return _GAP.sub("_", _HUMP.sub("_", name.strip())).lower()


def _says_hold(action: Action) -> bool:
    for source in (action.result, action.parameters):
        if type(source) is dict:
            for name in _SAYS:
                if (value := source.get(name)) is not None and _is_hold(value):
                    return True
    return False


def _is_hold(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("action")
    return isinstance(value, str) and len(value) <= 40 and _read(value)[0] is Kind.HOLD
