"""From the text of `stepsJson` to steps, or to the reason why there are none; whatever the bytes are, nothing raises.

Most rows take one pass of a typed decoder. What it refuses is looked at again by a patient one, which mends what can
be mended without inventing anything (absent optional keys, half a surrogate pair) and names what cannot.
"""

import contextlib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from babylon_rl.database.values import clean_text
from babylon_rl.recording.reasons import TEXTS, Reason
from babylon_rl.recording.records import ReadStep, UnreadStep

LONGEST_DETAIL = 300
LONGEST_INTEGER = 400  # digits; a double ends at 309
CALL_TEXTS = ("systemPrompt", "userPrompt", "response")

# What may be left of a value or an escape where a text was cut in it.
_STUMP = re.compile(r"(?:-?[0-9.eE+-]*|\\?(?:u[0-9a-fA-F]{0,4})?|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|\s*)\Z")


class Refusal(Exception):
    """A row cannot be used: the reason's name and a detail in words."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        detail = clean_text(detail or TEXTS[reason])
        detail = detail if len(detail) <= LONGEST_DETAIL else detail[: LONGEST_DETAIL - 1] + "…"
        super().__init__(detail)
        self.reason, self.detail = reason.value, detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """Steps of a row. `mended`: (step, call) by place, whose texts held half a surrogate pair, which is U+FFFD here.

    `said`: digest of what they say, rewards left out. `conflict`: what the log of calls says against the steps.
    """

    steps: list[ReadStep] | list[UnreadStep]
    said: bytes
    mended: frozenset[tuple[int, int]] = frozenset()
    conflict: Refusal | None = None


_steps = msgspec.json.Decoder(list[ReadStep])
_unread = msgspec.json.Decoder(list[UnreadStep])
# JavaScript writes 100.0 back as 100.
_anything = msgspec.json.Decoder(float_hook=lambda text: _plain(float(text)))
# A step's reward, which the application's trainer rewrites in place. Inside a text the quotes are escaped.
_REWARD, _REWARDS_OWN = b'"reward":', b"-+.0123456789eEnul"


def decode_steps(text: bytes | str, *, texts: bool = True) -> Decoded:
    """Steps of a row, at least one, none of them pending. Refusal otherwise.

    `texts` False: calls may come with their texts unread (`UnreadCall`); the same rows are refused then.
    """
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        decoded = Decoded((_steps if texts else _unread).decode(text), _said(text))
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        decoded = _patiently(text, error)
    _refuse_unfinished(decoded.steps)
    return decoded


def _said(text: bytes) -> bytes:
    """Digest of what the steps say, in the spelling in which JavaScript writes them back."""
    if _loosely_spelled(text):
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            text = msgspec.json.encode(_anything.decode(text))
    first, *others = text.split(_REWARD)
    return hashlib.sha256(b"".join([first, *[part.lstrip(_REWARDS_OWN) for part in others]])).digest()


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _loosely_spelled(text: bytes) -> bool:
    """Whether there is space between keys and values, by the look of the first ones."""
    return text[:2] != b"[{" or b'": ' in text[:80] or b", " in text[:80]


def _refuse_unfinished(steps: list[ReadStep]) -> None:
    if not steps:
        raise Refusal(Reason.EMPTY_STEPS)
    for step in steps:
        if step.action.action_type == "pending":
            raise Refusal(Reason.UNFINISHED, f"step {step.step_number} never came to an action")


class _Numbers:
    """Numbers of a text as Python reads them; what no double holds is kept in mind and stands as null."""

    def __init__(self) -> None:
        self.wrong: str | None = None

    def constant(self, text: str) -> None:
        self.wrong = self.wrong or text

    def real(self, text: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            return self.constant(text[:40])
        return value if math.isfinite(value) else self.constant(text[:40])

    def whole(self, text: str) -> float | int | None:
        if len(text) > LONGEST_INTEGER:
            return self.constant(f"an integer of {len(text)} digits")
        value = int(text)
        try:
            # As the typed decoder reads what 64 bits do not hold.
            return value if -(2**63) <= value < 2**64 else float(value)
        except OverflowError:
            return self.constant(f"an integer of {len(text)} digits")


def _patiently(text: bytes, error: Exception) -> Decoded:
    """As `decode_steps` for a text that the typed decoder refused with `error`. Refusal where it cannot be mended."""
    numbers = _Numbers()
    value = _loaded(text, numbers)
    if value is None:
        raise Refusal(Reason.TEXT_NULL)
    if not isinstance(value, list):
        raise Refusal(Reason.NOT_A_LIST, f"stepsJson is {_kind(value)}")
    try:
        mended = frozenset(_surrogates(value))
        steps = msgspec.convert([_whole_step(step) for step in value], list[ReadStep])
    except msgspec.ValidationError as wrong:
        raise Refusal(Reason.INVALID_STEPS, str(wrong)) from None
    except (RecursionError, OverflowError):
        raise Refusal(Reason.INVALID_JSON, f"stepsJson cannot be read: {error}") from None
    if numbers.wrong is not None:
        _refuse_unfinished(steps)
        raise Refusal(Reason.NON_FINITE_NUMBER, f"stepsJson holds {numbers.wrong}")
    return Decoded(steps, _said(text), mended=mended)


def _loaded(encoded: bytes, numbers: _Numbers) -> Any:
    try:
        text = encoded.decode()
    except UnicodeDecodeError as error:
        raise Refusal(Reason.INVALID_JSON, f"stepsJson is not UTF-8: {error.reason} at {error.start}") from None
    try:
        # Control characters in texts are JavaScript's to escape; strict JSON, as the typed decoder reads it.
        return json.loads(text, parse_constant=numbers.constant, parse_float=numbers.real, parse_int=numbers.whole)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or (
            not error.msg.startswith("Extra data") and _STUMP.match(text, error.pos) is not None
        )
        reason = Reason.CUT_OFF_JSON if cut else Reason.INVALID_JSON
        said = f"{error.msg} at character {error.pos} of {len(text)}"
        raise Refusal(reason, f"{TEXTS[reason]}: {said}") from None
    except RecursionError:
        raise Refusal(Reason.INVALID_JSON, "stepsJson is nested too deeply") from None
    except ValueError as error:
        raise Refusal(Reason.INVALID_JSON, str(error)) from None


def _kind(value: Any) -> str:
    names = {dict: "an object", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _surrogates(steps: list[Any]) -> list[tuple[int, int]]:
    """Calls, by place of step and call, whose texts UTF-8 cannot hold."""
    found = []
    for at, step in enumerate(steps):
        calls = step.get("llmCalls") if isinstance(step, dict) else None
        for number, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict) and any(_halved(call.get(name)) for name in CALL_TEXTS):
                found.append((at, number))
    return found


def _halved(value: Any) -> bool:
    return isinstance(value, str) and clean_text(value.replace("\x00", "")) != value.replace("\x00", "")


def _whole_step(step: Any) -> Any:
    """The step with what may be absent or null in it filled by what stands for nothing."""
    if not isinstance(step, dict):
        return step
    step = _mended(step)
    calls, action = step.get("llmCalls"), step.get("action")
    return {
        **step,
        "timestamp": step.get("timestamp") or 0,
        "environmentState": {} if step.get("environmentState") is None else step["environmentState"],
        "providerAccesses": [] if step.get("providerAccesses") is None else step["providerAccesses"],
        "llmCalls": [] if calls is None else [_whole_call(c) for c in calls] if isinstance(calls, list) else calls,
        "action": _whole_action(action) if isinstance(action, dict) else action,
        "reward": _number(step.get("reward")),
        "stepId": _text(step.get("stepId")),
    }


def _whole_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    texts = {name: call[name] if isinstance(call.get(name), str) else "" for name in ("model", "purpose", *CALL_TEXTS)}
    limit = _number(call.get("maxTokens"))
    others = ("modelVersion", "reasoning", "actionType", "callId")
    return {
        **texts,
        "temperature": _number(call.get("temperature")),
        "maxTokens": None if limit is None else int(limit),
        "latencyMs": _number(call.get("latencyMs")),
        **{name: _text(call.get(name)) for name in others},
    }


def _whole_action(action: dict[str, Any]) -> dict[str, Any]:
    others = ("error", "reasoning", "actionName")
    return {**action, "parameters": action.get("parameters"), **{name: _text(action.get(name)) for name in others}}


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    """A text; what was recorded in its place, as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _mended(value: Any) -> Any:
    """The value with texts that UTF-8 holds, keys included; NUL stays."""
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, dict):
        return {_whole_text(key): _mended(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_mended(one) for one in value]
    return value


def _whole_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
