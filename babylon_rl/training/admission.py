"""Which decisions a base model can be trained on: they fit its context, and no text in them became control tokens.

The endpoint that a trajectory was recorded from may have been another server, most of which make control tokens of
`<|im_end|>` in a message; training on such a prompt would teach the policy to obey whoever wrote it. Nothing is cut to
fit: a prompt that is longer than the context is refused as a whole.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from babylon_rl.groups.trained_view import Decision, Group, Member
from babylon_rl.training.chat_tokens import ChatTokens, ControlTokensError, control_texts_of

# Effective sample size, as a share of the answers drawn, below which importance ratios no longer correct for the policy
# that drew them: a tenth of the batch would decide the step.
ESS_FLOOR = 0.1

PROMPT_TOO_LONG, CONTROL_TOKENS = "prompt_too_long", "control_tokens"


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


def without_refused(groups: Sequence[Group], folder: Path) -> tuple[list[Group], Counter[str]]:
    """The groups without the members that the base model in `folder` cannot be trained on, and how many by reason.

    The tokenizer is loaded only where some text names a control token, or some prompt has others than the rest.
    """
    context, controls = context_of(folder), control_texts_of(folder)
    decisions = [decision for group in groups for member in group.members for decision in member.decisions]
    found = {tuple(token for token in d.prompt_token_ids if token in controls) for d in decisions}
    suspicious = len(found) > 1 or any(_names(decision, controls.values()) for decision in decisions)
    chat = _chat_of(folder) if controls and suspicious else None
    counts: Counter[str] = Counter()
    kept = []
    for group in groups:
        members = []
        for member in group.members:
            reason = _refusal(member, context, chat)
            if reason is None:
                members.append(member)
            else:
                counts[f"members {reason}"] += 1
        kept.append(msgspec.structs.replace(group, members=members))
    return kept, counts


def _refusal(member: Member, context: int | None, chat: ChatTokens | None) -> str | None:
    if any(is_too_long(decision, context) for decision in member.decisions):
        return PROMPT_TOO_LONG
    if chat is not None and any(has_control_tokens(decision, chat) for decision in member.decisions):
        return CONTROL_TOKENS
    return None


def _names(decision: Decision, controls: Collection[str]) -> bool:
    texts = (decision.system_prompt, decision.user_prompt, *(decision.choices or ()))
    return any(control in text for control in controls for text in texts)


def _chat_of(folder: Path) -> ChatTokens:
    from transformers import AutoTokenizer

    return ChatTokens(AutoTokenizer.from_pretrained(folder))
