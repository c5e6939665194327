"""`babylon-rl bench trainer`: one loss step over a group, ours against TRL's, in turn in one run.

Both take the same model, adapter, tokens, advantages, recorded log-probabilities and threads. Useful tokens are those
of the answers, however many tokens of prompts and padding are computed for them.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.pairs import Compared, Limit, take_turns
from babylon_rl.bench.trl_environment import TRL, TrlProcess, trl_process, trl_python
from babylon_rl.errors import SettingsError
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.world import make_window
from babylon_rl.training.packing import pack
from babylon_rl.training.policy import Answer, Policy
from babylon_rl.training.recipe import Recipe

OURS, THEIRS = "packed", "TRL"
LEAST = 1.5
MOST_DIFFERENCE = 1e-4
# Importance weights above this are cut (CISPO).
CLIP = 5.0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A group: an answer, an advantage and recorded log-probabilities for each member."""

    name: str
    answers: list[Answer]
    advantages: list[float]
    logprobs: list[list[float]]

    @property
    def useful(self) -> int:
        """Tokens of the answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    @property
    def computed(self) -> int:
        """Tokens that the packed rows compute."""
        return sum(len(row.tokens) for row in pack([a.prompt + a.tokens[:-1] for a in self.answers]))

    @property
    def padded(self) -> int:
        """Tokens of the batch that is padded to the longest prompt and the longest answer."""
        longest = max(len(a.prompt) for a in self.answers) + max(len(a.tokens) for a in self.answers)
        return len(self.answers) * longest


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload came to. `difference`: of the two gradients, relative to TRL's, all parameters as one vector.

    `processor`: seconds of all threads, by way and pair: what is left of a comparison on a machine that others load.
    """

    workload: str
    answers: int
    useful: int
    computed: int
    padded: int
    compared: Compared
    processor: dict[str, list[float]]
    difference: float
    most_difference: float

    @property
    def ratios(self) -> list[float]:
        """How many times as fast, pair by pair."""
        return _ratios(self.compared.seconds)

    @property
    def processor_ratio(self) -> float:
        """How many times the processor seconds TRL took, median over pairs."""
        return statistics.median(_ratios(self.processor))

    @property
    def reached(self) -> bool:
        """Whether it is fast enough and did the same work."""
        return self.compared.reached and self.difference <= self.most_difference

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        rates = {name: self.useful / statistics.median(taken) for name, taken in self.compared.seconds.items()}
        return {
            **msgspec.to_builtins(self),
            "useful_tokens_a_second": rates,
            "answers_a_second": {name: rate * self.answers / self.useful for name, rate in rates.items()},
            "ratio": statistics.median(self.ratios),
            "ratios": self.ratios,
            "processor_ratio": self.processor_ratio,
            "reached": self.reached,
        }

    def lines(self) -> list[str]:
        """As a person reads it."""
        found = self.as_json()
        each = ", ".join(
            f"{name} {found['useful_tokens_a_second'][name]:.1f} tokens and {found['answers_a_second'][name]:.2f} "
            f"answers a second (median {statistics.median(taken):.2f} s)"
            for name, taken in self.compared.seconds.items()
        )
        fast = f"{found['ratio']:.2f} times as fast, pairs {min(self.ratios):.2f} to {max(self.ratios):.2f}, "
        fast += f"{self.processor_ratio:.2f} by processor seconds"
        return [
            f"{self.workload}: {self.answers} answers of {self.useful} tokens; computed {self.computed}, "
            f"padded {self.padded}",
            f"  {each}",
            f"  {'reached' if self.reached else 'MISSED'}: {fast} (at least {LEAST}); gradients differ by "
            f"{self.difference:.1e} (at most {self.most_difference:.0e})",
        ]


class TrainerBench(msgspec.Struct, frozen=True, kw_only=True):
    """All workloads of a run."""

    model: str
    precision: str
    threads: int
    pairs: int
    seed: int
    cases: list[Case]

    @property
    def reached(self) -> bool:
        """Whether every workload is fast enough."""
        return all(case.reached for case in self.cases)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; seconds."""
        return {
            **msgspec.to_builtins(self),
            "trl": TRL,
            "cases": [case.as_json() for case in self.cases],
            "reached": self.reached,
        }

    def table(self) -> str:
        """As a person reads it."""
        head = f"{self.model}, {self.precision}, {self.threads} threads, {self.pairs} pairs, seed {self.seed}, {TRL}"
        return "\n".join([head, *(line for case in self.cases for line in case.lines())])


def _ratios(seconds: Mapping[str, Sequence[float]]) -> list[float]:
    return [theirs / ours for ours, theirs in zip(seconds[OURS], seconds[THEIRS], strict=True)]


# --- the groups ------------------------------------------------------------------------------------


def market_answers(policy: Policy, seed: int) -> list[Answer]:
    """A window's group of the simulated market: a random legal answer of each agent, scored as free text."""
    stream, window = random.Random(seed), make_window(seed, "train", 0)
    answers = []
    for agent in make_agents(seed, "train", 0):
        told = [
            {"role": "system", "content": system_prompt()},
            {"role": "user", "content": observation(window, agent)},
        ]
        tokens = policy.chat.answer(stream.choice(choices(agent.instrument)))
        answers.append(Answer(policy.chat.prompt(told), tokens, None, 1.0))
    return answers


def made_answers(seed: int, members: int, shared: int, own: int, answer: int, vocabulary: int) -> list[Answer]:
    """A group of random tokens: so many that all share, then each member's own, then its answer."""
    stream = random.Random(seed)

    def tokens(number: int) -> list[int]:
        return [stream.randrange(vocabulary // 10, vocabulary) for _ in range(number)]

    together = tokens(shared)
    return [Answer(together + tokens(own), tokens(answer), None, 1.0) for _ in range(members)]


def recorded(policy: Policy, name: str, answers: Sequence[Answer], seed: int) -> Workload:
    """With advantages, and with log-probabilities as a slightly other policy recorded them."""
    import torch

    stream = random.Random(seed)
    logprobs: dict[int, list[float]] = {}
    with torch.no_grad():
        for members, evaluated in policy.evaluate(answers):
            for member, one in zip(members, evaluated, strict=True):
                logprobs[member] = [lp + stream.gauss(0, 0.1) for lp in one.logprobs.tolist()]
    return Workload(
        name=name,
        answers=list(answers),
        advantages=[stream.gauss(0, 1) for _ in answers],
        logprobs=[logprobs[i] for i in range(len(answers))],
    )


def workloads(policy: Policy, seed: int) -> list[Workload]:
    """A window of the market, completions of one prompt, and prompts with a common beginning."""
    size = policy.model.config.vocab_size
    return [
        recorded(policy, "a window of the market", market_answers(policy, seed), seed),
        recorded(policy, "8 texts on one prompt", made_answers(seed, 8, 400, 0, 64, size), seed),
        recorded(policy, "8 prompts that begin alike", made_answers(seed, 8, 300, 60, 16, size), seed),
    ]


# --- the steps -------------------------------------------------------------------------------------


def perturbed_policy(base: Path, device: str, precision: str | None, layers: int, seed: int) -> Policy:
    """With an adapter in which no factor is zero, for a fresh one has half a gradient."""
    import torch

    policy = Policy(base, device, precision)
    policy.add_fresh_adapter(Recipe(lora_layers=layers), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(policy):
            parameter.add_((0.01 * torch.randn(parameter.shape, generator=generator)).to(parameter.device))
    return policy


def trainable(policy: Policy) -> list[Any]:
    """Its trained parameters."""
    return [p for p in policy.model.parameters() if p.requires_grad]


def loss_step(policy: Policy, workload: Workload) -> float:
    """Forward and backward over the group, row by row; the loss of `trl_step`: CISPO, mean over answer tokens."""
    import torch

    total = 0.0
    for parameter in trainable(policy):
        parameter.grad = None
    for members, evaluated in policy.evaluate(workload.answers):
        loss = torch.zeros((), device=policy.device)
        for member, one in zip(members, evaluated, strict=True):
            before = torch.tensor(workload.logprobs[member], device=policy.device)
            weight = (one.logprobs.detach() - before).exp().clamp(max=CLIP)
            loss = loss - workload.advantages[member] * (weight * one.logprobs).sum() / workload.useful
        loss.backward()
        total += float(loss.detach())
    return total


def _timed(policy: Policy, workload: Workload) -> dict[str, float]:
    begun, spent = time.perf_counter(), time.process_time()
    loss_step(policy, workload)
    return {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - spent}


def gradient_difference(policy: Policy, file: Path) -> float:
    """Norm of the difference to the gradient in the file, over the file's norm."""
    from safetensors.torch import load_file

    theirs, apart, size = load_file(file), 0.0, 0.0
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            other = theirs.pop(name)
            apart += float((parameter.grad.float().cpu() - other).double().square().sum())
            size += float(other.double().square().sum())
    if theirs:
        raise SettingsError(f"The gradients are not of the same parameters; only TRL has {sorted(theirs)[:3]}.")
    return (apart / size) ** 0.5


# --- the bench -------------------------------------------------------------------------------------


def measure_trainer(
    base: Path,
    home: Path,
    threads: int,
    pairs: int,
    seed: int,
    precision: str | None,
    layers: int,
    say: Callable[[str], None],
) -> TrainerBench:
    """Each workload in `pairs` pairs; the last `layers` have LoRA."""
    python = trl_python(home, say)
    policy = perturbed_policy(base, "cpu", precision, layers, seed)
    every = workloads(policy, seed)
    with tempfile.TemporaryDirectory(prefix="babylon_rl-bench-") as name:
        folder = Path(name)
        policy.model.save_pretrained(folder / "adapter")
        job = _job(base, folder / "adapter", precision, threads, policy.tokenizer.eos_token_id, every)
        (folder / "job.json").write_text(json.dumps(job))
        with trl_process(python, folder / "job.json", threads) as other:
            cases = [_case(policy, other, place, one, folder, pairs, precision, say) for place, one in enumerate(every)]
    said = precision or "float32"
    return TrainerBench(model=base.name, precision=said, threads=threads, pairs=pairs, seed=seed, cases=cases)


def _job(
    base: Path, adapter: Path, precision: str | None, threads: int, pad: int, every: Sequence[Workload]
) -> dict[str, Any]:
    return {
        "base": str(base),
        "adapter": str(adapter),
        "precision": precision,
        "device": "cpu",
        "threads": threads,
        "pad": pad,
        "clip": CLIP,
        "workloads": [
            {
                "prompts": [a.prompt for a in one.answers],
                "answers": [a.tokens for a in one.answers],
                "advantages": one.advantages,
                "logprobs": one.logprobs,
            }
            for one in every
        ],
    }


def _case(
    policy: Policy,
    other: TrlProcess,
    place: int,
    workload: Workload,
    folder: Path,
    pairs: int,
    precision: str | None,
    say: Callable[[str], None],
) -> Case:
    say(workload.name)
    processor: dict[str, list[float]] = {OURS: [], THEIRS: []}

    def noted(name: str, found: dict[str, float]) -> float:
        processor[name].append(found["processor_seconds"])
        return found["seconds"]

    ways = {OURS: lambda: noted(OURS, _timed(policy, workload)), THEIRS: lambda: noted(THEIRS, other.step(place))}
    taken = take_turns(ways, pairs, say)
    other.gradient(place, folder / "gradient.safetensors")
    loss_step(policy, workload)
    return Case(
        workload=workload.name,
        answers=len(workload.answers),
        useful=workload.useful,
        computed=workload.computed,
        padded=workload.padded,
        compared=Compared(
            title=workload.name,
            rows=workload.useful,
            seconds=taken,
            limits=[Limit(of=OURS, against=THEIRS, least=LEAST)],
        ),
        processor={name: found[1:] for name, found in processor.items()},  # the first round is not counted
        difference=gradient_difference(policy, folder / "gradient.safetensors"),
        # Numbers of eight bits differ by a percent after a few layers.
        most_difference=MOST_DIFFERENCE if precision is None else 0.1,
    )
