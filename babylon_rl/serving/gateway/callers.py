"""Who calls, and for what: key, agent, window and step, read from a call's headers and body."""

import itertools
import uuid
from functools import lru_cache

import msgspec

from babylon_rl.errors import WindowIdError
from babylon_rl.serving.gateway.calls import Body
from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.gateway.refusals import forbidden, invalid
from babylon_rl.windows import parse_window_id

LONGEST = 256  # characters of an id
_OWN, _numbers = uuid.uuid4().hex, itertools.count()  # ids of requests that come without one
MOST_STEP = 2**31 - 1  # PostgreSQL's integer


class Caller(msgspec.Struct, frozen=True):
    """The context of a call. `window_id`: None for the hour in which it is asked."""

    key: Key
    request_id: str
    agent_id: str
    window_id: str | None
    trajectory_id: str | None
    step_number: int | None


def caller_of(headers: dict[bytes, bytes], key: Key, body: Body) -> Caller:
    """The context that headers and body name; Refused where they name what cannot be, or another key's agent."""
    agent = _text(headers, b"x-babylon-agent")
    if agent is not None and key.agent_id is not None and agent != key.agent_id:
        raise forbidden(f"Key {key.key_id} speaks for agent {key.agent_id!r} only, not for {agent!r}.", "agent")
    if agent is None:
        user = _checked(body.user, "user") if isinstance(body.user, str) and body.user else None
        agent = key.agent_id or user or key.key_id
    window = _text(headers, b"x-babylon-window")
    if window is not None:
        _check_window(window)
    request = _text(headers, b"idempotency-key") or _text(headers, b"x-request-id") or f"{_OWN}-{next(_numbers)}"
    step = _text(headers, b"x-babylon-step")
    return Caller(key, request, agent, window, _text(headers, b"x-babylon-trajectory"), _step(step))


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return _checked(value.decode("utf-8", "replace"), name.decode()) if value else None


def _checked(text: str, name: str) -> str:
    if len(text) > LONGEST or not text.isprintable():
        raise invalid(f"{name} is longer than {LONGEST} characters, or holds some that cannot be printed.", "context")
    return text


def _step(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST_STEP:
        raise invalid(f"x-babylon-step is {text!r}; it is the step's number, from 0.", "context")
    return int(text)


@lru_cache(maxsize=256)
def _check_window(window_id: str) -> None:
    try:
        parse_window_id(window_id)
    except WindowIdError as error:
        raise invalid(f"x-babylon-window: {error}", "context") from None
