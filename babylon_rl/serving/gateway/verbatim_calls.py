"""A call of the gateway as the recorder's contract has it: texts to the letter, tokens where they can mean it.

Pure functions. The contract's call has one system text and one user text. A request that says more than these is kept
as JSON in the user's text, and without tokens: what was sampled after it would be trained after something else.
"""

import json
from datetime import datetime
from typing import Any

import msgspec

from babylon_rl.serving.gateway.answers import BROKEN, CANCELLED

# Ways to sample that the contract does not tell, and values of them that change nothing.
_OTHER_SAMPLING: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "bad_words": (None, []),
    "min_tokens": (None, 0),
    "allowed_token_ids": (None,),
    "logits_processors": (None, []),
}
# Constraints other than a choice among texts: the probabilities would be of fewer tokens than are known.
_OTHER_CONSTRAINTS = ("response_format", "guided_json", "guided_regex", "guided_grammar", "tools", "functions")
DONE = "[DONE]"
BROKEN_OFF = (BROKEN, CANCELLED)  # finish reasons of what is no whole answer


class GatewayCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a row of `gateway_calls` says of an answered call."""

    call_id: str
    agent_id: str
    trajectory_id: str | None
    step_number: int | None
    checkpoint_id: str
    model: str
    request: str
    response: str
    status: int
    streamed: bool
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    logprobs: list[float] | None
    sampling: dict[str, Any]
    finish_reason: str | None
    asked_at: datetime
    latency_ms: float


def contract_call(call: GatewayCall, purpose: str, said: dict[str, Any]) -> dict[str, Any]:
    """The call in the contract's JSON. `said`: what the agent said of it besides (actionType, reasoning).

    ValueError where request or response cannot be read.
    """
    request = _object(call.request, "request")
    system, user, plain = prompts(request)
    response = answer_text(call.response, call.streamed)
    temperature = call.sampling.get("temperature")
    most = call.sampling.get("max_tokens")
    found = {
        "model": call.model,
        "modelVersion": call.checkpoint_id,
        "systemPrompt": system,
        "userPrompt": user,
        "response": response,
        "temperature": 1.0 if temperature is None else temperature,  # the interface's default
        "maxTokens": most if isinstance(most, int) and not isinstance(most, bool) else None,
        "purpose": purpose,
        "latencyMs": call.latency_ms,
        "callId": call.call_id,
        **{name: said[name] for name in ("actionType", "reasoning") if said.get(name) is not None},
    }
    if plain and tellable(request) and (tokens := tokens_of(call)) is not None:
        found["tokens"] = tokens
    return found


def tokens_of(call: GatewayCall) -> dict[str, Any] | None:
    """The contract's tokens; None where the upstream did not say all of them."""
    if not call.prompt_token_ids or not call.token_ids or call.logprobs is None:
        return None
    if len(call.logprobs) != len(call.token_ids) or call.finish_reason in BROKEN_OFF:
        return None
    sampling = call.sampling
    told = {"topP": sampling.get("top_p"), "exploration": sampling.get("exploration"), "seed": sampling.get("seed"),
            "choices": sampling.get("choices"), "finishReason": call.finish_reason}  # fmt: skip
    return {
        "promptTokenIds": call.prompt_token_ids,
        "tokenIds": call.token_ids,
        "logprobs": call.logprobs,
        "checkpoint": call.checkpoint_id,
        **{name: value for name, value in told.items() if value is not None},
    }


def tellable(request: dict[str, Any]) -> bool:
    """Whether the contract can say from which distribution the request had its answer drawn."""
    outputs = request.get("structured_outputs")
    return (
        all(request.get(name) in nothing for name, nothing in _OTHER_SAMPLING.items())
        and not any(request.get(name) for name in _OTHER_CONSTRAINTS)
        and (not outputs or (isinstance(outputs, dict) and outputs.keys() <= {"choice"}))
    )


def prompts(request: dict[str, Any]) -> tuple[str, str, bool]:
    """System text, user text, and whether these two are all that the request says to the model."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        prompt = request.get("prompt")
        return ("", prompt, False) if isinstance(prompt, str) else ("", _json(prompt), False)
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    texts = [_text(message.get("content")) if isinstance(message, dict) else None for message in messages]
    first = roles[:1] == ["system"] and texts[0] is not None
    system, rest = (texts[0] or "", messages[1:]) if first else ("", messages)
    if roles[1:] == ["user"] and first and texts[1] is not None:
        return system, texts[1], True
    if roles == ["user"] and texts[0] is not None:
        return "", texts[0], True  # what a model's template puts before it, training compares with the tokens
    return system, _json(rest), False


def answer_text(response: str, streamed: bool) -> str:
    """The answer's text, put together where it came as a stream; of a call of tools, the calls as JSON.

    ValueError where it is no answer.
    """
    choice = _streamed_choice(response) if streamed else _choice(_object(response, "response"))
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(content, str) and content:
        return content
    tools = message.get("tool_calls") if isinstance(message, dict) else None
    return _json(tools) if tools else ""


def _streamed_choice(response: str) -> dict[str, Any]:
    """First choice of a stream's events, its pieces put together."""
    content, text, tools, seen = [], [], [], False
    for line in response.splitlines():
        if not line.startswith("data:") or line[5:].strip() in ("", DONE):
            continue
        for choice in _object(line[5:], "response").get("choices") or []:
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            seen, delta = True, choice.get("delta") or {}
            content.append(delta.get("content") or "")
            text.append(choice.get("text") or "")
            tools += delta.get("tool_calls") or []
    if not seen:
        raise ValueError("the response is a stream without an answer")
    return {"message": {"content": "".join(content) or "".join(text), "tool_calls": tools}}


def _choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the response holds no answer")
    return choices[0]


def _text(content: Any) -> str | None:
    """A message's text; None where it is more than one text."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text") if content[0].get("type") == "text" else None
    return content if isinstance(content, str) else None


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the {what} is no JSON object")
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
