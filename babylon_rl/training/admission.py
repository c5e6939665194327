"""Which decisions a base model can be trained on: its tokenizer makes the recorded tokens of the recorded texts.

The endpoint that a trajectory was recorded from may have been another server, with another chat template, or one that
makes control tokens of `<|im_end|>` in a message; training on such a prompt would teach the policy to obey whoever
wrote it. What does not reproduce is left out, counted, and never trained. Nothing is cut: a prompt that is longer
than the context is refused as a whole.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from babylon_rl.groups.admitting import ruling_of
from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED, Admission, Lineage
from babylon_rl.groups.trained_view import Decision, Group, Member
from babylon_rl.training.chat_tokens import ChatTokens, ControlTokensError, control_texts_of
from babylon_rl.training.light_tokenizer import LightTokenizer
from babylon_rl.training.piecewise import PiecewiseTokens

# Effective sample size, as a share of the answers drawn, below which importance ratios no longer correct for the policy
# that drew them: a tenth of the batch would decide the step.
ESS_FLOOR = 0.1

PROMPT_TOO_LONG, CONTROL_TOKENS = "prompt_too_long", "control_tokens"
PROMPT_NOT_REPRODUCED, ANSWER_NOT_REPRODUCED = "prompt_not_reproduced", "answer_not_reproduced"


def messages_of(decision: Decision) -> list[dict[str, str]]:
    """The conversation that was recorded with the decision."""
    return [
        {"role": "system", "content": decision.system_prompt},
        {"role": "user", "content": decision.user_prompt},
    ]


def context_of(folder: Path) -> int | None:
    """Tokens that a base model's context holds; None where its folder does not say."""
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("max_position_embeddings")
    except FileNotFoundError:
        return None
    return found if isinstance(found, int) else None


def is_too_long(decision: Decision, context: int | None) -> bool:
    """Whether prompt and answer together do not fit the context."""
    return context is not None and len(decision.prompt_token_ids) + len(decision.token_ids) > context


def has_control_tokens(decision: Decision, chat: ChatTokens) -> bool:
    """Whether the recorded tokens hold control tokens that the chat template did not put there, or the model draw."""
    try:
        prompt = chat.prompt(messages_of(decision))
        choices = [chat.answer(choice) for choice in decision.choices or ()]
    except ControlTokensError:
        return True
    if chat.controls(decision.prompt_token_ids) != chat.controls(prompt):
        return True
    # A chosen answer is a recorded text; free text is what the model drew, whatever it drew.
    return bool(choices) and decision.token_ids not in choices and bool(chat.controls(decision.token_ids[:-1]))


def refusal_of_tokens(decision: Decision, chat: ChatTokens) -> str | None:
    """Why the decision's tokens are not those of its texts; None where they are.

    The prompt's are compared with the chat template's. A chosen answer's are those of the choice; free text is what the
    model drew, whose tokens up to the end of the turn are decoded and compared byte for byte.
    """
    try:
        prompt = chat.prompt(messages_of(decision))
        if prompt != decision.prompt_token_ids:
            return CONTROL_TOKENS if has_control_tokens(decision, chat) else PROMPT_NOT_REPRODUCED
        if chat.answer(decision.response) == decision.token_ids:
            return None
        if has_control_tokens(decision, chat):
            return CONTROL_TOKENS
    except ControlTokensError:
        return CONTROL_TOKENS
    if decision.choices:
        chosen = decision.response.strip()
        same = chosen in decision.choices and chat.answer(chosen) == decision.token_ids
    else:
        same = chat.says(decision.token_ids, decision.response)
    return None if same else ANSWER_NOT_REPRODUCED


class Checker:
    """Checks members group by group against the base model in `folder`, with whose tokenizer it is trained.

    `lineage`, `admission`: by them a member's loss is told, as in `groups.admitting`: of one that only its text is
    trained of, no token is compared. `folder` None, or one without a tokenizer.json: `unchecked` says so, and the
    context's length alone is looked at. The tokenizer is loaded with the first member.
    """

    def __init__(
        self,
        folder: Path | None,
        lineage: Lineage | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._folder, self._lineage, self._admission = folder, lineage, admission or Admission()
        self._context = context_of(folder) if folder is not None else None
        self._controls = control_texts_of(folder) if folder is not None else {}
        self._chat: ChatTokens | None = None
        if folder is None:
            self.unchecked = "not checked against the hosted tokenizer: set BABYLON_RL_WANDB_TOKENIZER to its folder"
        elif not (folder / "tokenizer.json").is_file():
            self.unchecked = "not checked against the tokenizer: the base model has no tokenizer.json"
        else:
            self.unchecked = ""

    @property
    def chat(self) -> ChatTokens | None:
        """The base model's tokenizer; None where nothing is checked against one."""
        if self._chat is None and not self.unchecked and self._folder is not None:
            self._chat = PiecewiseTokens(LightTokenizer(self._folder))
        return self._chat

    def kept(self, group: Group, counts: Counter[str]) -> Group:
        """The group without the members that cannot be trained on, which are counted by reason."""
        members = []
        for member in group.members:
            reason = self.refusal(member)
            if reason is None:
                members.append(member)
            else:
                counts[f"members {reason}"] += 1
        return msgspec.structs.replace(group, members=members)

    def refusal(self, member: Member) -> str | None:
        """Why the member cannot be trained on; None where it can, or where no loss takes it anyway."""
        _, ruling = ruling_of(member, self._lineage, self._admission)
        if ruling.loss is None:
            return None
        of_decision = self._of_tokens if ruling.loss == IMPORTANCE_WEIGHTED else self._of_text
        return next((reason for decision in member.decisions if (reason := of_decision(decision))), None)

    def lengths(self, decision: Decision) -> tuple[int, int] | None:
        """Tokens of prompt and answer, recorded or by the tokenizer; None where neither tells."""
        if decision.token_ids:
            return len(decision.prompt_token_ids), len(decision.token_ids)
        if self.chat is None:
            return None
        return len(self.chat.prompt(messages_of(decision))), len(self.chat.answer(decision.response))

    def _of_tokens(self, decision: Decision) -> str | None:
        if is_too_long(decision, self._context):
            return PROMPT_TOO_LONG
        return None if self.chat is None else refusal_of_tokens(decision, self.chat)

    def _of_text(self, decision: Decision) -> str | None:
        if _names(decision, self._controls.values()):
            return CONTROL_TOKENS
        try:
            lengths = self.lengths(msgspec.structs.replace(decision, token_ids=[], prompt_token_ids=[]))
        except ControlTokensError:
            return CONTROL_TOKENS
        if lengths is not None and self._context is not None and sum(lengths) > self._context:
            return PROMPT_TOO_LONG
        return None


def without_refused(groups: Sequence[Group], folder: Path) -> tuple[list[Group], Counter[str]]:
    """The groups without the members that the base model in `folder` cannot be trained on, and how many by reason."""
    checker, counts = Checker(folder), Counter[str]()
    return [checker.kept(group, counts) for group in groups], counts


def _names(decision: Decision, controls: Collection[str]) -> bool:
    texts = (decision.system_prompt, decision.user_prompt, decision.response)
    return any(control in text for control in controls for text in texts)
