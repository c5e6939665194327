"""The answers an agent may give, what they mean, and what a malformed answer is."""

from dataclasses import dataclass

from babylon_rl.market.world import Instrument

VERBS = ("BUY", "SELL", "HOLD")
MALFORMED = "malformed"

_TICKER_ACTIONS = {"BUY": "open_long", "SELL": "open_short", "HOLD": "hold"}
_QUESTION_ACTIONS = {"BUY": "buy_yes", "SELL": "buy_no", "HOLD": "hold"}


@dataclass(frozen=True)
class ParsedAction:
    """A valid answer. `direction`: +1 long or YES, -1 short or NO, 0 nothing."""

    instrument: str
    action_type: str
    direction: int


@dataclass(frozen=True)
class MalformedAction:
    """An answer that is none of the choices; it trades nothing and counts as a failed action."""

    instrument: str
    error: str
    action_type: str = MALFORMED
    direction: int = 0


def choices(instrument: str) -> list[str]:
    """The answers that an agent covering `instrument` may give, in a fixed order."""
    return [f"{verb} {instrument}" for verb in VERBS]


def parse_action(text: str, instrument: Instrument) -> ParsedAction | MalformedAction:
    """The action that an answer means: one of `choices`, letter by letter, but for white space around it."""
    allowed = choices(instrument.name)
    answer = text.strip()
    if answer not in allowed:
        shown = answer if len(answer) <= 80 else answer[:77] + "..."
        return MalformedAction(instrument.name, f"{shown!r} is not one of: {', '.join(allowed)}")
    verb = VERBS[allowed.index(answer)]
    meaning = _QUESTION_ACTIONS if instrument.is_question else _TICKER_ACTIONS
    return ParsedAction(instrument.name, meaning[verb], {"BUY": 1, "SELL": -1, "HOLD": 0}[verb])
