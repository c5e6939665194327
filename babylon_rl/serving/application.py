"""The HTTP application: OpenAI's chat completions over one policy and its checkpoints.

Extensions carry vLLM's names: `structured_outputs.choice`, `return_token_ids`, `/v1/load_lora_adapter`. Ours are
`exploration` in a request and `checkpoint` in a response. Calls that arrive together are answered in one batch.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from babylon_rl.errors import BabylonError, ServingError
from babylon_rl.serving.sampler import Sample, SampleRequest, check, sample, with_prompt
from babylon_rl.training.policy import Policy

MAX_BATCH = 64
GATHER_SECONDS = 0.01  # how long the first call of a batch waits for others


class Batcher:
    """Gathers calls and answers them in one worker thread, in the order of their arrival."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.queue: asyncio.Queue[tuple[SampleRequest, asyncio.Future[Sample]]] = asyncio.Queue()
        self.model_lock = asyncio.Lock()  # adapters are loaded between batches

    async def answer(self, request: SampleRequest) -> Sample:
        """The drawn answer, when its batch is done."""
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        await self.queue.put((request, future))
        return await future

    async def run(self) -> None:
        """Answer batches until cancelled."""
        while True:
            batch = [await self.queue.get()]
            await asyncio.sleep(GATHER_SECONDS)
            while len(batch) < MAX_BATCH and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            async with self.model_lock:
                try:
                    samples = await asyncio.to_thread(sample, self.policy, [request for request, _ in batch])
                except Exception as error:  # one batch's failure is its callers' error; the endpoint stays up
                    for _, future in batch:
                        if not future.cancelled():
                            future.set_exception(ServingError(f"The model failed: {type(error).__name__}: {error}"))
                    continue
            for (_, future), drawn in zip(batch, samples, strict=True):
                if not future.cancelled():
                    future.set_result(drawn)


def build_application(policy: Policy, base_name: str) -> Starlette:
    """The application; `base_name` is the name under which the base model answers."""
    batcher = Batcher(policy)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> JSONResponse:
        names = [base_name, *policy.adapters]
        return JSONResponse(
            {"object": "list", "data": [{"id": n, "object": "model", "owned_by": "babylon_rl"} for n in names]}
        )

    async def load(request: Request) -> JSONResponse:
        body = await _body(request)
        name, folder = body.get("lora_name"), body.get("lora_path")
        if not name or not folder:
            raise ServingError("lora_name and lora_path are required.")
        async with batcher.model_lock:
            if name not in policy.adapters:
                await asyncio.to_thread(policy.add_adapter, Path(folder), name)
        return JSONResponse({"loaded": policy.adapters})

    async def complete(request: Request) -> JSONResponse:
        body = await _body(request)
        wanted = parse_request(body, base_name)
        check(wanted, policy.adapters)
        started = time.perf_counter()
        drawn = await batcher.answer(with_prompt(policy, wanted))
        return JSONResponse(response_body(body, wanted, drawn, base_name, time.perf_counter() - started))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": type(error).__name__}}, status_code=400)

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/chat/completions", complete, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={BabylonError: failed})


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise ServingError("The request's body is not JSON.") from None
    if not isinstance(body, dict):
        raise ServingError("The request's body is not a JSON object.")
    return body


def parse_request(body: dict[str, Any], base_name: str) -> SampleRequest:
    """What is asked for; ServingError where the body is not a chat completion this endpoint can answer."""
    if body.get("stream"):
        raise ServingError("This endpoint does not stream; send stream: false.")
    if body.get("n", 1) != 1:
        raise ServingError("n must be 1; send the request several times with different seeds.")
    model = body.get("model") or base_name
    outputs = body.get("structured_outputs") or {}
    choices = outputs.get("choice", body.get("guided_choice"))
    seed = body.get("seed")
    try:
        return SampleRequest(
            messages=[{"role": m["role"], "content": m["content"]} for m in body["messages"]],
            adapter=None if model == base_name else str(model),
            choices=None if choices is None else [str(c) for c in choices],
            temperature=float(_or(body.get("temperature"), 1.0)),
            top_p=float(_or(body.get("top_p"), 1.0)),
            exploration=float(_or(body.get("exploration"), 0.0)),
            max_tokens=int(_or(body.get("max_completion_tokens"), _or(body.get("max_tokens"), 64))),
            seed=uuid.uuid4().int % 2**63 if seed is None else abs(int(seed)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServingError(f"The request is not a chat completion: {type(error).__name__}: {error}.") from None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def response_body(
    body: dict[str, Any], wanted: SampleRequest, drawn: Sample, base_name: str, seconds: float
) -> dict[str, Any]:
    """The chat completion, with log-probabilities and token ids where they were asked for."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": drawn.finish_reason,
        "message": {"role": "assistant", "content": drawn.text},
        "logprobs": None,
    }
    if body.get("logprobs"):
        choice["logprobs"] = {
            "content": [
                {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
                for token, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True)
            ]
        }
    answer = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": wanted.adapter or base_name,
        "checkpoint": wanted.adapter or base_name,
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(drawn.prompt_token_ids),
            "completion_tokens": len(drawn.token_ids),
            "total_tokens": len(drawn.prompt_token_ids) + len(drawn.token_ids),
        },
        "latency_ms": round(1000 * seconds, 3),
    }
    if body.get("return_token_ids"):
        answer["prompt_token_ids"] = drawn.prompt_token_ids
        choice["token_ids"] = drawn.token_ids
    return answer
