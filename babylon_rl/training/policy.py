"""The policy on torch: a causal language model with LoRA adapters, evaluated on packed rows.

Trainer and endpoint share this file, so that a recorded log-probability and the one it is compared with come from the
same computation: same prompt tokens, same mask, same temperature.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.errors import ModelError
from babylon_rl.training.chat_tokens import ChatTokens
from babylon_rl.training.choices import allowed_tokens
from babylon_rl.training.packing import PackedRow, pack
from babylon_rl.training.recipe import Recipe

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


def use_threads(threads: int) -> None:
    """Set torch's threads; 0 means one per core."""
    import os

    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)


class Policy:
    """A base model and its adapters. `select` chooses which of them answers; None is the base model itself.

    `chat`: tokens of what is said to it; `context`: how many of them prompt and answer may have together.
    """

    def __init__(self, base_folder: Path, device: str = "cpu", *, precision: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("device is cuda and no CUDA device is there; set BABYLON_RL_DEVICE=cpu.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(base_folder)
            self.model: Any = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The base model in {base_folder} cannot be read ({error}). Delete the folder; it is made again."
            ) from None
        self.chat = ChatTokens(self.tokenizer)
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.device = device
        self.model.to(device, None if precision is None else getattr(torch, precision)).eval()
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
        """Last hidden states of a row, float (n, width)."""
        import torch

        causal = self.model.get_base_model() if self.adapters else self.model
        tokens = torch.from_numpy(row.tokens).to(self.device)[None]
        positions = torch.from_numpy(row.positions).to(self.device)[None]
        attends = torch.from_numpy(row.attends).to(self.device)[None, None]
        mask = torch.zeros(attends.shape, dtype=causal.dtype, device=self.device)
        mask.masked_fill_(~attends, float("-inf"))
        output = causal.model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
        return output.last_hidden_state[0]

    def evaluate(self, answers: Sequence[Answer], max_tokens: int = 512) -> Iterator[tuple[list[int], list[Evaluated]]]:
        """Evaluate answers row by row: (indices of the row's answers, what they evaluate to).

        A generator, so that a trainer can go backward through one row before the next is computed.
        """
        plans = [_plan(answer) for answer in answers]
        sequences = [answer.prompt + answer.tokens[: plan.depth] for answer, plan in zip(answers, plans, strict=True)]
        for row in pack(sequences, max_tokens):
            hidden = self._hidden(row)
            yield (
                list(row.members),
                [
                    self._evaluate_one(answers[index], plans[index], hidden[path[len(answers[index].prompt) - 1 :]])
                    for index, path in zip(row.members, row.paths, strict=True)
                ],
            )

    def _evaluate_one(self, answer: Answer, plan: "_Plan", hidden: "torch.Tensor") -> Evaluated:
        """`hidden`: states that predict the first `plan.depth + 1` tokens of the answer."""
        import torch

        weights = self.model.get_output_embeddings().weight
        zero = hidden.new_zeros(())
        logprobs, entropies = [], []
        opening: dict[int, torch.Tensor] = {}
        for index, token in enumerate(answer.tokens):
            allowed = plan.allowed[index] if plan.allowed is not None else None
            if allowed is not None and len(allowed) == 1:
                logprobs.append(zero)
                entropies.append(zero)
                continue
            rows = weights if allowed is None else weights[allowed]
            distribution = torch.log_softmax((hidden[index] @ rows.T).float() / answer.temperature, dim=-1)
            logprobs.append(distribution[token if allowed is None else allowed.index(token)])
            entropies.append(-(distribution.exp() * distribution).sum())
            if index == 0 and allowed is not None:
                opening = dict(zip(allowed, distribution.unbind(), strict=True))
        choosing = [plan.allowed is None or len(plan.allowed[i]) > 1 for i in range(len(answer.tokens))]
        return Evaluated(torch.stack(logprobs), torch.stack(entropies), choosing, opening)


@dataclass(frozen=True)
class _Plan:
    """`allowed`: tokens allowed at each step (None: all). `depth`: answer tokens that must be fed to the model."""

    allowed: list[list[int]] | None
    depth: int


def _plan(answer: Answer) -> _Plan:
    if answer.choices is None:
        return _Plan(None, max(0, len(answer.tokens) - 1))
    allowed = allowed_tokens(answer.choices, answer.tokens)
    choosing = [index for index, tokens in enumerate(allowed) if len(tokens) > 1]
    return _Plan(allowed, choosing[-1] if choosing else 0)
