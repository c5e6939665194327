"""The bodies of answers: OpenAI's chat completion and its chunks, with vLLM's fields for token ids.

A token's text is always `token_id:N`: what is recorded is the token that was drawn, not letters that other tokens
may have too.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from babylon_rl.serving.asked import Asked
from babylon_rl.serving.requests import Sample
from babylon_rl.serving.texts import TokenBytes


class Answering:
    """Makes the bodies of one request's answer. `model`: the name that answers."""

    def __init__(self, asked: Asked, model: str, token_bytes: TokenBytes) -> None:
        self.asked, self.model, self._bytes = asked, model, token_bytes
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
        """The chat completion, with log-probabilities and token ids where they were asked for."""
        choices = []
        for index, drawn in enumerate(samples):
            choice: dict[str, Any] = {
                "index": index,
                "finish_reason": drawn.finish_reason,
                "message": {"role": "assistant", "content": drawn.text},
                "logprobs": self.logprobs(drawn.token_ids, drawn.logprobs, drawn.top_logprobs),
            }
            if self.asked.token_ids:
                choice["token_ids"] = drawn.token_ids
            choices.append(choice)
        answer = self._head("chat.completion") | {"choices": choices, "usage": usage(samples)}
        answer["latency_ms"] = round(1000 * seconds, 3)
        if self.asked.token_ids:
            answer["prompt_token_ids"] = samples[0].prompt_token_ids
        return answer

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[int] = (),
        logprobs: Sequence[float] = (),
        tops: Sequence[dict[int, float]] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """A chunk of one of the answers."""
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self.logprobs(tokens, logprobs, tops) if tokens else None,
            "finish_reason": finish_reason,
        }
        if self.asked.token_ids:
            choice["token_ids"] = list(tokens)
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return chunk | ({"usage": None} if self.asked.include_usage else {})

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The chunk after the last of the answers, with what they took."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage(samples)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "checkpoint": self.model,
        }

    def logprobs(
        self, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[dict[int, float]]
    ) -> dict[str, Any] | None:
        """Log-probabilities of tokens as OpenAI tells them; None where they were not asked for."""
        if not self.asked.logprobs:
            return None
        told = zip(tokens, logprobs, tops or [{} for _ in tokens], strict=True)
        return {
            "content": [
                self._entry(token, logprob) | {"top_logprobs": [self._entry(*one) for one in top.items()]}
                for token, logprob, top in told
            ]
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": f"token_id:{token}", "logprob": logprob, "bytes": self._bytes.of(token)}


def usage(samples: Sequence[Sample]) -> dict[str, int]:
    """Tokens of the prompt and of all answers to it."""
    prompt, drawn = len(samples[0].prompt_token_ids), sum(len(one.token_ids) for one in samples)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
