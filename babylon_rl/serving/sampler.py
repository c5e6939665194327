"""Sampling answers in batches: what was drawn, and the log-probability of the distribution it was really drawn from.

Answers that are constrained to choices need one packed forward pass: every choice is a branch of the prompt's tree.
Free text is decoded token by token with a cache, the requests of a batch side by side.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from babylon_rl.errors import ServingError
from babylon_rl.training.choices import explored, token_logprobs
from babylon_rl.training.policy import Answer, Policy

ROW_TOKENS = 512  # that a forward pass takes at a time, or one whole prompt with its choices


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to draw. `adapter`: which adapter answers, None the base model; `choices`: None for free text.

    `prompt`: tokens of the messages, where they are known.
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


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn answer. `token_ids` end with the end of the turn unless `finish_reason` is "length"."""

    text: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


def sample(policy: Policy, requests: Sequence[SampleRequest]) -> list[Sample]:
    """Draw an answer for each request; the result does not depend on which requests share the batch."""
    import torch

    drawn: dict[int, Sample] = {}
    with torch.no_grad():
        for adapter in sorted({r.adapter for r in requests}, key=str):
            mine = [i for i, r in enumerate(requests) if r.adapter == adapter]
            with policy.select(adapter):
                constrained = [i for i in mine if requests[i].choices is not None]
                free = [i for i in mine if requests[i].choices is None]
                drawn.update(zip(constrained, _sample_choices(policy, [requests[i] for i in constrained]), strict=True))
                drawn.update(zip(free, _sample_text(policy, [requests[i] for i in free]), strict=True))
    return [drawn[i] for i in range(len(requests))]


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


def _prompt(policy: Policy, request: SampleRequest) -> list[int]:
    return with_prompt(policy, request).prompt or [] if request.prompt is None else request.prompt


def _sample_choices(policy: Policy, requests: list[SampleRequest]) -> list[Sample]:
    prompts = [_prompt(policy, r) for r in requests]
    tokens = [[policy.chat.answer(text) for text in r.choices or ()] for r in requests]
    answers = [
        # The temperature of greedy answers only has to be positive: the largest probability stays the largest.
        Answer(prompt, choice, choices, r.temperature or 1.0)
        for r, prompt, choices in zip(requests, prompts, tokens, strict=True)
        for choice in choices
    ]
    totals = [0.0] * len(answers)
    # A prompt that is longer than a row usually is would be computed anew for each of its choices.
    longest = max((len(p) + sum(map(len, c)) for p, c in zip(prompts, tokens, strict=True)), default=0)
    for members, evaluated in policy.evaluate(answers, max_tokens=max(ROW_TOKENS, longest)):
        for member, result in zip(members, evaluated, strict=True):
            totals[member] = float(result.logprobs.double().sum())
    samples, start = [], 0
    for request, prompt, choices in zip(requests, prompts, tokens, strict=True):
        logits = np.array(totals[start : start + len(choices)])
        start += len(choices)
        samples.append(_draw(request, prompt, choices, logits))
    return samples


def _draw(request: SampleRequest, prompt: list[int], choices: list[list[int]], logprobs: np.ndarray) -> Sample:
    probabilities = np.exp(logprobs)
    probabilities /= probabilities.sum()
    if request.temperature == 0:
        probabilities = (np.arange(len(choices)) == probabilities.argmax()).astype(float)
    behaviour = explored(probabilities, request.exploration)
    chosen = int(np.random.default_rng(request.seed).choice(len(choices), p=behaviour))
    return Sample(
        text=(request.choices or [])[chosen],
        prompt_token_ids=prompt,
        token_ids=choices[chosen],
        logprobs=token_logprobs(choices, behaviour, chosen),
        finish_reason="stop",
    )


def _sample_text(policy: Policy, requests: list[SampleRequest]) -> list[Sample]:
    """Free text: one left-padded batch, one cache, until each request has ended."""
    import torch

    if not requests:
        return []
    prompts = [_prompt(policy, r) for r in requests]
    longest = max(len(p) for p in prompts)
    end = policy.tokenizer.eos_token_id
    padded = torch.tensor([[end] * (longest - len(p)) + p for p in prompts], device=policy.device)
    attends = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    generators = [np.random.default_rng(r.seed) for r in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    cache: Any = None
    feed = padded
    while True:
        positions = (attends.cumsum(1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        output = policy.model(
            input_ids=feed, attention_mask=attends, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        following = []
        for i, request in enumerate(requests):
            if _ended(tokens[i], request, end):
                following.append(end)
                continue
            token, logprob = _draw_token(output.logits[i, -1].double().cpu().numpy(), request, generators[i])
            tokens[i].append(token)
            logprobs[i].append(logprob)
            following.append(token)
        if all(_ended(t, r, end) for t, r in zip(tokens, requests, strict=True)):
            break
        feed = torch.tensor(following, device=policy.device)[:, None]
        attends = torch.cat([attends, attends.new_ones(len(requests), 1)], dim=1)
    return [
        Sample(
            text=policy.tokenizer.decode(t, skip_special_tokens=True),
            prompt_token_ids=p,
            token_ids=t,
            logprobs=lp,
            finish_reason="stop" if t and t[-1] == end else "length",
        )
        for p, t, lp in zip(prompts, tokens, logprobs, strict=True)
    ]


def _ended(tokens: list[int], request: SampleRequest, end: int) -> bool:
    return bool(tokens) and (tokens[-1] == end or len(tokens) >= request.max_tokens)


def _draw_token(logits: np.ndarray, request: SampleRequest, generator: np.random.Generator) -> tuple[int, float]:
    """One token and its log-probability under the temperature and the nucleus that it was drawn from."""
    if request.temperature == 0:
        return int(logits.argmax()), 0.0
    scaled = logits / request.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    if request.top_p < 1:
        order = np.argsort(-probabilities)
        inside = np.cumsum(probabilities[order]) - probabilities[order] < request.top_p
        nucleus = np.zeros_like(probabilities)
        nucleus[order[inside]] = probabilities[order[inside]]
        probabilities = nucleus / nucleus.sum()
    token = int(generator.choice(len(probabilities), p=probabilities))
    return token, float(np.log(probabilities[token]))


def check(request: SampleRequest, adapters: Sequence[str]) -> None:
    """ServingError that says what is wrong with a request."""
    if request.adapter is not None and request.adapter not in adapters:
        raise ServingError(f"No checkpoint {request.adapter!r} is loaded; loaded are: {', '.join(adapters) or 'none'}.")
    if request.choices is not None:
        if len(set(request.choices)) != len(request.choices) or not request.choices:
            raise ServingError("structured_outputs.choice needs at least one answer, each of them once.")
        if request.top_p != 1:
            raise ServingError("top_p must be 1 with structured_outputs.choice.")
    elif request.exploration:
        raise ServingError("exploration needs structured_outputs.choice: it is uniform over the choices.")
    if not (0 <= request.temperature <= 10 and 0 < request.top_p <= 1 and 0 <= request.exploration <= 1):
        raise ServingError("temperature is 0 to 10, top_p above 0 and at most 1, exploration 0 to 1.")
    if not 1 <= request.max_tokens <= 4096:
        raise ServingError("max_tokens is 1 to 4096.")
    roles = {m.get("role") for m in request.messages}
    if not request.messages or not roles <= {"system", "user", "assistant"}:
        raise ServingError("messages needs at least one message, with roles system, user or assistant.")
    if not all(isinstance(m.get("content"), str) for m in request.messages):
        raise ServingError("Each message needs its content as text.")
    try:
        "".join([*(m["content"] for m in request.messages), *(request.choices or ())]).encode()
    except UnicodeEncodeError:
        raise ServingError("A message or choice holds half a surrogate pair, which no tokenizer takes.") from None
