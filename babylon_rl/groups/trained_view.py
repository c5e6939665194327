"""The trained view: the only types that can reach an update, and the guard that they are what was recorded.

A decision holds what its recorded call saw and wrote, byte for byte, and the tokens that were sampled; a member adds
its reward and advantage, and those of its other legal answers where they are valued. Nothing else that became known
after the decision has a field here: no outcome, no judge's text, no metadata. Built from recordings by
`view_of`; checked against them by `check_verbatim`.
"""

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.recording.records import LLMCall, RecordedCall
from babylon_rl.recording.rows import call_id
from babylon_rl.recording.window import action_calls

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory


class VerbatimError(TrainingError):
    """What would be trained is not what was recorded."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One recorded call: its text, its tokens, and the distribution that they were sampled from."""

    call_id: str
    system_prompt: str
    user_prompt: str
    response: str
    token_ids: list[int]
    logprobs: list[float]
    prompt_token_ids: list[int]
    choices: list[str] | None
    temperature: float
    top_p: float
    exploration: float


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One agent's window: one reward, one advantage, and the decisions that both cover.

    `baseline`: what is taken off the reward for who the agent is; absent where it is 0. `action_values`: the reward of
    each answer that its one decision could have given, in the order of its `choices`; `action_advantages`: their
    advantages, in a snapshot that trains on all actions. None where they are not known. `decision_rewards`: what each
    of several decisions earned, in order, which sums to `reward`; `decision_advantages`: their advantages in a
    snapshot, each of weight 1/n. UNSET where the reward is the whole window's: such a member is written without these
    fields, as it is where nobody knew them, and has the same digest.

    `label`, `loss`: in a snapshot, its provenance, and the loss that it enters, absent where that is the
    importance-weighted one. A member of the weighted supervised loss has decisions whose text alone counts; where no
    tokens were recorded, their token fields are empty.
    """

    trajectory_id: str
    agent_id: str
    reward: float
    advantage: float
    checkpoint: str
    decisions: list[Decision]
    action_values: list[float] | None = None
    action_advantages: list[float] | None = None
    baseline: float | msgspec.UnsetType = msgspec.UNSET
    decision_rewards: list[float] | msgspec.UnsetType = msgspec.UNSET
    decision_advantages: list[float] | msgspec.UnsetType = msgspec.UNSET
    label: str | msgspec.UnsetType = msgspec.UNSET
    loss: Literal["weighted_supervised"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def taken_off(self) -> float:
        """The baseline; 0 where there is none."""
        return 0.0 if self.baseline is msgspec.UNSET else self.baseline


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The members of one window, sorted by trajectory id.

    `tolerance`: rewards that differ by less are equal; absent where it is `advantages.SPREAD_TOLERANCE`. `loss`: the
    only one that may use the group, because its logged members are too few; absent where both may.
    """

    window_id: str
    scorer: str
    scorer_version: str
    members: list[Member]
    tolerance: float | msgspec.UnsetType = msgspec.UNSET
    loss: Literal["weighted_supervised"] | msgspec.UnsetType = msgspec.UNSET


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, floats as repr; ValueError where a number is not finite."""
    return json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def encode_group(group: Group) -> dict[str, Any]:
    """The group as plain JSON values."""
    return msgspec.to_builtins(group)


def decode_group(value: dict[str, Any]) -> Group:
    """The group from its JSON values; TrainingError where a field is missing, unknown or of another type."""
    try:
        return msgspec.convert(value, Group)
    except msgspec.ValidationError as error:
        raise TrainingError(
            f"A stored group is not a trained view ({error}). Materialize art_groups of its window again."
        ) from None


def view_of(trajectory: "UsableTrajectory") -> list[Decision] | None:
    """The trajectory's decisions, in order: its calls whose tokens are recorded, or the texts that chose its actions.

    The texts are those of a trajectory of which not all tokens are recorded; no token of it is taken then. None where
    there is none, or where a call of a logged one that chose an action has no tokens: its reward would go to the
    others.
    """
    if trajectory.provenance == "no_logprobs":
        return _texts_of(trajectory) or None
    recorded = {call.call_id: call for call in trajectory.calls}
    decisions = []
    for step in trajectory.steps:
        choosing = action_calls(step)
        for number, text in enumerate(step.llm_calls):
            call = recorded.get(call_id(trajectory.trajectory_id, step.step_number, number))
            if call is not None and call.token_ids:
                decisions.append(_decision(text, call))
            elif any(text is one for one in choosing):
                return None
    return decisions or None


def _texts_of(trajectory: "UsableTrajectory") -> list[Decision]:
    return [
        Decision(
            call_id=call_id(trajectory.trajectory_id, step.step_number, number),
            system_prompt=text.system_prompt,
            user_prompt=text.user_prompt,
            response=text.response,
            token_ids=[],
            logprobs=[],
            prompt_token_ids=[],
            choices=None,
            temperature=1.0,
            top_p=1.0,
            exploration=0.0,
        )
        for step in trajectory.steps
        for number, text in enumerate(step.llm_calls)
        if any(text is one for one in action_calls(step))
    ]


def _decision(text: LLMCall, call: RecordedCall) -> Decision:
    return Decision(
        call_id=call.call_id,
        system_prompt=text.system_prompt,
        user_prompt=text.user_prompt,
        response=text.response,
        token_ids=list(call.token_ids),
        # JSONB has no negative zero, and the digest must survive it.
        logprobs=[logprob + 0.0 for logprob in call.logprobs],
        prompt_token_ids=list(call.prompt_token_ids),
        choices=None if call.choices is None else list(call.choices),
        temperature=call.temperature,
        top_p=call.top_p,
        exploration=call.exploration,
    )


def check_verbatim(group: Group, recorded: "RecordedWindow") -> None:
    """VerbatimError unless every field of every decision is the recorded call's own, and its numbers are usable."""
    trajectories = {trajectory.trajectory_id: trajectory for trajectory in recorded.usable}
    if group.window_id != recorded.window_id:
        raise VerbatimError(f"Group of window {group.window_id} was checked against window {recorded.window_id}.")
    for member in group.members:
        trajectory = trajectories.get(member.trajectory_id)
        if trajectory is None or trajectory.agent_id != member.agent_id:
            raise VerbatimError(
                f"Trajectory {member.trajectory_id} of agent {member.agent_id} in the group of {group.window_id} is "
                "not recorded there. Materialize scored_trajectories and art_groups of the window again."
            )
        _check_member(member, trajectory)


def _check_member(member: Member, trajectory: "UsableTrajectory") -> None:
    expected = view_of(trajectory) or []
    if [decision.call_id for decision in member.decisions] != [decision.call_id for decision in expected]:
        raise VerbatimError(f"Trajectory {member.trajectory_id}: its decisions are not the recorded calls, in order.")
    for decision, original in zip(member.decisions, expected, strict=True):
        for field in Decision.__struct_fields__:
            if getattr(decision, field) != getattr(original, field):
                raise VerbatimError(
                    f"Call {decision.call_id}: {field} is not what was recorded. Only verbatim recordings are trained "
                    "on; materialize art_groups of the window again."
                )
        check_numbers(decision)
    check_values(member)


def check_values(member: Member) -> None:
    """VerbatimError unless values and advantages of actions stand for the recorded choices of a single decision, and
    those of decisions for the decisions."""
    for numbers in (member.decision_rewards, member.decision_advantages):
        if numbers is not msgspec.UNSET and not (
            len(numbers) == len(member.decisions) and all(map(math.isfinite, numbers))
        ):
            raise VerbatimError(
                f"Trajectory {member.trajectory_id}: {len(numbers)} rewards or advantages stand for "
                f"{len(member.decisions)} decisions. Materialize scored_trajectories and art_groups of its window "
                "again."
            )
    for numbers in (member.action_values, member.action_advantages):
        if numbers is None:
            continue
        choices = member.decisions[0].choices if len(member.decisions) == 1 else None
        if choices is None or len(numbers) != len(choices) or not all(math.isfinite(number) for number in numbers):
            raise VerbatimError(
                f"Trajectory {member.trajectory_id}: the values of its actions do not stand for the recorded choices "
                "of one decision. Materialize scored_trajectories and art_groups of its window again."
            )


def check_numbers(decision: Decision) -> None:
    """VerbatimError unless there is one finite log-probability (at most 0) a sampled token."""
    if len(decision.token_ids) != len(decision.logprobs):
        raise VerbatimError(
            f"Call {decision.call_id} has {len(decision.token_ids)} tokens and {len(decision.logprobs)} "
            "log-probabilities; the recorder must store one for each."
        )
    # A sum over a float32 softmax may exceed 1 by rounding, hence the small allowance above 0.
    if not all(math.isfinite(logprob) and logprob <= 1e-4 for logprob in decision.logprobs):
        raise VerbatimError(f"Call {decision.call_id} has a log-probability that is no logarithm of a probability.")
