"""`babylon-rl bench attestation`: wrong weights behind a name, and right ones, asked of a real endpoint.

A run of small optimizer steps is made, each saved as a checkpoint with its canaries, as the trainer saves them. Then an
endpoint serves something else under a checkpoint's name, in one of the ways in which that happens, and the attestation
has to say so from the log-probabilities alone: the hash that our own endpoint lists is not asked for.
"""

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from babylon_rl.errors import ServingError
from babylon_rl.loop import corpus
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.world import make_window
from babylon_rl.plans import PLANS, plan_of
from babylon_rl.serving.attestation import TOLERANCES, Attestation, attest
from babylon_rl.serving.process import Endpoint, running_endpoint
from babylon_rl.serving.routing import Target
from babylon_rl.settings import Settings
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.canaries import Canaries, Precision, canary_logprobs
from babylon_rl.training.policy import Answer, Policy, use_threads
from babylon_rl.training.recipe import DECAYED_TO
from babylon_rl.training.trainer import WEIGHTS_FILE

BASE, ASKED, OTHER = "base", "asked", "other"
# Of a hundred trials; the two of a stale adapter are the hard ones.
KINDS = ("earlier", "later") * 30 + ("run", "base", "swapped", "zeroed", "truncated") * 8
WARM_STEPS = 12  # at the recipe's learning rate, before the smallest one
RUNS, CHECKPOINTS = 2, 9
ANSWERS = 8  # of an optimizer step

Kind = Literal["right", "earlier", "later", "run", "base", "swapped", "zeroed", "truncated"]


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint: its adapter's folder, and its canaries as the trainer computes them."""

    folder: Path
    canaries: Canaries


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One attestation. `correct`: right weights were let through, or wrong ones not. `busy`: others asked meanwhile."""

    kind: Kind
    correct: bool
    worst: float | None
    seconds: float
    busy: bool
    said: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All trials, with what they were made from. `rate`: the learning rate of the step between two checkpoints."""

    base_model: str
    precision: Precision
    seed: int
    rate: float
    tolerance: float
    trials: list[Trial]

    @property
    def reached(self) -> bool:
        """Whether each wrong one was detected and each right one let through."""
        return all(trial.correct for trial in self.trials)

    def of(self, *kinds: Kind) -> list[Trial]:
        """The trials of these kinds."""
        return [trial for trial in self.trials if trial.kind in kinds]

    def as_json(self) -> dict[str, Any]:
        """With the two numbers that the tolerance stands between: the worst right one and the least stale one."""
        right = [t.worst for t in self.of("right") if t.worst is not None]
        stale = [t.worst for t in self.of("earlier", "later") if t.worst is not None]
        return {
            **{name: getattr(self, name) for name in ("base_model", "precision", "seed", "rate", "tolerance")},
            "reached": self.reached,
            "correct": dict(Counter(t.kind for t in self.trials if t.correct)),
            "trials": dict(Counter(t.kind for t in self.trials)),
            "worst_right": max(right, default=None),
            "least_stale": min(stale, default=None),
            "seconds": sorted(t.seconds for t in self.trials)[len(self.trials) // 2] if self.trials else None,
            "missed": [t.said for t in self.trials if not t.correct],
        }


def smallest_rate() -> float:
    """The smallest learning rate of the recipes: the least one, when it has decayed."""
    return min(plan.recipe.learning_rate for plan in PLANS.values()) * DECAYED_TO


def measure_attestation(
    settings: Settings,
    trials: int = 100,
    seed: int = 0,
    rate: float | None = None,
    precision: Precision = "float32",
    say: Callable[[str], object] = lambda _: None,
) -> Found:
    """So many trials with wrong weights, and as many with right ones, on the settings' base model."""
    rate = smallest_rate() if rate is None else rate
    base = prepare_base_model(settings.base_model, settings.home, seed, corpus(40))
    use_threads(settings.threads)
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(dir=settings.home) as folder:
        runs = [
            list(made_run(settings, base, Path(folder) / str(run), seed + run, rate, precision)) for run in range(RUNS)
        ]
        given = None if precision == "float32" else precision
        with running_endpoint(base, BASE, settings.device, settings.threads, precision=given) as endpoint:
            bench = _Bench(endpoint, runs, settings.attest_tolerance, Path(folder) / "spoilt")
            for number, kind in enumerate(kinds_of(trials)):
                busy = number % 2 == 1
                stream = random.Random(f"{seed} {number}")
                with asking(endpoint) if busy else contextlib.nullcontext():
                    done += [bench.trial("right", stream, busy), bench.trial(kind, stream, busy)]
                say(f"{number + 1} of {trials}: {kind}, {done[-1].said}")
    tolerance = settings.attest_tolerance or TOLERANCES[precision]
    return Found(
        base_model=settings.base_model, precision=precision, seed=seed, rate=rate, tolerance=tolerance, trials=done
    )


def kinds_of(trials: int) -> list[Kind]:
    """Kinds of so many trials, in the shares of `KINDS`, spread over them."""
    stream = random.Random(trials)
    kinds = [*KINDS] * (trials // len(KINDS))
    rest = sorted(KINDS, key=lambda _: stream.random())
    # Each kind comes at least once before any of them comes in its share.
    firsts = list(dict.fromkeys(rest))
    return [*kinds, *(firsts + rest)[: trials - len(kinds)]]  # type: ignore[return-value]


# --- checkpoints -----------------------------------------------------------------------------------


def made_run(
    settings: Settings, base: Path, folder: Path, seed: int, rate: float, precision: Precision
) -> Iterator[Made]:
    """`CHECKPOINTS` of one run, one optimizer step apart, along the trainer's path: same policy, same optimizer."""
    import torch

    recipe = plan_of(settings.base_model).recipe
    policy = Policy(base, settings.device, None if precision == "float32" else precision)
    policy.add_fresh_adapter(recipe, seed)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=recipe.adam_betas, weight_decay=0.0)
    for step in range(WARM_STEPS + CHECKPOINTS):
        late = step >= WARM_STEPS
        for group in optimizer.param_groups:
            group["lr"] = rate if late else recipe.learning_rate
        optimizer.zero_grad()
        stream = random.Random(f"{seed} {step}")
        for members, evaluated in policy.evaluate(_answers(policy, stream)):
            # Advantages of both signs, as in training: what one answer gains another one loses.
            advantages = [stream.gauss(0, 1) for _ in members]
            losses = [-a * e.logprobs.sum() for a, e in zip(advantages, evaluated, strict=True)]
            torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        if late:
            place = folder / str(step)
            policy.model.save_pretrained(place)
            prompts = canary_logprobs(policy, policy.adapters[-1])
            name = f"{folder.name}@{step}"
            yield Made(
                folder=place,
                canaries=Canaries(checkpoint_id=name, precision=precision, prompts=prompts, made_by="trainer"),
            )


def _answers(policy: Policy, stream: random.Random) -> list[Answer]:
    found = []
    for _ in range(ANSWERS):
        index = stream.randrange(1000)
        window, agent = make_window(0, "train", index), stream.choice(make_agents(0, "train", index))
        messages = [
            {"role": "system", "content": system_prompt()},
            {"role": "user", "content": observation(window, agent)},
        ]
        said = [policy.chat.answer(text) for text in choices(agent.instrument)]
        found.append(Answer(policy.chat.prompt(messages), stream.choice(said), said, 1.0))
    return found


# --- trials ----------------------------------------------------------------------------------------


class _Bench:
    """The endpoint, the checkpoints, and how each kind of trial goes wrong."""

    def __init__(self, endpoint: Endpoint, runs: list[list[Made]], tolerance: float, spoilt: Path) -> None:
        self.endpoint, self.runs, self.tolerance, self.spoilt = endpoint, runs, tolerance, spoilt

    def trial(self, kind: Kind, stream: random.Random, busy: bool) -> Trial:
        """One of that kind, on checkpoints that the stream draws."""
        own = stream.choice(self.runs)
        place = stream.randrange(1, len(own) - 1)
        wanted = own[place]
        other = next(run for run in self.runs if run is not own)[place]
        begun = time.perf_counter()
        try:
            if kind == "swapped":
                self.endpoint.load(OTHER, str(wanted.folder), in_place=True)
                found = self._attested(own[place - 1], own[place - 1], OTHER)
                if found.state == "differs":
                    found = self._attested(own[place - 1], wanted)
            elif kind == "base":
                found = self._attested(None, wanted, BASE)
            else:
                served = {"earlier": own[place - 1], "later": own[place + 1], "run": other}.get(kind, wanted)
                found = self._attested(self._as_served(kind, served, stream), wanted)
            worst, said, passed = found.worst, f"{found.state}: {found.reason}", found.may_serve
        except ServingError as error:  # it was not even loaded
            worst, said, passed = None, f"not loaded: {error}", False
        seconds = time.perf_counter() - begun
        return Trial(kind=kind, correct=passed == (kind == "right"), worst=worst, seconds=seconds, busy=busy, said=said)

    def _attested(self, served: Made | None, wanted: Made, name: str = ASKED) -> Attestation:
        """`served` is loaded as `ASKED`; what answers under `name` is compared with what is wanted."""
        if served is not None:
            self.endpoint.load(ASKED, str(served.folder), in_place=True)
        target = Target(checkpoint_id=wanted.canaries.checkpoint_id, base_url=self.endpoint.base_url, model=name)
        return attest(target, wanted.canaries, self.tolerance)

    def _as_served(self, kind: Kind, made: Made, stream: random.Random) -> Made:
        """The checkpoint, or a copy of it whose weights are spoilt."""
        if kind not in ("zeroed", "truncated"):
            return made
        shutil.rmtree(self.spoilt, ignore_errors=True)
        shutil.copytree(made.folder, self.spoilt)
        file = self.spoilt / WEIGHTS_FILE
        if kind == "truncated":
            content = file.read_bytes()
            file.write_bytes(content[: stream.randrange(len(content) // 2, len(content))])
        else:
            _zero_one(file, stream)
        return msgspec.structs.replace(made, folder=self.spoilt)


def _zero_one(file: Path, stream: random.Random) -> None:
    """Set one tensor of the file to zero."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    name = stream.choice(sorted(weights))
    save_file({**weights, name: torch.zeros_like(weights[name])}, file, metadata={"format": "pt"})


@contextlib.contextmanager
def asking(endpoint: Endpoint, callers: int = 2) -> Iterator[None]:
    """Others ask the base model meanwhile, so that batches are mixed."""
    ended = threading.Event()

    def ask(number: int) -> None:
        count = 0
        with httpx.Client(base_url=endpoint.base_url, timeout=120, trust_env=False) as client:
            while not ended.is_set():
                count += 1
                said = {"role": "user", "content": f"Caller {number} asks for the {count}. time: buy or sell?"}
                body = {"model": BASE, "messages": [said], "max_tokens": 4 + count % 5, "seed": count}
                with contextlib.suppress(httpx.HTTPError):
                    client.post("/chat/completions", json=body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
