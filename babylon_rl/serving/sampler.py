"""Sampling answers: what was drawn, and the log-probability of the distribution it was really drawn from.

Answers that are constrained to choices need one packed forward pass: every choice is a branch of the prompt's tree.
Free text is decoded token by token (`decoding`).
"""

from collections.abc import Sequence

import numpy as np

from babylon_rl.serving.decoding import decode
from babylon_rl.serving.drawing import likeliest_continuations
from babylon_rl.serving.requests import Sample, SampleRequest, check, with_prompt
from babylon_rl.training.choices import explored, token_logprobs
from babylon_rl.training.policy import Answer, Policy

__all__ = ["Sample", "SampleRequest", "check", "sample", "sample_choices", "with_prompt"]

ROW_TOKENS = 512  # that a forward pass takes at a time, or one whole prompt with its choices
MOST_ROWS = 64


def sample(policy: Policy, requests: Sequence[SampleRequest]) -> list[Sample]:
    """Draw an answer for each request; the result does not depend on which requests share the batch."""
    import torch

    asked = [r if r.prompt is not None else with_prompt(policy, r) for r in requests]
    drawn: dict[int, Sample] = {}
    with torch.no_grad():
        for adapter in sorted({r.adapter for r in asked}, key=str):
            mine = [i for i, r in enumerate(asked) if r.adapter == adapter]
            with policy.select(adapter):
                constrained = [i for i in mine if asked[i].choices is not None]
                free = [i for i in mine if asked[i].choices is None]
                drawn.update(zip(constrained, sample_choices(policy, [asked[i] for i in constrained]), strict=True))
                texts = decode(policy, adapter, [asked[i] for i in free], MOST_ROWS)
                drawn.update(zip(free, texts, strict=True))
    return [drawn[i] for i in range(len(asked))]


def sample_choices(policy: Policy, requests: Sequence[SampleRequest]) -> list[Sample]:
    """The answers of requests with choices, whose prompts are known. The policy has their adapter selected."""
    prompts = [r.prompt or [] for r in requests]
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
    greedy = (np.arange(len(choices)) == probabilities.argmax()).astype(float)
    behaviour = explored(greedy if request.temperature == 0 else probabilities, request.exploration)
    # A greedy answer is certain; told of the others is what the model gives them at temperature 1.
    stated = behaviour if request.temperature else probabilities
    chosen = int(np.random.default_rng(request.seed).choice(len(choices), p=behaviour))
    return Sample(
        text=(request.choices or [])[chosen],
        prompt_token_ids=prompt,
        token_ids=choices[chosen],
        logprobs=token_logprobs(choices, behaviour, chosen),
        finish_reason="stop",
        top_logprobs=likeliest_continuations(choices, stated, chosen, request.top_logprobs),
    )
