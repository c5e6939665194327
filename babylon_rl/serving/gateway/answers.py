"""An upstream's answer, plain or streamed: what was sampled, and the bytes that the caller gets.

What was put in for recording is taken out; everything else passes as it came, also what is not understood here.
"""

import contextlib
from typing import Annotated, Any

import msgspec

from babylon_rl.serving.gateway.calls import Added

TOKEN_ID = "token_id:"
CANCELLED, BROKEN = "cancelled", "broken"  # ends of a stream that the caller, or the upstream, broke off

Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # PostgreSQL's integer holds no more

_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode


class _Entry(msgspec.Struct):
    token: Any = None
    logprob: float | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Entry] | None = None  # of a chat completion
    tokens: list[str] | None = None  # of a completion
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    token_ids: list[Token] | None = None
    prompt_token_ids: list[Token] | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: list[Token] | None = None
    usage: _Usage | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class Sampled:
    """What an answer says of how it was sampled; lists are None where it did not say, or there are several answers."""

    def __init__(self, wanted: int, echo: bool = False) -> None:
        self.prompt_token_ids: list[int] | None = None
        self.finish_reason: str | None = None
        self.total_tokens: int | None = None
        self.failed = False
        self._single = wanted == 1 and not echo  # an echoed prompt was not sampled
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[float] = []

    def take(self, answer: _Answer) -> None:
        """Add a whole answer, or a part of a streamed one."""
        if answer.usage is not None and answer.usage.total_tokens is not None:
            self.total_tokens = answer.usage.total_tokens
        if answer.prompt_token_ids is not None:
            self.prompt_token_ids = answer.prompt_token_ids
        if answer.error is not None:
            self.failed = True
        for choice in answer.choices:
            if choice.index == 0:
                self._take_choice(choice)

    def _take_choice(self, choice: _Choice) -> None:
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason
        if choice.prompt_token_ids is not None:
            self.prompt_token_ids = choice.prompt_token_ids
        if choice.token_ids:
            self._ids += choice.token_ids
        said = choice.logprobs
        if said is None:
            return
        if said.content:
            self._texts += [str(entry.token) for entry in said.content]
            self._logprobs += [entry.logprob for entry in said.content if entry.logprob is not None]
        elif said.token_logprobs:
            self._texts += said.tokens or []
            self._logprobs += [one for one in said.token_logprobs if one is not None]

    @property
    def token_ids(self) -> list[int] | None:
        """The sampled tokens: as `token_ids` says them, else as `token_id:N` in place of their texts."""
        if not self._single:
            return None
        if self._ids:
            return self._ids
        numbers = [text.removeprefix(TOKEN_ID) for text in self._texts if text.startswith(TOKEN_ID)]
        told = bool(numbers) and len(numbers) == len(self._texts) and all(n.isdecimal() for n in numbers)
        return [int(number) for number in numbers] if told else None

    @property
    def logprobs(self) -> list[float] | None:
        """One a sampled token."""
        if not self._single or not self._logprobs or len(self._logprobs) != len(self._texts):
            return None
        ids = self.token_ids
        return self._logprobs if ids is None or len(ids) == len(self._logprobs) else None


def plain(content: bytes, added: Added, sampled: Sampled) -> bytes:
    """What the caller gets of a whole answer; `sampled` takes what it says."""
    try:
        sampled.take(_answer.decode(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _stripped(content, added)
    return _stripped(content, added)


def _stripped(content: bytes, added: Added) -> bytes:
    """The JSON without what the caller did not ask for, as it came where there is nothing to take out."""
    if not added:
        return content
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        fields = _fields.decode(content)
        choices = _choices.decode(fields["choices"])
        if added.token_ids:
            fields.pop("prompt_token_ids", None)
        for choice in choices:
            if added.logprobs and "logprobs" in choice:
                choice["logprobs"] = _NULL
            if added.token_ids:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
        fields["choices"] = msgspec.Raw(_encode(choices))
        return _encode(fields)
    return content


class Events:
    """A stream of server-sent events on its way to the caller.

    From the part that ends the last answer on, everything is held back until `end`, so that a caller who has the whole
    answer has one that is recorded. `whole`: the upstream said that it is at its end.
    """

    def __init__(self, added: Added, sampled: Sampled, wanted: int) -> None:
        self.added, self.sampled, self.wanted = added, sampled, wanted
        self.whole = False
        self._rest = b""
        self._held: list[bytes] = []
        self._holding = False
        self._finished: set[int] = set()

    def feed(self, data: bytes) -> bytes:
        """What of the stream may go out now."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        out = []
        for line in complete:
            line = self._line(line + b"\n")
            (self._held if self._holding else out).append(line)
        return b"".join(out)

    def end(self) -> bytes:
        """What was held back."""
        if self._rest:
            last, self._rest = self._line(self._rest), b""
            self._held.append(last)
        return b"".join(self._held)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self.whole = self._holding = True
            return line
        try:
            answer = _answer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return line
        self.sampled.take(answer)
        self._finished |= {choice.index for choice in answer.choices if choice.finish_reason is not None}
        if len(self._finished) >= self.wanted:
            self._holding = True
        stripped = _stripped(payload, self.added)
        if stripped is payload:
            return line
        return b"data: " + stripped + line[len(line.rstrip(b"\r\n")) :]
