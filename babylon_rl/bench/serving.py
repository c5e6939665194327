"""`babylon-rl bench serving`: tokens a second of concurrent short calls against calls one at a time, in turn.
Both ask the real endpoint, a process of its own on loopback, for answers to prompts of the simulated market. No prompt
is asked twice, so that nothing but what prompts have in common can be kept from another call.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import msgspec

from babylon_rl.bench.pairs import Compared, Limit, take_turns
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.world import make_window
from babylon_rl.serving.process import running_endpoint

TOGETHER, ALONE = "concurrent", "one at a time"
LEAST = 3.0
TEXT, CHOICES = "free text", "choices"
TOKENS = 1000  # whose seconds are compared: the two ways draw other answers, of other lengths


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint did. `prompt`: mean tokens of a prompt; `tokens`: mean tokens of an answer, by kind of call."""

    model: str
    threads: int
    concurrent: int
    alone: int
    pairs: int
    seed: int
    prompt: dict[str, float]
    tokens: dict[str, float]
    compared: list[Compared]

    @property
    def reached(self) -> bool:
        """Whether concurrent calls are that much faster, of free text."""
        return all(each.reached for each in self.compared)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; seconds."""
        compared = [each.as_json() for each in self.compared]
        return {**msgspec.to_builtins(self), "compared": compared, "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        lines = [
            f"{self.model}, {self.threads} threads, seed {self.seed}: {self.concurrent} concurrent calls against "
            f"{self.alone} one at a time, {self.pairs} pairs; seconds of {TOKENS} drawn tokens"
        ]
        for each in self.compared:
            lengths = f"prompts of {self.prompt[each.title]:.0f} tokens, answers of {self.tokens[each.title]:.1f}"
            lines += ["", lengths, each.table().replace("rows/s", "tokens/s")]
        return "\n".join(lines)


class Drawn(msgspec.Struct):
    """Tokens of what was asked and drawn so far."""

    calls: int = 0
    prompt: int = 0
    tokens: int = 0


def measure_serving(
    base: Path, threads: int, concurrent: int, alone: int, pairs: int, seed: int, say: Callable[[str], None]
) -> Served:
    """So many concurrent calls against so many one at a time, `pairs` rounds of each kind of call."""
    compared, prompt, tokens = [], {}, {}
    with running_endpoint(base, "base", "cpu", threads) as endpoint:
        for kind in (TEXT, CHOICES):
            say(kind)
            asked, drawn = bodies(kind, seed), Drawn()

            def taken(number: int, at_a_time: int, asked: Iterator[dict] = asked, drawn: Drawn = drawn) -> float:
                batch = [next(asked) for _ in range(number)]
                return asyncio.run(_seconds(endpoint.base_url, batch, at_a_time, drawn))

            ways = {TOGETHER: lambda t=taken: t(concurrent, concurrent), ALONE: lambda t=taken: t(alone, 1)}
            # Answers of a few tokens out of a few choices cost as much as HTTP: told, and no figure to reach.
            limits = [Limit(of=TOGETHER, against=ALONE, least=LEAST)] if kind == TEXT else []
            seconds = take_turns(ways, pairs, say)
            compared.append(Compared(title=kind, rows=TOKENS, seconds=seconds, limits=limits))
            prompt[kind], tokens[kind] = drawn.prompt / drawn.calls, drawn.tokens / drawn.calls
    return Served(
        model=base.name,
        threads=threads,
        concurrent=concurrent,
        alone=alone,
        pairs=pairs,
        seed=seed,
        prompt=prompt,
        tokens=tokens,
        compared=compared,
    )


def bodies(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """Calls of the market's agents, window after window, without end: 32 tokens of text, or one of the actions."""
    number, said = 0, set()
    for index in count():
        window = make_window(seed, "train", index)
        for agent in make_agents(seed, "train", index):
            told = observation(window, agent)
            if told in said:
                continue
            said.add(told)
            number += 1
            body: dict[str, Any] = {
                "model": "base",
                "messages": [
                    {"role": "system", "content": system_prompt()},
                    {"role": "user", "content": told},
                ],
                "max_tokens": 32,
                "seed": seed + number,
            }
            if kind == CHOICES:
                body["structured_outputs"] = {"choice": choices(agent.instrument)}
            yield body


async def _seconds(base_url: str, batch: Sequence[dict], at_a_time: int, drawn: Drawn) -> float:
    """Seconds of `TOKENS` drawn tokens of the batch."""
    free, tokens = asyncio.Semaphore(at_a_time), 0
    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:

        async def ask(body: dict) -> int:
            async with free:
                response = await client.post(f"{base_url}/chat/completions", json=body)
                response.raise_for_status()
                used = response.json()["usage"]
                drawn.calls, drawn.prompt = drawn.calls + 1, drawn.prompt + used["prompt_tokens"]
                drawn.tokens += used["completion_tokens"]
                return used["completion_tokens"]

        begun = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(ask, batch)))
        return (time.perf_counter() - begun) * TOKENS / tokens
