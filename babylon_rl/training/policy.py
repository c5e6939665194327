"""The policy on torch: a causal language model with LoRA adapters, evaluated on packed rows.

Trainer and endpoint share this file, so that a recorded log-probability and the one it is compared with come from the
same computation: same prompt tokens, same mask, same temperature.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from babylon_rl.errors import ModelError
from babylon_rl.training.chat_tokens import ChatTokens
from babylon_rl.training.choices import allowed_tokens
from babylon_rl.training.packing import ROW_TOKENS, PackedRow, pack
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.token_scores import score_among, score_tokens
from babylon_rl.training.tree_attention import TREE_ATTENTION, attending, no_mask, register

if TYPE_CHECKING:
    import torch

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Answer(msgspec.Struct, frozen=True):
    """A sampled answer to evaluate: token ids of prompt, answer and choices (None: free text)."""

    prompt: list[int]
    tokens: list[int]
    choices: list[list[int]] | None
    temperature: float


@dataclass(frozen=True)
class Evaluated:
    """Per token of an answer, under the masked policy: float (tokens,) log-probabilities and entropies (nats).

    `opening`: where the first token is chosen from a few, the log-probability of each of them, by token.
    """

    logprobs: "torch.Tensor"
    entropies: "torch.Tensor"
    choosing: list[bool]  # False where the mask left one token only
    opening: "dict[int, torch.Tensor]"


def use_threads(threads: int) -> int:
    """Set torch's threads; 0 means one per core. Returns their number."""
    import os

    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    return torch.get_num_threads()


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`; auto is cuda where there is one. ModelError where cuda is asked for and is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device is cuda and no CUDA device is there; set BABYLON_RL_DEVICE=cpu.")
    return device


def precision_of(precision: str, device: str) -> str | None:
    """The setting `precision` on a device as `Policy` takes it: bfloat16, or None for float32.

    `auto` is bfloat16 on cuda, and float32 on the CPU: one without instructions for bfloat16 takes many times as long.
    """
    if precision == "auto":
        known = resolve_device(device) if device == "auto" else device
        precision = "bfloat16" if known.startswith("cuda") else "float32"
    return None if precision == "float32" else precision


class Policy:
    """A base model and its adapters. `select` chooses which of them answers; None is the base model itself.

    `chat`: tokens of what is said to it; `context`: how many of them prompt and answer may have together.
    `precision`: bfloat16, or None for float32, of the base model's weights; adapters have float32 weights, and
    log-probabilities and entropies are float32, in both. Who samples and who trains has to take the same one.
    """

    def __init__(self, base_folder: Path, device: str = "cpu", precision: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        register()
        device = resolve_device(device)
        if precision not in (None, "bfloat16"):
            raise ModelError(f"precision is bfloat16 or none for float32, not {precision!r}.")
        dtype = torch.float32 if precision is None else torch.bfloat16
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(base_folder)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                base_folder, attn_implementation=TREE_ATTENTION, dtype=dtype
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The base model in {base_folder} cannot be read ({error}). Delete the folder; it is made again."
            ) from None
        self.chat = ChatTokens(self.tokenizer)
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.device, self.precision = device, precision
        self.model.to(device).eval()
        self.model.requires_grad_(False)
        self.adapters: list[str] = []

    # --- adapters ---

    def add_fresh_adapter(self, recipe: Recipe, seed: int) -> None:
        """A LoRA adapter that changes nothing yet, on the last `recipe.lora_layers` layers, trainable."""
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        layers = self.model.config.num_hidden_layers
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=2 * recipe.lora_rank,
            target_modules=list(LORA_MODULES),
            layers_to_transform=list(range(max(0, layers - recipe.lora_layers), layers)),
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(self.model, config)
        self.adapters.append("default")

    def add_adapter(self, folder: Path, name: str = "default", trainable: bool = False) -> None:
        """Load an adapter from its folder. ModelError where it is missing or damaged."""
        from peft import PeftModel

        try:
            if self.adapters:
                self.model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            else:
                self.model = PeftModel.from_pretrained(
                    self.model, str(folder), adapter_name=name, is_trainable=trainable
                )
        except Exception as error:  # peft raises OSError, ValueError, safetensors' own and more
            raise ModelError(f"The adapter in {folder} cannot be loaded: {error}") from error
        self.adapters.append(name)
        self.model.eval()

    @contextlib.contextmanager
    def select(self, name: str | None) -> Iterator[None]:
        """Answer with the named adapter, or with the base model for None."""
        if name is not None:
            if name not in self.adapters:
                raise ModelError(f"No adapter {name!r} is loaded; loaded are {self.adapters or 'none'}.")
            self.model.set_adapter(name)
            yield
        elif self.adapters:
            with self.model.disable_adapter():
                yield
        else:
            yield

    # --- evaluation ---

    def _hidden(self, row: PackedRow) -> "torch.Tensor":
        """Last hidden states of a row, (n, width). Layers below the first adapter get no gradient and keep nothing."""
        import torch

        causal = self.model.get_base_model() if self.adapters else self.model
        tokens = torch.from_numpy(row.tokens).to(self.device)[None]
        positions = torch.from_numpy(row.positions).to(self.device)[None]
        output = causal.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=no_mask(causal.dtype, self.device),
            use_cache=False,
            tree=attending(row, causal.dtype, self.device),
        )
        return output.last_hidden_state[0]

    def evaluate(
        self, answers: Sequence[Answer], max_tokens: int = ROW_TOKENS
    ) -> Iterator[tuple[list[int], list[Evaluated]]]:
        """Evaluate answers row by row: (indices of the row's answers, what they evaluate to).

        A generator, so that a trainer can go backward through one row before the next is computed.
        """
        plans = [_plan(answer) for answer in answers]
        sequences = [answer.prompt + answer.tokens[: plan.depth] for answer, plan in zip(answers, plans, strict=True)]
        for row in pack(sequences, max_tokens):
            members = list(row.members)
            weights = self.model.get_output_embeddings().weight
            yield (
                members,
                _evaluated([answers[i] for i in members], [plans[i] for i in members], row, self._hidden(row), weights),
            )

    def next_logprobs(
        self, prompts: Sequence[list[int]], max_tokens: int = ROW_TOKENS
    ) -> "Iterator[tuple[int, torch.Tensor]]":
        """Of each prompt its index and float32 (vocabulary,) log-probabilities of the token after it, temperature 1."""
        import torch

        weights = self.model.get_output_embeddings().weight
        for row in pack(prompts, max_tokens):
            last = torch.tensor([int(path[-1]) for path in row.paths], device=self.device)
            logprobs = torch.log_softmax((self._hidden(row)[last] @ weights.T).float(), dim=-1)
            yield from zip(row.members, logprobs, strict=True)


@dataclass(frozen=True)
class _Plan:
    """`allowed`: tokens allowed at each step (None: all). `depth`: answer tokens that must be fed to the model."""

    allowed: list[list[int]] | None
    depth: int

    def choosing(self, tokens: int) -> list[bool]:
        """Of each of so many tokens, whether there was a choice."""
        return [self.allowed is None or len(self.allowed[i]) > 1 for i in range(tokens)]


def _plan(answer: Answer) -> _Plan:
    if answer.choices is None:
        return _Plan(None, max(0, len(answer.tokens) - 1))
    allowed = allowed_tokens(answer.choices, answer.tokens)
    choosing = [index for index, tokens in enumerate(allowed) if len(tokens) > 1]
    return _Plan(allowed, choosing[-1] if choosing else 0)


class _Token(NamedTuple):
    """A token to score: the answer's place in its row and the token's in the answer, the node that predicts it."""

    place: int
    index: int
    node: int
    token: int
    temperature: float


def _evaluated(
    answers: Sequence[Answer],
    plans: Sequence[_Plan],
    row: PackedRow,
    hidden: "torch.Tensor",
    weights: "torch.Tensor",
) -> list[Evaluated]:
    """The answers of a row. Tokens that are chosen from the same few, or from all, are scored together."""
    import torch

    groups = _by_allowed(answers, plans, row)
    # Place 0 of what was scored is that of forced tokens: log-probability and entropy 0.
    zero = torch.zeros(1, device=hidden.device)
    logprobs, entropies, scored = [zero], [zero], 1
    where = [[0] * len(answer.tokens) for answer in answers]
    openings: list[dict[int, torch.Tensor]] = [{} for _ in answers]
    for allowed, tokens in groups.items():
        states = hidden[torch.tensor([t.node for t in tokens], device=hidden.device)]
        targets = [t.token if allowed is None else allowed.index(t.token) for t in tokens]
        target = torch.tensor(targets, device=hidden.device)
        temperatures = torch.tensor([t.temperature for t in tokens], device=hidden.device)
        if allowed is None:
            found = score_tokens(states, weights, target, temperatures)
        else:
            among = score_among(states, weights[list(allowed)], target, temperatures)
            found = among[:2]
            for token, distribution in zip(tokens, among[2], strict=True):
                if token.index == 0:
                    openings[token.place] = dict(zip(allowed, distribution.unbind(), strict=True))
        for offset, token in enumerate(tokens):
            where[token.place][token.index] = scored + offset
        logprobs.append(found[0])
        entropies.append(found[1])
        scored += len(tokens)
    lengths = [len(answer.tokens) for answer in answers]
    place = torch.tensor([at for each in where for at in each], device=hidden.device)
    split = (torch.cat(one)[place].split(lengths) for one in (logprobs, entropies))
    return [
        Evaluated(logprob, entropy, plan.choosing(length), opening)
        for logprob, entropy, plan, length, opening in zip(*split, plans, lengths, openings, strict=True)
    ]


def _by_allowed(
    answers: Sequence[Answer], plans: Sequence[_Plan], row: PackedRow
) -> dict[tuple[int, ...] | None, list[_Token]]:
    """The tokens that were chosen, by what they were chosen from (None: all tokens)."""
    groups: dict[tuple[int, ...] | None, list[_Token]] = defaultdict(list)
    for place, (answer, plan, path) in enumerate(zip(answers, plans, row.paths, strict=True)):
        first = len(answer.prompt) - 1
        for index, (token, choosing) in enumerate(zip(answer.tokens, plan.choosing(len(answer.tokens)), strict=True)):
            if choosing:
                allowed = None if plan.allowed is None else tuple(plan.allowed[index])
                groups[allowed].append(_Token(place, index, int(path[first + index]), token, answer.temperature))
    return groups
