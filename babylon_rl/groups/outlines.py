"""Groups without their texts and tokens: what a whole batch is reckoned on, at some hundred bytes a member.

An outline has every number of its group and of each decision the answer's word and the choices, which is what
advantages, centring and dropout look at. Equal parts are the same object.
"""

import json
from typing import Any

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.trained_view import Decision, Group, Member

MALFORMED = "malformed"


class Outlines:
    """Makes outlines; equal decisions and names of one batch share one object."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[Any, ...], Decision] = {}
        self._names: dict[str, str] = {}

    def of(self, group: Group) -> Group:
        """The outline of the group. TrainingError where a trajectory is in it twice: it could not be told apart."""
        if len({member.trajectory_id for member in group.members}) < len(group.members):
            raise TrainingError(
                f"A trajectory is in the group of window {group.window_id} twice. Materialize art_groups of the window "
                "again."
            )
        return msgspec.structs.replace(
            group,
            scorer=self._name(group.scorer),
            scorer_version=self._name(group.scorer_version),
            members=[self._member(member) for member in group.members],
        )

    def _member(self, member: Member) -> Member:
        return msgspec.structs.replace(
            member,
            agent_id=self._name(member.agent_id),
            checkpoint=self._name(member.checkpoint),
            decisions=[self._decision(decision) for decision in member.decisions],
        )

    def _decision(self, decision: Decision) -> Decision:
        choices = None if decision.choices is None else tuple(decision.choices)
        response = _shortened(decision.response, decision.choices)
        key = (response, choices, decision.temperature, decision.top_p, decision.exploration)
        known = self._decisions.get(key)
        if known is None:
            known = self._decisions[key] = msgspec.structs.replace(
                decision,
                call_id="",
                system_prompt="",
                user_prompt="",
                response=response,
                token_ids=[],
                logprobs=[],
                prompt_token_ids=[],
            )
        return known

    def _name(self, name: str) -> str:
        return self._names.setdefault(name, name)


def restored(outline: Group, whole: Group) -> Group:
    """The outline's group with the decisions of the whole one it was made from."""
    decisions = {member.trajectory_id: member.decisions for member in whole.members}
    members = [msgspec.structs.replace(one, decisions=decisions[one.trajectory_id]) for one in outline.members]
    return msgspec.structs.replace(outline, members=members)


def verb_of(response: str) -> str:
    """Label of an answer: its first word, or the `action` of one in JSON; `malformed` where there is none."""
    text = response.strip()
    if text.startswith("{"):
        try:
            text = str(json.loads(text).get("action", ""))
        except json.JSONDecodeError:
            return MALFORMED
    words = text.split()
    return words[0].strip(".,:;!").upper() if words else MALFORMED


def _shortened(response: str, choices: list[str] | None) -> str:
    """A text with the same label, and the same choice where the answer is one."""
    if choices is not None and response.strip() in choices:
        return response.strip()
    text = response.strip()
    if not text.startswith("{"):
        return next(iter(text.split()), "")
    try:
        return json.dumps({"action": str(json.loads(text).get("action", ""))})
    except json.JSONDecodeError:
        return "{"
