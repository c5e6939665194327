"""Asking an OpenAI-compatible chat endpoint for one answer, and reading what it says of how it sampled."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from babylon_rl.database.values import clean_text
from babylon_rl.errors import ServingError

ATTEMPTS = 3
PAUSES = (0.2, 1.0)  # seconds before the second and the third attempt
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
TOKEN_ID = "token_id:"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. `base_url` ends before `/chat/completions`.

    `extensions`: send vLLM's fields for choices and token ids, and our `exploration`. An endpoint that refuses
    fields it does not know needs False, and its answers are then recorded without what training needs.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    extensions: bool = True
    timeout: float = 120.0  # seconds

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + "/chat/completions"


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    `exploration`: share of uniform choice mixed in, 0..1. `seed`: each call's own is made of it, window and agent.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 8
    exploration: float = 0.0
    constrained: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered. The lists are empty where it did not say; `checkpoint` is what answered."""

    text: str
    model: str
    checkpoint: str
    finish_reason: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    latency_ms: float

    @property
    def logged(self) -> bool:
        """Whether tokens and log-probabilities are all there, one for one."""
        return bool(self.prompt_token_ids and self.token_ids) and len(self.token_ids) == len(self.logprobs)


@asynccontextmanager
async def connect(endpoint: Endpoint) -> AsyncIterator[httpx.AsyncClient]:
    """Client for an endpoint. A proxy of the environment is not asked for what runs on this machine."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    outside = urlsplit(endpoint.base_url).hostname not in LOOPBACK
    # The number of requests in flight is bounded by who asks, not here.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(headers=headers, timeout=endpoint.timeout, trust_env=outside, limits=limits) as client:
        yield client


def request_body(
    endpoint: Endpoint, sampling: Sampling, system: str, user: str, choices: Sequence[str], seed: int
) -> dict[str, Any]:
    """Body of a chat completion request."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
        "logprobs": True,
        "top_logprobs": 0,
    }
    if endpoint.extensions:
        body["return_token_ids"] = True
        body["exploration"] = sampling.exploration
        if sampling.constrained:
            body["structured_outputs"] = {"choice": list(choices)}
    return body


def context_headers(agent_id: str, window_id: str, trajectory_id: str) -> dict[str, str]:
    """Headers by which a gateway books a call under its agent, window and trajectory; other services ignore them."""
    return {
        "X-Babylon-Agent": agent_id,
        "X-Babylon-Window": window_id,
        "X-Babylon-Trajectory": trajectory_id,
        "X-Babylon-Step": "0",
    }


async def ask(
    client: httpx.AsyncClient, endpoint: Endpoint, body: dict[str, Any], context: Mapping[str, str] | None = None
) -> Answer:
    """One answer. ServingError where the endpoint cannot be reached, refuses, or answers in another shape.

    All attempts carry one Idempotency-Key, so that a gateway answers them as one call. `context`: further headers.
    """
    loop = asyncio.get_running_loop()
    headers = {**(context or {}), "Idempotency-Key": uuid.uuid4().hex}
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSES[attempt - 1])
        last = attempt == ATTEMPTS - 1
        begun = loop.time()
        try:
            response = await client.post(endpoint.url, json=body, headers=headers)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ServingError(f"{endpoint.base_url!r} is not the URL of an endpoint: {error}.") from None
        except httpx.HTTPError as error:
            if last:
                raise _unreachable(endpoint, error) from error
            continue
        if response.is_success:
            return _read(endpoint, response, (loop.time() - begun) * 1000)
        if last or response.status_code not in PASSING:
            raise _refused(endpoint, response)
    raise AssertionError("the last attempt returns or raises")


def _read(endpoint: Endpoint, response: httpx.Response, latency_ms: float) -> Answer:
    try:
        body = response.json()
        choice = body["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError("the message's content is not a text")
        entries = (choice.get("logprobs") or {}).get("content") or []
        tokens = choice.get("token_ids") or _token_ids(entries)
        model = str(body.get("model") or endpoint.model)
        return Answer(
            text=clean_text(text),
            model=model,
            # A gateway knows which checkpoint it sent the call to; an endpoint knows its own name of it.
            checkpoint=str(response.headers.get("x-babylon-checkpoint") or body.get("checkpoint") or model),
            finish_reason=str(choice.get("finish_reason") or "unknown"),
            prompt_token_ids=[int(token) for token in body.get("prompt_token_ids") or []],
            token_ids=[int(token) for token in tokens],
            logprobs=[float(entry["logprob"]) for entry in entries],
            latency_ms=latency_ms,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServingError(
            f"{endpoint.url} answered, but not as a chat completion ({type(error).__name__}: {error}). "
            "See that the URL is that of an OpenAI-compatible endpoint."
        ) from error


def _token_ids(entries: list[dict[str, Any]]) -> list[int]:
    """Token ids from texts like `token_id:123`; none where any entry is something else."""
    texts = [str(entry.get("token", "")) for entry in entries]
    ids = [text.removeprefix(TOKEN_ID) for text in texts if text.startswith(TOKEN_ID)]
    return [int(i) for i in ids] if len(ids) == len(texts) and all(i.isdecimal() for i in ids) else []


def _unreachable(endpoint: Endpoint, error: httpx.HTTPError) -> ServingError:
    said = str(error) or type(error).__name__
    return ServingError(
        f"{endpoint.url} does not answer after {ATTEMPTS} attempts: {said}. Start the endpoint, or correct its URL; "
        "windows played so far are recorded, and playing again goes on from there."
    )


def _refused(endpoint: Endpoint, response: httpx.Response) -> ServingError:
    status, said = response.status_code, " ".join(response.text.split())[:300]
    remedy = {
        400: "Where it does not know a field, ask it without extensions.",
        401: "Give the endpoint's key.",
        403: "Give a key that may use this model.",
        404: f"See that the URL is right and that it serves the model {endpoint.model!r}.",
        422: "Where it does not know a field, ask it without extensions.",
        429: "It is overloaded: play fewer windows at once.",
    }.get(status, "Look into the endpoint's own log.")
    return ServingError(f"{endpoint.url} answered {status}: {said or 'nothing'}. {remedy}")
