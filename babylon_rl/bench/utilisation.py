"""`babylon-rl bench trainer --model-shape …`: our loss step against a plain loop of transformers and peft.

The model has random weights in the shape of a known one. Utilisation is the arithmetic that the step needs over what
the device does in the same time in one large matrix product, so that it needs no table of cards.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.pairs import take_turns
from babylon_rl.bench.trainer import (
    CLIP,
    OURS,
    Workload,
    loss_step,
    made_answers,
    perturbed_policy,
    recorded,
    trainable,
)
from babylon_rl.errors import SettingsError
from babylon_rl.training.policy import Policy

PLAIN = "plain loop"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A model of Qwen2's kind; `members`, `shared`, `answer`: the group that it is measured on."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    members: int
    shared: int
    answer: int


SHAPES = {
    "0.5b": Shape(width=896, inner=4864, layers=24, heads=14, key_heads=2, vocabulary=151_936, members=16, shared=1024,
                  answer=128),
    "1.5b": Shape(width=1536, inner=8960, layers=28, heads=12, key_heads=2, vocabulary=151_936, members=16,
                  shared=1024, answer=128),
    "test": Shape(width=128, inner=256, layers=2, heads=4, key_heads=2, vocabulary=2_000, members=4, shared=64,
                  answer=16),
}  # fmt: skip


class Utilisation(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each way, one a pair. `needed`: floating-point operations that each way's tokens need.

    `peak`: operations a second in one large matrix product.
    """

    device: str
    shape: str
    precision: str
    layers: int
    useful: int
    tokens: dict[str, int]
    needed: dict[str, float]
    seconds: dict[str, list[float]]
    peak: float

    @property
    def reached(self) -> bool:
        """There is no limit."""
        return True

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "ways": {name: self._way(name) for name in self.seconds}}

    def _way(self, name: str) -> dict[str, float]:
        seconds = statistics.median(self.seconds[name])
        return {
            "seconds": seconds,
            "useful_tokens_a_second": self.useful / seconds,
            "tokens_a_second": self.tokens[name] / seconds,
            "operations_a_second": self.needed[name] / seconds,
            "utilisation": self.needed[name] / seconds / self.peak,
        }

    def table(self) -> str:
        """As a person reads it."""
        lines = [f"{self.device}, {self.shape}, {self.precision}, LoRA on the last {self.layers} layers"]
        for name in self.seconds:
            way = self._way(name)
            lines.append(
                f"{name}: {way['useful_tokens_a_second']:,.0f} useful and {way['tokens_a_second']:,.0f} computed "
                f"tokens a second, {way['operations_a_second'] / 1e12:.3f} TFLOP/s, {way['utilisation']:.0%} of "
                f"{self.peak / 1e12:.3f} in a matrix product"
            )
        return "\n".join(lines)


def measure_utilisation(
    shape: str,
    device: str,
    precision: str | None,
    layers: int,
    pairs: int,
    seed: int,
    say: Callable[[str], None],
) -> Utilisation:
    """Both ways in `pairs` pairs on a group of one prompt. SettingsError for a shape that there is none of."""
    if shape not in SHAPES:
        raise SettingsError(f"There is no model shape {shape!r}; there are {', '.join(SHAPES)}.")
    one = SHAPES[shape]
    layers = min(layers, one.layers)
    with tempfile.TemporaryDirectory(prefix="babylon_rl-bench-") as folder:
        make_random_model(one, Path(folder), seed)
        policy = perturbed_policy(Path(folder), device, precision, layers, seed)
    answers = made_answers(seed, one.members, one.shared, 0, one.answer, one.vocabulary)
    workload = recorded(policy, shape, answers, seed)
    ways = {
        OURS: lambda: _timed(policy, lambda: loss_step(policy, workload)),
        PLAIN: lambda: _timed(policy, lambda: plain_step(policy, workload)),
    }
    seconds = take_turns(ways, pairs, say)
    tokens = {OURS: workload.computed, PLAIN: workload.padded}
    return Utilisation(
        device=_name(device),
        shape=shape,
        precision=precision or "float32",
        layers=layers,
        useful=workload.useful,
        tokens=tokens,
        needed={name: operations(policy, number, workload.useful, layers) for name, number in tokens.items()},
        seconds=seconds,
        peak=_peak(device, precision),
    )


def make_random_model(shape: Shape, folder: Path, seed: int) -> None:
    """A model with random weights, and a tokenizer that knows the ends of a turn."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    wrapped.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    wrapped.save_pretrained(folder)


def plain_step(policy: Policy, workload: Workload) -> float:
    """The same loss as people write it first: a padded batch, the logits of its answers, log-softmax, backward."""
    import torch

    for parameter in trainable(policy):
        parameter.grad = None
    prompts, answers = [a.prompt for a in workload.answers], [a.tokens for a in workload.answers]
    before, after = max(map(len, prompts)), max(map(len, answers))
    rows = [[0] * (before - len(p)) + p + a + [0] * (after - len(a)) for p, a in zip(prompts, answers, strict=True)]
    there = [
        [0] * (before - len(p)) + [1] * (len(p) + len(a)) + [0] * (after - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    tokens, mask = (torch.tensor(each, device=policy.device) for each in (rows, there))
    logits = policy.model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=after + 1).logits
    scores = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    logprobs = scores.gather(2, tokens[:, before:, None])[..., 0]
    recorded_before = [lp + [0.0] * (after - len(lp)) for lp in workload.logprobs]
    weight = (logprobs.detach() - torch.tensor(recorded_before, device=policy.device)).exp().clamp(max=CLIP)
    advantages = torch.tensor(workload.advantages, device=policy.device)[:, None]
    loss = -(advantages * weight * logprobs * mask[:, before:]).sum() / workload.useful
    loss.backward()
    return float(loss.detach())


def operations(policy: Policy, tokens: int, scored: int, layers: int) -> float:
    """Floating-point operations of the matrix products that a step over so many tokens needs, attention left out.

    Two a weight and token forward, two more backward through the layers with LoRA, whose frozen weights need no
    gradient; the head is needed for the scored tokens alone, forward and backward.
    """
    config = policy.model.config
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads * head
    a_layer = 2 * width * width + 2 * width * keys + 3 * width * config.intermediate_size
    return 2.0 * a_layer * tokens * (config.num_hidden_layers + layers) + 4.0 * config.vocab_size * width * scored


def _timed(policy: Policy, step: Callable[[], float]) -> float:
    import torch

    begun = time.perf_counter()
    step()
    if policy.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _peak(device: str, precision: str | None) -> float:
    """Operations a second of the best of some products of square matrices."""
    import torch

    size = 8192 if device != "cpu" else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.float32 if precision is None else torch.bfloat16)
    taken = []
    for _ in range(8):
        begun = time.perf_counter()
        matrix @ matrix
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return 2 * size**3 / min(taken)


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device != "cpu" else "CPU"
