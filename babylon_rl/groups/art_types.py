"""Groups as ART's own types, and those types as JSON and back.

ART subtracts the mean reward of each of its groups, so what it is given as reward is the stored advantage, and groups
are cut so that their mean advantage is already 0: what reaches the loss is then the stored advantage times one constant
a batch. That needs `scale_rewards=False`. The window's real reward travels as a metric.

Where each decision has its own advantage, each is a trajectory, and what ART is given is the stored advantage over the
number n of the agent's decisions: ART weighs trajectories alike, whatever their number of tokens, so that the agent
counts once, and the n parts sum to its advantage, so that the group's mean stays 0. What reaches the loss of a decision
is then its stored advantage times its weight 1/n, times the batch's one constant. (An entropy bonus has no advantage to
be scaled by: there each trajectory counts once.)

Where a snapshot trains on all actions, each legal answer of a decision is a trajectory: the recorded prompt, one of the
recorded choices, its advantage. Its log-probability is 0, for it is enumerated and not drawn.

ART's own `model_validate_json` empties a group without a word and turns choices into dicts, whose log-probabilities it
then ignores; `group_from_json` makes real ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.trained_view import Decision, Group, Member, check_numbers

if TYPE_CHECKING:
    import art

# Mean advantage, relative to the largest, that is rounding and not a shift.
CENTRED = 1e-9


# Tokens of an answer's text as the policy samples it.
TokensOf = Callable[[str], list[int]]


def to_art(group: Group, tokens_of: TokensOf | None = None) -> "art.TrajectoryGroup":
    """One window as one ART group: a member is a trajectory, its decisions are its histories; or, where these have
    advantages of their own, each is a trajectory.

    `tokens_of` is needed where members have `action_advantages`: answers that were not drawn have no recorded tokens.
    TrainingError unless the advantages sum to 0: ART's centring would change them. Batch-centred advantages go through
    `batch_to_art`.
    """
    if not is_centred(advantages_of([group])):
        raise TrainingError(
            f"The advantages of window {group.window_id} do not sum to 0 by themselves; ART would centre them again. "
            "Convert the whole batch with batch_to_art."
        )
    return _art_group([group], tokens_of)


def batch_to_art(groups: Sequence[Group], tokens_of: TokensOf | None = None) -> "list[art.TrajectoryGroup]":
    """A batch as ART groups: one a window where each sums to 0, else one for the whole batch.

    Advantages that were centred over the batch (by action) sum to 0 over the batch only, and one ART group is the
    exact way to say so. TrainingError where they sum to 0 over neither.
    """
    if all(is_centred(advantages_of([group])) for group in groups):
        return [to_art(group, tokens_of) for group in groups]
    if not is_centred(advantages_of(groups)):
        raise TrainingError(
            "The advantages of the batch do not sum to 0: ART would change them. Make the snapshot again."
        )
    return [_art_group(groups, tokens_of)]


def advantages_of(groups: Sequence[Group]) -> list[float]:
    """What ART is given as rewards, in order: the members' advantages, or of each of its legal actions or decisions
    where those are trained, a decision's times its weight."""
    return [advantage for group in groups for member in group.members for advantage in _given(member)]


def _given(member: Member) -> list[float]:
    if member.decision_advantages is not msgspec.UNSET:
        return [advantage / len(member.decisions) for advantage in member.decision_advantages]
    return [member.advantage] if member.action_advantages is None else member.action_advantages


def is_centred(advantages: Sequence[float]) -> bool:
    """Whether the advantages have mean 0, up to rounding."""
    largest = max((abs(advantage) for advantage in advantages), default=0.0)
    return abs(math.fsum(advantages)) <= CENTRED * largest * max(len(advantages), 1)


def _art_group(groups: Sequence[Group], tokens_of: TokensOf | None) -> "art.TrajectoryGroup":
    import art

    trajectories = [
        trajectory
        for group in groups
        for member in group.members
        for trajectory in _art_trajectories(group, member, tokens_of)
    ]
    # `scenario_id` is the one key of metadata that ART itself reads.
    scenario = groups[0].window_id if len(groups) == 1 else f"{groups[0].window_id}..{groups[-1].window_id}"
    return art.TrajectoryGroup(trajectories, metadata={"scenario_id": scenario, "windows": len(groups)})


def _art_trajectories(group: Group, member: Member, tokens_of: TokensOf | None) -> "list[art.Trajectory]":
    if member.decision_advantages is not msgspec.UNSET:
        parts = zip(member.decisions, _given(member), strict=True)
        return [_art_trajectory(group, _alone(member, decision, given)) for decision, given in parts]
    if member.action_advantages is None:
        return [_art_trajectory(group, member)]
    if tokens_of is None:
        raise TrainingError("All actions are trained, and their tokens are not known: give the policy's tokenizer.")
    decision = member.decisions[0]
    alternatives = zip(decision.choices or (), member.action_advantages, strict=True)
    return [
        _art_trajectory(group, _alone(member, enumerated(decision, answer, tokens_of), advantage))
        for answer, advantage in alternatives
    ]


def enumerated(decision: Decision, answer: str, tokens_of: TokensOf) -> Decision:
    """The decision with one of its recorded choices as the answer. TrainingError where its recorded tokens differ."""
    tokens = tokens_of(answer)
    if answer == decision.response.strip() and tokens != decision.token_ids:
        raise TrainingError(
            f"Call {decision.call_id} was sampled with other tokens than the base model's tokenizer gives its answer; "
            "train it on the model that played."
        )
    return msgspec.structs.replace(decision, response=answer, token_ids=tokens, logprobs=[0.0] * len(tokens))


def _alone(member: Member, decision: Decision, advantage: float) -> Member:
    return msgspec.structs.replace(member, decisions=[decision], advantage=advantage)


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
