"""Choice-constrained answers: which tokens may come next, and the distribution that is really sampled from.

An answer is one of a list of token sequences. The masked policy gives each step's probability to the tokens that some
choice still continues with; a forced token has log-probability 0. Exploration mixes the uniform distribution over the
choices into the policy; the recorded log-probabilities are the mixture's, token by token.
"""

from collections.abc import Sequence

import numpy as np

from babylon_rl.errors import TrainingError


def allowed_tokens(choices: Sequence[Sequence[int]], answer: Sequence[int]) -> list[list[int]]:
    """For each token of `answer`: the sorted tokens that a choice with the same beginning continues with.

    TrainingError where the answer is none of the choices.
    """
    if list(answer) not in [list(choice) for choice in choices]:
        raise TrainingError("A recorded answer is none of the choices it was sampled from; its recording is damaged.")
    allowed = []
    for length in range(len(answer)):
        prefix = list(answer[:length])
        allowed.append(sorted({c[length] for c in choices if len(c) > length and list(c[:length]) == prefix}))
    return allowed


def explored(probabilities: np.ndarray, exploration: float) -> np.ndarray:
    """The behaviour policy's probability of each choice: (1 - exploration) policy + exploration uniform."""
    return (1 - exploration) * probabilities + exploration / len(probabilities)


def token_logprobs(choices: Sequence[Sequence[int]], probabilities: np.ndarray, chosen: int) -> list[float]:
    """Log-probability of each token of the chosen answer, given those before it; they sum to the answer's.

    A token's probability is the mass of the choices that begin with the prefix and it, over the prefix's own mass.
    """
    answer = list(choices[chosen])
    logprobs, mass = [], float(np.sum(probabilities))
    for length in range(1, len(answer) + 1):
        begins = [list(choice[:length]) == answer[:length] for choice in choices]
        after = float(np.sum(probabilities[begins]))
        logprobs.append(float(np.log(after / mass)))
        mass = after
    return logprobs
