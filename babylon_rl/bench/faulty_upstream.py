"""An OpenAI-compatible service for fault tests, a process that is killed and started: no answer is given twice.

`python -m babylon_rl.bench.faulty_upstream PORT` answers on loopback after some milliseconds, with a text of its own
for each call, tokens and log-probabilities, whole or as a stream.
"""

import asyncio
import json
import random
import sys
import uuid
from typing import Any

LATENCY = (0.002, 0.03)  # seconds


def answer(model: str, tokens: list[int], text: str) -> dict[str, Any]:
    """A chat completion, as vLLM answers when log-probabilities and token ids are asked for."""
    entries = [{"token": f"token_id:{token}", "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in tokens]
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": tokens,
              "logprobs": {"content": entries}}  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": len(tokens), "total_tokens": 3 + len(tokens)}
    return {"id": f"chatcmpl-{text}", "object": "chat.completion", "created": 0, "model": model, "choices": [choice],
            "prompt_token_ids": [1, 2, 3], "usage": usage}  # fmt: skip


def chunks(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The same as the events of a stream: a token each, then why it ended."""
    head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    [choice] = whole["choices"]
    entries, text = choice["logprobs"]["content"], choice["message"]["content"]
    cut = max(1, len(text) // len(entries))
    parts = [text[n * cut : (n + 1) * cut if n + 1 < len(entries) else None] for n in range(len(entries))]
    found = []
    for number, (part, entry) in enumerate(zip(parts, entries, strict=True)):
        delta = {"role": "assistant", "content": part} if number == 0 else {"content": part}
        one = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": {"content": [entry]},
               "token_ids": [choice["token_ids"][number]]}  # fmt: skip
        found.append({**head, "choices": [one], **({"prompt_token_ids": [1, 2, 3]} if number == 0 else {})})
    ended = {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}
    return [*found, {**head, "choices": [ended]}]


def serve(port: int) -> None:
    """Answer on loopback until the process is ended."""
    from aiohttp import web

    chance = random.Random()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(chance.uniform(*LATENCY))
        whole = answer(body["model"], [chance.randrange(1000) for _ in range(chance.randint(1, 4))], uuid.uuid4().hex)
        if not body.get("stream"):
            return web.json_response(whole)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks(whole):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(chance.uniform(*LATENCY) / 4)
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    web.run_app(application, host="127.0.0.1", port=port, print=None, handle_signals=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
