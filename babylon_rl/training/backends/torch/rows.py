"""From the groups of a snapshot to rows: what of each answer reaches the loss, and its share of it.

The shares are those of ART 0.5.18 (`art/preprocessing/tokenize.py`, `pack.py`). A trajectory weighs 1 whatever its
number of trainable tokens n, so a token weighs 1/n; over the batch, token weights have mean 1, and advantages are
divided by the mean of |advantage| * weight. A trajectory whose advantage is exactly 0 is left out. What a trajectory
is: a member, its decisions together; a decision where these have advantages of their own, of weight 1/n; a legal
answer where all are trained on.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.art_types import enumerated
from babylon_rl.groups.provenance import WEIGHTED_SUPERVISED
from babylon_rl.groups.trained_view import Decision, Group, Member, check_numbers
from babylon_rl.training.admission import CONTROL_TOKENS, PROMPT_TOO_LONG, has_control_tokens, messages_of
from babylon_rl.training.chat_tokens import ChatTokens, ControlTokensError
from babylon_rl.training.policy import Answer

# ART's own guard against dividing by no tokens; kept, so that weights are the same.
NO_TOKENS = 1e-6

# drawn: sampled, with the log-probabilities of the policy that drew it. enumerated: one of all legal answers.
# imitated: text alone, of the weighted supervised loss.
Kind = Literal["drawn", "enumerated", "imitated"]


class Row(msgspec.Struct, frozen=True):
    """One answer to train on. `advantage`, `weight`: of each of its tokens, before the batch's constants.

    `logprobs`: of the policy that drew it; empty unless it was drawn. `pair`: first tokens of the answers that are held
    in balance.
    """

    answer: Answer
    logprobs: list[float]
    advantage: float
    weight: float
    kind: Kind
    pair: tuple[int, int] | None


class Scale(NamedTuple):
    """The batch's constants: what a row's weight and advantage are multiplied by. See the module's docstring."""

    weight: float
    advantage: float


class Sums(NamedTuple):
    """Over the tokens of a batch: how many, the sum of their weights, and the sum of weight * |advantage|."""

    tokens: int = 0
    weights: float = 0.0
    advantages: float = 0.0

    def and_those_of(self, rows: Sequence[Row]) -> "Sums":
        """With some more rows."""
        own = [(len(row.answer.tokens), row.weight, abs(row.advantage)) for row in rows]
        return Sums(
            self.tokens + sum(n for n, _, _ in own),
            self.weights + math.fsum(n * weight for n, weight, _ in own),
            self.advantages + math.fsum(n * weight * advantage for n, weight, advantage in own),
        )

    def scale(self) -> Scale:
        """The constants. TrainingError where nothing is trainable."""
        if not self.advantages:
            raise TrainingError("Nothing was trainable in the snapshot; the parent checkpoint stays.")
        return Scale(self.tokens / self.weights, self.weights / self.advantages)


class RowMaker:
    """Makes rows for one base model. `balanced`: first words of the two answers that are held in balance."""

    def __init__(self, chat: ChatTokens, context: int | None, balanced: Sequence[str] | None) -> None:
        self.chat, self.context, self.balanced = chat, context, balanced
        self._answer: Callable[[str], list[int]] = functools.lru_cache(4096)(chat.answer)

    def rows_of(self, group: Group) -> Iterator[Row]:
        """Rows of the group, in order. TrainingError for what a snapshot leaves out, or was not tokenized like here."""
        for member in group.members:
            for trajectory, advantage in trajectories_of(member):
                yield from self._rows(member, trajectory, advantage)

    def _rows(self, member: Member, decisions: Sequence[Decision], advantage: float) -> Iterator[Row]:
        if member.action_advantages is not None and not _imitates(member):
            yield from self._enumerated(decisions[0], member.action_advantages)
            return
        made = self._imitated if _imitates(member) else self._drawn
        parts = [(decision, *made(decision)) for decision in decisions]
        weight = 1 / (sum(len(answer.tokens) for _, answer, _ in parts) + NO_TOKENS)
        kind: Kind = "imitated" if _imitates(member) else "drawn"
        for decision, answer, logprobs in parts:
            yield Row(answer, logprobs, advantage, weight, kind, self._pair(decision, answer.choices))

    def _enumerated(self, decision: Decision, advantages: Sequence[float]) -> Iterator[Row]:
        self._check(decision)
        choices = self._choices(decision)
        pair = self._pair(decision, choices)
        for text, advantage in zip(decision.choices or (), advantages, strict=True):
            tokens = enumerated(decision, text, self._answer).token_ids
            if advantage != 0:
                answer = Answer(decision.prompt_token_ids, tokens, choices, decision.temperature)
                yield Row(answer, [], advantage, 1 / (len(tokens) + NO_TOKENS), "enumerated", pair)

    def _drawn(self, decision: Decision) -> tuple[Answer, list[float]]:
        check_numbers(decision)
        if not decision.token_ids:
            raise TrainingError(f"Call {decision.call_id} has no sampled tokens; leave its trajectory out.")
        self._check(decision)
        choices = self._choices(decision)
        if choices and decision.token_ids not in choices:
            raise TrainingError(
                f"The answer of call {decision.call_id} is none of the choices that it was sampled from, in the tokens "
                "of the base model. Leave its trajectory out, or train it on the model that played."
            )
        return Answer(decision.prompt_token_ids, decision.token_ids, choices, decision.temperature), decision.logprobs

    def _imitated(self, decision: Decision) -> tuple[Answer, list[float]]:
        """Of the text alone: who wrote it had other tokens, another temperature, and other choices if any."""
        try:
            prompt, tokens = self.chat.prompt(messages_of(decision)), self._answer(decision.response)
        except ControlTokensError as error:
            raise TrainingError(f"{CONTROL_TOKENS}: call {decision.call_id}: {error}") from None
        self._check_length(decision, prompt, tokens)
        choices = self._choices(decision)
        return Answer(prompt, tokens, choices if choices and tokens in choices else None, 1.0), []

    def _choices(self, decision: Decision) -> list[list[int]] | None:
        return decision.choices and [self._answer(text) for text in decision.choices]

    def _pair(self, decision: Decision, choices: list[list[int]] | None) -> tuple[int, int] | None:
        return opposite_tokens(decision.choices or [], choices or [], self.balanced) if choices else None

    def _check_length(self, decision: Decision, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        if self.context is not None and len(prompt) + len(tokens) > self.context:
            raise TrainingError(
                f"{PROMPT_TOO_LONG}: call {decision.call_id} has {len(prompt)} tokens of prompt and {len(tokens)} of "
                f"answer, and the model's context holds {self.context}. Take a base model with a longer context, or "
                "leave the trajectory out."
            )

    def _check(self, decision: Decision) -> None:
        """TrainingError for what a snapshot leaves out: nothing is cut to fit, and no text becomes a control token."""
        self._check_length(decision, decision.prompt_token_ids, decision.token_ids)
        try:
            same = self.chat.prompt(messages_of(decision)) == decision.prompt_token_ids
        except ControlTokensError:
            same = False
        if same and (not decision.choices or decision.token_ids in (self._choices(decision) or ())):
            return
        if has_control_tokens(decision, self.chat):
            raise TrainingError(
                f"{CONTROL_TOKENS}: in call {decision.call_id} text of a message was encoded as control tokens by the "
                "endpoint that it was recorded from. Leave the trajectory out, and play with `babylon-rl serve`."
            )
        if not same:
            raise TrainingError(
                f"The messages of call {decision.call_id} become other tokens than were sampled; the tokenizer or chat "
                "template of the base model is not the one that played."
            )


def trajectories_of(member: Member) -> list[tuple[Sequence[Decision], float]]:
    """What the loss weighs as one: decisions, and the advantage of each of their tokens. Without those that train
    nothing; a member of the weighted supervised loss is imitated where it did better, and never pushed away."""
    if member.action_advantages is not None and not _imitates(member):
        return [(member.decisions, 0.0)]
    found: list[tuple[Sequence[Decision], float]] = [(member.decisions, member.advantage)]
    if member.decision_advantages is not msgspec.UNSET:
        n = len(member.decisions)
        found = [([one], own / n) for one, own in zip(member.decisions, member.decision_advantages, strict=True)]
    return [(given, own) for given, own in found if (own > 0 if _imitates(member) else own != 0)]


def _imitates(member: Member) -> bool:
    return member.loss == WEIGHTED_SUPERVISED


def is_stale(member: Member) -> bool:
    """Whether the snapshot says that the member was played by an earlier checkpoint."""
    return member.label is not msgspec.UNSET and str(member.label).startswith("stale")


def opposite_tokens(
    texts: Sequence[str], choices: Sequence[list[int]], balanced: Sequence[str] | None
) -> tuple[int, int] | None:
    """First tokens of the two answers that are held in balance; None where the choices do not have exactly those."""
    firsts = [
        {tokens[0] for text, tokens in zip(texts, choices, strict=True) if text.split()[:1] == [word]}
        for word in balanced or ()
    ]
    if len(firsts) != 2 or any(len(first) != 1 for first in firsts) or firsts[0] == firsts[1]:
        return None
    return firsts[0].pop(), firsts[1].pop()
