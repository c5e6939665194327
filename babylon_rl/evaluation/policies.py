"""The policy of a served checkpoint on recorded prompts: the probability of each legal answer, not one drawn answer.

An endpoint of ours answers a constrained call with the exact log-probability of the answer that it drew. With most of
the draw uniform over the choices (`exploration`) all of them come up within a few calls, and the policy's own share is
what is left: b = (1 - e) p + e / k. The last choice has the rest. So the expectation over the policy is exact, to the
rounding of the log-probabilities, and no luck of a draw is in it.

Another endpoint may not know `exploration`, and says the log-probability of the unconstrained text: there the share of
each answer among seeded draws stands for its probability, with the standard error of a share, at most
1 / (2 sqrt(DRAWS)).
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx

from babylon_rl.errors import ServingError
from babylon_rl.evaluation.asking import Asked
from babylon_rl.market.endpoint import ask, connect
from babylon_rl.market.play import call_seed

EXPLORATION = 0.9
ROUNDING = 1e-3  # of a probability; more is another distribution than the endpoint claims to draw from
DRAWS = 32
CONCURRENCY = 16  # prompts


class Prompt(NamedTuple):
    """A recorded decision as it is asked again: verbatim texts, the choices that it had, and its temperature."""

    name: str
    system: str
    user: str
    choices: tuple[str, ...]
    temperature: float


class PromptPolicy(NamedTuple):
    """Probability by choice. `valid`: share of answers that are choices; below 1 only where draws stand for them."""

    probabilities: dict[str, float]
    valid: float
    exact: bool


def policies_on(
    asked: Asked, prompts: Sequence[Prompt], seed: int, progress: Callable[[], None] | None = None
) -> list[PromptPolicy]:
    """The checkpoint's policy on each prompt, in order. ServingError where the endpoint fails."""

    async def all_of() -> list[PromptPolicy]:
        room = asyncio.Semaphore(CONCURRENCY)
        async with connect(asked.endpoint) as client:

            async def one(prompt: Prompt) -> PromptPolicy:
                async with room:
                    found = await (_exact if asked.ours else _drawn)(client, asked, prompt, seed)
                if progress is not None:
                    progress()
                return found

            tasks = [asyncio.ensure_future(one(prompt)) for prompt in prompts]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(all_of())


async def _exact(client: httpx.AsyncClient, asked: Asked, prompt: Prompt, seed: int) -> PromptPolicy:
    """Draw until all choices but one have told their probability."""
    known: dict[str, float] = {}
    uniform, least = EXPLORATION / len(prompt.choices), len(prompt.choices) - 1
    for draw in range(40 * len(prompt.choices)):
        if len(known) >= max(1, least):
            break
        body = _body(asked, prompt, call_seed(seed, prompt.name, str(draw))) | {"exploration": EXPLORATION}
        answer = await ask(client, asked.endpoint, body)
        if answer.text not in prompt.choices or not answer.logprobs:
            raise ServingError(
                f"{asked.endpoint.model} answered {answer.text[:80]!r} without log-probabilities or none of the "
                "choices. See that the endpoint knows structured_outputs.choice, exploration and logprobs."
            )
        known[answer.text] = (math.exp(math.fsum(answer.logprobs)) - uniform) / (1 - EXPLORATION)
    rest = 1 - math.fsum(known.values())
    missing = [choice for choice in prompt.choices if choice not in known]
    if not -ROUNDING <= rest <= 1 + ROUNDING or any(not -ROUNDING <= p <= 1 + ROUNDING for p in known.values()):
        raise ServingError(
            f"The probabilities that {asked.endpoint.model} tells of {prompt.name} are none: {known}. The endpoint "
            "draws from another distribution than it says."
        )
    # Two or more are missing only where uniform draws never met them, less than once in 10^20 prompts.
    known |= dict.fromkeys(missing, rest / len(missing) if missing else 0.0)
    clipped = {choice: min(1.0, max(0.0, known[choice])) for choice in prompt.choices}
    return PromptPolicy(_sum_to_one(clipped), 1.0, exact=True)


async def _drawn(client: httpx.AsyncClient, asked: Asked, prompt: Prompt, seed: int) -> PromptPolicy:
    """The shares of the answers among seeded draws; what is no choice is nobody's."""
    counted: Counter[str] = Counter()
    for draw in range(DRAWS):
        body = _body(asked, prompt, call_seed(seed, prompt.name, str(draw)))
        counted[(await ask(client, asked.endpoint, body)).text.strip()] += 1
    shares = {choice: counted[choice] / DRAWS for choice in prompt.choices}
    return PromptPolicy(shares, math.fsum(shares.values()), exact=False)


def _body(asked: Asked, prompt: Prompt, seed: int) -> dict[str, Any]:
    texts = (("system", prompt.system), ("user", prompt.user))
    return {
        "model": asked.endpoint.model,
        # A decision that was recorded without a system prompt had none.
        "messages": [{"role": role, "content": text} for role, text in texts if text],
        "temperature": prompt.temperature,
        "max_tokens": 16,
        "seed": seed,
        "logprobs": True,
        "structured_outputs": {"choice": list(prompt.choices)},
    }


def _sum_to_one(probabilities: dict[str, float]) -> dict[str, float]:
    total = math.fsum(probabilities.values())
    return {choice: value / total for choice, value in probabilities.items()}
