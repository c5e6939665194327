"""Drawing tokens from a batch of logits, each by its own seed, with the log-probability it was really drawn with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

MOST_TOP = 20  # most likely tokens that a request may ask for at each place


class Drawn(NamedTuple):
    """A token, its log-probability, and those of the most likely tokens (token to log-probability), likeliest first."""

    token: int
    logprob: float
    top: dict[int, float]


class Draw(NamedTuple):
    """How one row is drawn. `uniform`: a number from 0 to below 1; `top`: number of most likely tokens asked for."""

    temperature: float
    top_p: float
    uniform: float
    top: int = 0


def draw_tokens(logits: "torch.Tensor", draws: Sequence[Draw]) -> list[Drawn]:
    """A token for each row of `logits`, (rows, vocabulary).

    A row's answer does not depend on the others. At temperature 0 it is the most likely token, with log-probability 0,
    and the most likely tokens are those at temperature 1; else they are those of the distribution that was drawn from.
    """
    import torch

    device = logits.device
    temperatures = torch.tensor([d.temperature or 1.0 for d in draws], dtype=torch.float64, device=device)
    logprobs = torch.log_softmax(logits.double() / temperatures[:, None], dim=-1)
    for row, draw in enumerate(draws):
        if draw.top_p < 1 and draw.temperature:
            logprobs[row] = _nucleus(logprobs[row], draw.top_p)
    cumulated = logprobs.exp().cumsum(-1)
    aims = torch.tensor([d.uniform for d in draws], dtype=torch.float64, device=device) * cumulated[:, -1]
    tokens = torch.searchsorted(cumulated, aims[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    if any(not d.temperature for d in draws):
        greedy = torch.tensor([not d.temperature for d in draws], device=device)
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    found = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    tops = _tops(logprobs, max(d.top for d in draws))
    return [
        Drawn(token, logprob if draw.temperature else 0.0, dict(top[: draw.top]))
        for draw, token, logprob, top in zip(draws, tokens.tolist(), found, tops, strict=True)
    ]


def _nucleus(logprobs: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """The log-probabilities within the likeliest tokens that together have `top_p`; minus infinity outside."""
    import torch

    ordered, order = torch.sort(logprobs, descending=True, stable=True)
    before = ordered.exp().cumsum(0) - ordered.exp()
    kept = order[before < top_p]
    inside = torch.full_like(logprobs, float("-inf"))
    inside[kept] = logprobs[kept] - torch.logsumexp(logprobs[kept], 0)
    return inside


def _tops(logprobs: "torch.Tensor", most: int) -> list[list[tuple[int, float]]]:
    if not most:
        return [[] for _ in logprobs]
    values, tokens = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    return [
        [(t, v) for t, v in zip(row, of, strict=True) if v > float("-inf")]
        for row, of in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def likeliest_continuations(
    choices: Sequence[Sequence[int]], stated: np.ndarray, chosen: int, top: int
) -> list[dict[int, float]]:
    """Of each token of the chosen answer, the log-probabilities of the likeliest continuations of some choice.

    `stated`: probabilities of the choices that are told: those drawn from, and at temperature 0 those of the model.
    """
    if not top:
        return [{} for _ in choices[chosen]]
    answer, found = list(choices[chosen]), []
    for length in range(len(answer)):
        masses: dict[int, float] = {}
        for choice, mass in zip(choices, stated, strict=True):
            if len(choice) > length and list(choice[:length]) == answer[:length]:
                masses[choice[length]] = masses.get(choice[length], 0.0) + float(mass)
        whole = sum(masses.values())
        likeliest = sorted(((t, m) for t, m in masses.items() if m > 0), key=lambda one: (-one[1], one[0]))[:top]
        found.append({token: float(np.log(mass / whole)) for token, mass in likeliest})
    return found
