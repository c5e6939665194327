"""Which members of a window an update takes, by label and loss: what `groups.provenance` rules, for one group.

Members of the importance-weighted loss keep their group as their baseline among themselves. A text, whose policy or
whose log-probabilities are not known, enters the weighted supervised loss with what its reward is above the mean of all
the others, where that is more than the scorer's noise; the rest is nothing to imitate.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from babylon_rl.groups.advantages import SPREAD_TOLERANCE, centred_twice
from babylon_rl.groups.provenance import (
    IMPORTANCE_WEIGHTED,
    PLAIN_SAMPLING,
    WEIGHTED_SUPERVISED,
    Admission,
    Lineage,
    Provenance,
    Ruling,
    loss_for,
    provenance_of,
)
from babylon_rl.groups.trained_view import Decision, Group, Member, check_numbers, check_values

# Counted under this name: texts that did no better than the others of their window; and logged members of a window
# that are too few by its settings, which are there as the others of its texts.
NOT_BETTER, TOO_FEW_LOGGED = "members not_better_than_baseline", "members too_few_logged"


class Admitted(NamedTuple):
    """Members of one window by trajectory id: `weighted` without advantages yet, `supervised` with theirs."""

    weighted: list[Member]
    supervised: list[Member]


def has_tokens(member: Member) -> bool:
    """Whether the tokens of all its decisions are recorded; else it is a text alone."""
    return all(decision.token_ids for decision in member.decisions)


def tolerance_of(group: Group, settings: Mapping[str, Any]) -> float:
    """Rewards of the group that differ by less are equal: the recipe's tolerance or the group's, the larger."""
    own = 0.0 if group.tolerance is msgspec.UNSET else group.tolerance
    return max(float(settings.get("spread_tolerance", SPREAD_TOLERANCE)), own)


def supervised_advantages(members: Sequence[Member], tolerance: float) -> list[float]:
    """What each reward is above the mean of all the others, both less their agents' baselines; 0 where it is less than
    the tolerance, within which rewards are equal.

    The sign is what makes imitation safe: a text that did worse than the others is not pushed away from, for without
    the probability under the policy that wrote it nothing bounds such a step.
    """
    if len(members) < 2:
        return [0.0] * len(members)
    rewards = [member.reward for member in members]
    advantages = centred_twice(rewards, [member.taken_off for member in members], tolerance)
    return [advantage if advantage >= tolerance else 0.0 for advantage in advantages]


def ruling_of(
    member: Member, lineage: Lineage | None, admission: Admission, days: float = 0.0
) -> tuple[Provenance | None, Ruling]:
    """The member's provenance, None where there is no lineage to tell it by, and what it may enter.

    A member of a checkpoint that its run has set aside enters nothing. Without a lineage every recorded token counts as
    the current policy's own.
    """
    recorded = "logged" if has_tokens(member) else "no_logprobs"
    if lineage is None:
        if recorded == "logged":
            return None, Ruling("importance_weighted")
        lineage = Lineage("", {}, 0)
    names = member.checkpoint.split(",")
    provenance = provenance_of(recorded, names, lineage)
    if not set(names).isdisjoint(lineage.set_aside):
        aside = Ruling(None, "set_aside", f"set_aside: an alarm led back behind {member.checkpoint}")
        return provenance, aside
    ruling = loss_for(provenance, admission, days)
    if ruling.loss == IMPORTANCE_WEIGHTED and admission.backend in PLAIN_SAMPLING:
        wrong = next((said for one in member.decisions if (said := drawn_otherwise(one))), None)
        if wrong:
            return provenance, Ruling(None, "drawn_otherwise", f"drawn_otherwise: an answer {wrong}")
    return provenance, ruling


def drawn_otherwise(decision: Decision) -> str | None:
    """What an answer was drawn from, where that is not all tokens at temperature 1: a backend that takes its recorded
    log-probabilities for those would form ratios of two different distributions."""
    if decision.choices:
        return "was answered out of given choices"
    if decision.temperature != 1:
        return f"was drawn at temperature {decision.temperature:g}"
    if decision.top_p != 1:
        return f"was drawn with top-p {decision.top_p:g}"
    return None


def admitted_members(
    group: Group,
    lineage: Lineage | None,
    admission: Admission,
    counts: Counter[str],
    *,
    days: float = 0.0,
    tolerance: float = SPREAD_TOLERANCE,
) -> Admitted:
    """The members that an update takes, labelled; the others are counted by reason.

    `days`: from the window to the update's last one. TrainingError where a member's numbers are not usable.
    """
    members = sorted(group.members, key=lambda member: member.trajectory_id)
    above = dict(zip((m.trajectory_id for m in members), supervised_advantages(members, tolerance), strict=True))
    weighted, supervised = [], []
    for member in members:
        for decision in member.decisions:
            check_numbers(decision)
        check_values(member)
        provenance, ruling = ruling_of(member, lineage, admission, days)
        labelled = member if provenance is None else msgspec.structs.replace(member, label=str(provenance))
        if ruling.loss is None:
            counts[_counted(ruling, provenance)] += 1
        elif ruling.loss == WEIGHTED_SUPERVISED and not above[member.trajectory_id]:
            counts[NOT_BETTER] += 1
        elif ruling.loss == WEIGHTED_SUPERVISED:
            supervised.append(_as_text(labelled, above[member.trajectory_id]))
        elif group.loss is not msgspec.UNSET:
            counts[TOO_FEW_LOGGED] += 1
        else:
            weighted.append(labelled)
    return Admitted(weighted, supervised)


def _counted(ruling: Ruling, provenance: Provenance | None) -> str:
    narrowed = f" {provenance.label}" if ruling.kind == "narrowed" and provenance is not None else ""
    return f"members {ruling.kind}{narrowed}"


def _as_text(member: Member, advantage: float) -> Member:
    """The member for the supervised loss: one advantage for all its decisions, and nothing of other answers."""
    return msgspec.structs.replace(
        member,
        advantage=advantage,
        loss="weighted_supervised",
        action_values=None,
        action_advantages=None,
        decision_rewards=msgspec.UNSET,
        decision_advantages=msgspec.UNSET,
    )


def by_loss(group: Group) -> tuple[Group, Group]:
    """The group with its importance-weighted members alone, and with its texts alone."""
    weighted = [member for member in group.members if member.loss is msgspec.UNSET]
    texts = [member for member in group.members if member.loss is not msgspec.UNSET]
    return msgspec.structs.replace(group, members=weighted), msgspec.structs.replace(group, members=texts)


def with_supervised(batch: Iterable[Group], texts: Mapping[str, Group]) -> list[Group]:
    """The groups of the batch with the windows' texts among their members, and the windows that have texts alone."""
    made = {group.window_id: group for group in batch}
    for window_id, own in texts.items():
        if own.members:
            weighted = made[window_id].members if window_id in made else []
            members = sorted([*weighted, *own.members], key=lambda member: member.trajectory_id)
            made[window_id] = msgspec.structs.replace(own, members=members)
    return [made[window_id] for window_id in sorted(made)]


def labels_of(members: Iterable[Member]) -> dict[str, dict[str, int]]:
    """Members by loss and label, as an update's metadata show them; `unlabelled` where nobody asked."""
    counts: dict[str, Counter[str]] = {}
    for member in members:
        loss = "importance_weighted" if member.loss is msgspec.UNSET else member.loss
        label = "unlabelled" if member.label is msgspec.UNSET else member.label
        counts.setdefault(loss, Counter())[label] += 1
    return {loss: dict(sorted(counts[loss].items())) for loss in sorted(counts)}
