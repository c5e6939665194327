"""The HTTP application: OpenAI's chat completions over one policy and its checkpoints.

Extensions carry vLLM's names: `structured_outputs.choice`, `return_token_ids`, `/v1/load_lora_adapter` with
`load_inplace`, `/v1/unload_lora_adapter`, `root` and `parent` of a model. Ours are `exploration` in a request,
`checkpoint` in a response and `weights_sha256` of a model. Calls that arrive together are answered together.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from babylon_rl.errors import BabylonError
from babylon_rl.serving.adapters import Adapters, private_copy
from babylon_rl.serving.answering import answer
from babylon_rl.serving.answers import Answering
from babylon_rl.serving.asked import parse_body
from babylon_rl.serving.batching import Engine, Limits
from babylon_rl.serving.bodies import read_body
from babylon_rl.serving.changing import load_adapter, unload_adapter
from babylon_rl.serving.metrics import CONTENT_TYPE, EndpointMetrics
from babylon_rl.serving.refusals import Failed, Refused, error_body
from babylon_rl.serving.requests import check, with_prompt
from babylon_rl.serving.texts import TokenBytes
from babylon_rl.training.policy import Policy

LONG_LETTERS = 20_000


def build_application(
    policy: Policy,
    base_name: str,
    adapters: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    died: Callable[[], None] = lambda: None,
) -> Starlette:
    """The application; `base_name` is the name under which the base model answers, `adapters` those loaded now.

    `died`: as of `Engine`.
    """
    held, metrics, token_bytes = Adapters(policy, base_name), EndpointMetrics(), TokenBytes(policy.tokenizer)
    for name, folder in (adapters or {}).items():
        with private_copy(Path(folder)) as (copy, digest):
            held.load(name, copy, digest, folder, in_place=False)
    engine = Engine(policy, held, limits or Limits(), metrics, died)
    began = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        alive = engine.alive
        return JSONResponse({"ready": alive, "adapters": held.names()}, status_code=200 if alive else 503)

    async def told_metrics(request: Request) -> Response:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": _listed(held, policy.context, began)})

    async def load(request: Request) -> Response:
        return JSONResponse(await load_adapter(engine, held, await read_body(request)))

    async def unload(request: Request) -> Response:
        return JSONResponse(await unload_adapter(engine, held, await read_body(request)))

    async def complete(request: Request) -> Response:
        body = await read_body(request)
        asked = parse_body(body, base_name)
        first = asked.requests[0]
        held.let_go(held.hold(first.adapter))  # an unknown model is said first
        check(first, held.names())
        # Long texts take a while to encode, in which others are answered.
        long = sum(len(m["content"]) for m in first.messages) > LONG_LETTERS
        made = await asyncio.to_thread(with_prompt, policy, first) if long else with_prompt(policy, first)
        prompt = made.prompt
        return await answer(request, engine, asked, prompt, Answering(asked, first.adapter or base_name, token_bytes))

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", told_metrics),
            Route("/v1/models", models),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={BabylonError: _refused, HTTPException: _http_error, Exception: _failed},
    )


def _listed(held: Adapters, context: int | None, began: int) -> list[dict[str, Any]]:
    """The base model and the loaded adapters as vLLM lists them, with the digest of the weights that were loaded."""
    common = {"object": "model", "created": began, "owned_by": "babylon_rl", "max_model_len": context}
    base = {"id": held.base_name, "root": held.base_name, "parent": None, "weights_sha256": None} | common
    return [base] + [
        {"id": one.name, "root": one.folder, "parent": held.base_name, "weights_sha256": one.weights_sha256} | common
        for one in held.loaded()
    ]


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    return JSONResponse(error_body(error), status, headers=error.headers if isinstance(error, Refused) else None)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(error_body(Refused(said)), error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(Failed(f"The endpoint failed: {type(error).__name__}.")), 500)
