"""A call's body: what the gateway reads of it, and the body that the upstream gets.

Fields are taken over as they were written; only the model's name, and what recording needs, is put in.
"""

from typing import Any

import msgspec

from babylon_rl.serving.gateway.refusals import invalid
from babylon_rl.serving.routing import BASE, Routes, Target

CHAT, COMPLETIONS = "/chat/completions", "/completions"
ASSUMED_TOKENS = 256  # of an answer whose length the caller does not bound, until its usage is known

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_TRUE, _ONE = msgspec.Raw(b"true"), msgspec.Raw(b"1")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "exploration", "n")


class Body(msgspec.Struct, frozen=True):
    """What the gateway reads of a request's body; of any type, for it is the upstream that judges them."""

    model: Any = None
    user: Any = None
    stream: Any = None
    logprobs: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    echo: Any = None
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    exploration: Any = None
    structured_outputs: Any = None
    guided_choice: Any = None


_body = msgspec.json.Decoder(Body)


class Added(msgspec.Struct, frozen=True):
    """What was put in for recording, and is taken out of the answer again."""

    logprobs: bool
    token_ids: bool

    def __bool__(self) -> bool:
        return self.logprobs or self.token_ids


def read_body(content: bytes) -> Body:
    """What the body says; Refused (400) where it is not a JSON object in UTF-8."""
    try:
        return _body.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request's body is not a JSON object: {error}.", "invalid_json") from None


def named_target(body: Body, routes: Routes) -> str | None:
    """The checkpoint, or `base`, that the caller insists on; None where routing decides."""
    model = body.model
    return model if isinstance(model, str) and (model == BASE or model in routes.targets) else None


def upstream_body(content: bytes, body: Body, target: Target, path: str) -> tuple[bytes, Added]:
    """The body for the upstream, and what of its answer the caller did not ask for."""
    fields = _fields.decode(content)
    fields["model"] = msgspec.Raw(_encode(target.model))
    # Of completions `logprobs` is a number, and 0 asks for those of the sampled tokens alone.
    asked = bool(body.logprobs) if path == CHAT else _counts(body.logprobs)
    if not asked:
        fields["logprobs"] = _TRUE if path == CHAT else _ONE
    if target.fields == "openai":
        return _encode(fields), Added(not asked, False)
    ids = bool(body.return_token_ids)
    if not ids:
        fields["return_token_ids"] = _TRUE
    if not asked:  # a caller who asks for log-probabilities reads the tokens' texts beside them
        fields["return_tokens_as_token_ids"] = _TRUE
    return _encode(fields), Added(not asked, not ids)


def sampling_of(body: Body) -> dict[str, Any]:
    """The settings of sampling that were sent, by their name; `choices` of structured outputs."""
    found = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if most is not None:
        found["max_tokens"] = most
    outputs = body.structured_outputs
    choices = outputs.get("choice", body.guided_choice) if isinstance(outputs, dict) else body.guided_choice
    if choices is not None:
        found["choices"] = choices
    return found


def answers_wanted(body: Body) -> int:
    """How many answers the caller wants of one call."""
    return body.n if _counts(body.n) and body.n > 0 else 1


def estimated_tokens(size: int, body: Body) -> int:
    """Tokens that a call may use, before its answer says it: four bytes a token of the body, and the longest answer."""
    most = body.max_completion_tokens if _counts(body.max_completion_tokens) else body.max_tokens
    longest = most if _counts(most) and most >= 0 else ASSUMED_TOKENS
    return size // 4 + longest * answers_wanted(body)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
