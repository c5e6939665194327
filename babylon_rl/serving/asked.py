"""Reading the body of a chat completion: what is asked for, and what this endpoint cannot do, said by name."""

import hashlib
import uuid
from typing import Any

import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.serving.refusals import Refused
from babylon_rl.serving.requests import SampleRequest

MOST_ANSWERS = 16  # to one request
# Fields that would change how an answer is drawn, and the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_grammar": (),
}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A chat completion that is asked for: a request for each of its answers, and how they are told."""

    requests: list[SampleRequest]
    stream: bool
    include_usage: bool
    logprobs: bool
    token_ids: bool


def parse_body(body: dict[str, Any], base_name: str) -> Asked:
    """What is asked for; Refused where the body is not a chat completion this endpoint can answer."""
    for name, neutral in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise Refused(f"{name} is not supported by this endpoint; leave it out.", name)
    first = parse_request(body, base_name)
    answers = _or(body.get("n"), 1)
    if not isinstance(answers, int) or isinstance(answers, bool) or not 1 <= answers <= MOST_ANSWERS:
        raise Refused(f"n is 1 to {MOST_ANSWERS}.", "n")
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise Refused("stream_options is an object.", "stream_options")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise Refused("top_logprobs needs logprobs: true.", "top_logprobs")
    return Asked(
        requests=[msgspec.structs.replace(first, seed=seed_of(first.seed, place)) for place in range(answers)],
        stream=bool(body.get("stream")),
        include_usage=bool(stream_options.get("include_usage")),
        logprobs=bool(body.get("logprobs")),
        token_ids=bool(body.get("return_token_ids")),
    )


def seed_of(seed: int, place: int) -> int:
    """Seed of the answer at a place of several: the first has the request's own, the others are not near any other."""
    if not place:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:8], "big") >> 1


def parse_request(body: dict[str, Any], base_name: str) -> SampleRequest:
    """The first answer that is asked for."""
    model = body.get("model") or base_name
    outputs = body.get("structured_outputs") or {}
    if set(outputs) - {"choice"} and any(outputs[name] is not None for name in set(outputs) - {"choice"}):
        raise Refused("Of structured_outputs this endpoint knows choice alone.", "structured_outputs")
    if not isinstance(body.get("messages"), list):
        raise Refused("messages is missing, or no list: send at least one message with role and content.", "messages")
    choices = outputs.get("choice", body.get("guided_choice"))
    seed, stop = body.get("seed"), body.get("stop")
    try:
        return SampleRequest(
            messages=[{"role": _role(m["role"]), "content": _text(m["content"])} for m in body["messages"]],
            adapter=None if model == base_name else str(model),
            choices=None if choices is None else [str(c) for c in choices],
            temperature=float(_or(body.get("temperature"), 1.0)),
            top_p=float(_or(body.get("top_p"), 1.0)),
            exploration=float(_or(body.get("exploration"), 0.0)),
            max_tokens=int(_or(body.get("max_completion_tokens"), _or(body.get("max_tokens"), 64))),
            seed=uuid.uuid4().int % 2**63 if seed is None else abs(int(seed)),
            stop=[] if stop is None else [stop] if isinstance(stop, str) else [_text(s) for s in stop],
            top_logprobs=int(_or(body.get("top_logprobs"), 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ServingError(f"The request is not a chat completion: {type(error).__name__}: {error}.") from None


def _role(role: Any) -> str:
    return "system" if role == "developer" else role


def _text(content: Any) -> str:
    """A content as text; a list of parts is that of its texts."""
    if isinstance(content, list):
        for part in content:
            if part["type"] != "text":
                raise ValueError(f"a content of type {part['type']}, and this endpoint reads text")
        return "".join(part["text"] for part in content)
    return content


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
