"""One answer that is asked for, and one that was drawn: the records, and what is wrong with a request."""

from collections.abc import Sequence

import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.drawing import MOST_TOP
from babylon_rl.training.policy import Policy

MOST_TOKENS = 4096  # of an answer
MOST_STOPS = 16


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to draw. `adapter`: which adapter answers, None the base model; `choices`: None for free text.

    `prompt`: tokens of the messages, where they are known; `stop`: texts that end free text and are no part of it;
    `top_logprobs`: of how many of the likeliest tokens the log-probabilities are told.
    """

    messages: list[dict[str, str]]
    adapter: str | None
    choices: list[str] | None
    temperature: float
    top_p: float
    exploration: float
    max_tokens: int
    seed: int
    prompt: list[int] | None = None
    stop: list[str] = []
    top_logprobs: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn answer. `token_ids` end with the end of the turn unless `finish_reason` is "length" or a stop text ended
    it; they are all that were drawn, also beyond where the text was cut. `top_logprobs`: by place, token to logprob.
    """

    text: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    top_logprobs: list[dict[int, float]] = []


def with_prompt(policy: Policy, request: SampleRequest) -> SampleRequest:
    """The request with its tokens. ServingError where prompt and answer do not fit the context: nothing is cut."""
    prompt = policy.chat.prompt(request.messages)
    choices = [len(policy.chat.answer(text)) for text in request.choices or ()]
    longest = max(choices, default=request.max_tokens)
    if policy.context is not None and len(prompt) + longest > policy.context:
        raise ServingError(
            f"context_length_exceeded: the messages have {len(prompt)} tokens and the answer may have {longest}; the "
            f"model's context holds {policy.context}. Shorten the messages or lower max_tokens."
        )
    return msgspec.structs.replace(request, prompt=prompt)


def check(request: SampleRequest, adapters: Sequence[str]) -> None:
    """ServingError that says what is wrong with a request."""
    if request.adapter is not None and request.adapter not in adapters:
        raise ServingError(f"No checkpoint {request.adapter!r} is loaded; loaded are: {', '.join(adapters) or 'none'}.")
    if request.choices is not None:
        if len(set(request.choices)) != len(request.choices) or not request.choices:
            raise ServingError("structured_outputs.choice needs at least one answer, each of them once.")
        if request.top_p != 1:
            raise ServingError("top_p must be 1 with structured_outputs.choice.")
        if request.stop:
            raise ServingError("stop needs free text; with structured_outputs.choice the choices say where they end.")
    elif request.exploration:
        raise ServingError("exploration needs structured_outputs.choice: it is uniform over the choices.")
    if not (0 <= request.temperature <= 10 and 0 < request.top_p <= 1 and 0 <= request.exploration <= 1):
        raise ServingError("temperature is 0 to 10, top_p above 0 and at most 1, exploration 0 to 1.")
    if not 1 <= request.max_tokens <= MOST_TOKENS:
        raise ServingError(f"max_tokens is 1 to {MOST_TOKENS}.")
    if not 0 <= request.top_logprobs <= MOST_TOP:
        raise ServingError(f"top_logprobs is 0 to {MOST_TOP}.")
    if len(request.stop) > MOST_STOPS or not all(request.stop):
        raise ServingError(f"stop is a text, or at most {MOST_STOPS} of them, none of them empty.")
    roles = {m.get("role") for m in request.messages}
    if not request.messages or not roles <= {"system", "user", "assistant"}:
        raise ServingError("messages needs at least one message, with roles system, user or assistant.")
    if not all(isinstance(m.get("content"), str) for m in request.messages):
        raise ServingError("Each message needs its content as text.")
    try:
        "".join([*(m["content"] for m in request.messages), *(request.choices or ())]).encode()
    except UnicodeEncodeError:
        raise ServingError("A message or choice holds half a surrogate pair, which no tokenizer takes.") from None
