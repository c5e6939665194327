"""Log-probabilities and entropies of given tokens from the hidden states that predict them.

Over the whole vocabulary they are computed in chunks, whose logits are dropped at once: what is kept for the way back
is the gradient of each log-probability, as wide as a hidden state and not as the vocabulary.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Tokens whose logits over the vocabulary exist at a time.
CHUNK = 128


def score_tokens(
    hidden: "torch.Tensor", weights: "torch.Tensor", targets: "torch.Tensor", temperatures: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Of each target among all tokens: float32 (m,) log-probability, and entropy of its distribution (nats).

    `hidden`: (m, width); `weights`: (vocabulary, width), which get no gradient; `targets`: int64 (m,);
    `temperatures`: float32 (m,). With logits z = h W^T / T, p their softmax and H its entropy, the gradients by h are
    (W_target - p W) / T of the log-probability and -(p (log p + H)) W / T of the entropy.
    """
    return _function().apply(hidden, weights, targets, temperatures)


def score_among(
    hidden: "torch.Tensor", weights: "torch.Tensor", targets: "torch.Tensor", temperatures: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The same among a few tokens, and the log-probabilities of all of them, float32 (m, tokens).

    `weights`: (tokens, width) of those; `targets`: which of them.
    """
    import torch

    logprobs = torch.log_softmax((hidden @ weights.T).float() / temperatures[:, None], dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1), logprobs


def _distribution(hidden: Any, weights: Any, temperatures: Any) -> tuple[Any, Any, Any]:
    """Log-probabilities, probabilities and entropies of one chunk."""
    import torch

    logprobs = torch.log_softmax((hidden @ weights.T).float().div_(temperatures[:, None]), dim=-1)
    probabilities = logprobs.exp()
    return logprobs, probabilities, -torch.einsum("mv,mv->m", probabilities, logprobs)


@functools.cache
def _function() -> Any:
    """The autograd function; a class of torch's, which is not imported with this module."""
    import torch

    class TokenScores(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any, weights: Any, targets: Any, temperatures: Any) -> tuple[Any, Any]:
            chosen, entropies, expected = [], [], []
            for start in range(0, len(targets), CHUNK):
                part = slice(start, start + CHUNK)
                logprobs, probabilities, entropy = _distribution(hidden[part], weights, temperatures[part])
                chosen.append(logprobs.gather(1, targets[part, None])[:, 0])
                entropies.append(entropy)
                if ctx.needs_input_grad[0]:
                    expected.append(probabilities.to(weights.dtype) @ weights)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(hidden, weights, targets, temperatures, torch.cat(expected))
            return torch.cat(chosen), torch.cat(entropies)

        @staticmethod
        def backward(ctx: Any, by_logprob: Any, by_entropy: Any) -> tuple[Any, None, None, None]:
            hidden, weights, targets, temperatures, expected = ctx.saved_tensors
            gradient = (by_logprob / temperatures)[:, None] * (weights[targets] - expected)
            if bool(by_entropy.any()):  # without an entropy bonus the logits are not computed again
                for start in range(0, len(targets), CHUNK):
                    part = slice(start, start + CHUNK)
                    logprobs, probabilities, entropy = _distribution(hidden[part], weights, temperatures[part])
                    share = probabilities.mul_(logprobs.add_(entropy[:, None])).to(weights.dtype)
                    gradient[part] -= (by_entropy[part] / temperatures[part])[:, None] * (share @ weights)
            return gradient.to(hidden.dtype), None, None, None

    return TokenScores
