"""Groups as ART's own types, and those types as JSON and back.

ART subtracts the mean reward of each of its groups, so what it is given as reward is the stored advantage, and groups
are cut so that their mean advantage is already 0: what reaches the loss is then the stored advantage times one constant
a batch. That needs `scale_rewards=False`. The window's real reward travels as a metric.

ART's own `model_validate_json` empties a group without a word and turns choices into dicts, whose log-probabilities it
then ignores; `group_from_json` makes real ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from babylon_rl.errors import TrainingError
from babylon_rl.groups.trained_view import Decision, Group, Member, check_numbers

if TYPE_CHECKING:
    import art

# Mean advantage, relative to the largest, that is rounding and not a shift.
CENTRED = 1e-9


def to_art(group: Group) -> "art.TrajectoryGroup":
    """One window as one ART group: a member is a trajectory, its decisions are its histories.

    TrainingError unless the advantages sum to 0: ART's centring would change them. Batch-centred advantages go through
    `batch_to_art`.
    """
    if not is_centred(group.members):
        raise TrainingError(
            f"The advantages of window {group.window_id} do not sum to 0 by themselves; ART would centre them again. "
            "Convert the whole batch with batch_to_art."
        )
    return _art_group([group])


def batch_to_art(groups: Sequence[Group]) -> "list[art.TrajectoryGroup]":
    """A batch as ART groups: one a window where each sums to 0, else one for the whole batch.

    Advantages that were centred over the batch (by action) sum to 0 over the batch only, and one ART group is the
    exact way to say so. TrainingError where they sum to 0 over neither.
    """
    if all(is_centred(group.members) for group in groups):
        return [to_art(group) for group in groups]
    if not is_centred([member for group in groups for member in group.members]):
        raise TrainingError(
            "The advantages of the batch do not sum to 0: ART would change them. Make the snapshot again."
        )
    return [_art_group(groups)]


def is_centred(members: Sequence[Member]) -> bool:
    """Whether the advantages have mean 0, up to rounding."""
    advantages = [member.advantage for member in members]
    largest = max((abs(advantage) for advantage in advantages), default=0.0)
    return abs(math.fsum(advantages)) <= CENTRED * largest * max(len(advantages), 1)


def _art_group(groups: Sequence[Group]) -> "art.TrajectoryGroup":
    import art

    trajectories = [_art_trajectory(group, member) for group in groups for member in group.members]
    # `scenario_id` is the one key of metadata that ART itself reads.
    scenario = groups[0].window_id if len(groups) == 1 else f"{groups[0].window_id}..{groups[-1].window_id}"
    return art.TrajectoryGroup(trajectories, metadata={"scenario_id": scenario, "windows": len(groups)})


def _art_trajectory(group: Group, member: Member) -> "art.Trajectory":
    import art

    histories = [_messages(decision) for decision in member.decisions]
    return art.Trajectory(
        messages_and_choices=histories[0],
        additional_histories=[art.trajectories.History(messages_and_choices=history) for history in histories[1:]],
        reward=member.advantage,
        metrics={"window_reward": member.reward},
        metadata={
            "window_id": group.window_id,
            "trajectory_id": member.trajectory_id,
            "agent_id": member.agent_id,
            "checkpoint": member.checkpoint,
            "scorer": group.scorer,
        },
    )


def _messages(decision: Decision) -> list[Any]:
    """System and user message as dicts, the answer as a Choice whose tokens name their ids."""
    from openai.types.chat.chat_completion import Choice

    check_numbers(decision)
    if not decision.token_ids:
        # ART would erase the answer from the sequence and go on.
        raise TrainingError(f"Call {decision.call_id} has no sampled tokens; leave its trajectory out.")
    tokens = [
        {"token": f"token_id:{token_id}", "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token_id, logprob in zip(decision.token_ids, decision.logprobs, strict=True)
    ]
    choice = Choice.model_validate(
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": decision.response},
            "logprobs": {"content": tokens},
        }
    )
    return [
        {"role": "system", "content": decision.system_prompt},
        {"role": "user", "content": decision.user_prompt},
        choice,
    ]


def group_to_json(group: "art.TrajectoryGroup") -> dict[str, Any]:
    """The group as plain JSON values, log-probabilities included."""
    return group.model_dump(mode="json")


def group_from_json(value: Mapping[str, Any]) -> "art.TrajectoryGroup":
    """The group from `group_to_json`, with real choices and histories."""
    import art

    trajectories = []
    for stored in value["trajectories"]:
        histories = [
            art.trajectories.History(**{**history, "messages_and_choices": _restored(history["messages_and_choices"])})
            for history in stored["additional_histories"]
        ]
        restored = {
            **stored,
            "messages_and_choices": _restored(stored["messages_and_choices"]),
            "additional_histories": histories,
        }
        trajectories.append(art.Trajectory(**restored))
    return art.TrajectoryGroup(trajectories, metadata=value["metadata"], metrics=value["metrics"], logs=value["logs"])


def _restored(messages: Sequence[Any]) -> list[Any]:
    from openai.types.chat.chat_completion import Choice

    return [
        Choice.model_validate(message) if "finish_reason" in message and "message" in message else message
        for message in messages
    ]
