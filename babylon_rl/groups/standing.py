"""What becomes of a window's group: its status, and why, from its members and how they were made."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from babylon_rl.groups.admitting import has_tokens, supervised_advantages
from babylon_rl.groups.advantages import has_spread
from babylon_rl.groups.baselines import Identity
from babylon_rl.groups.statuses import AGENT_BIAS, NO_SPREAD, NOT_READY, TOO_FEW_MEMBERS, TRAINABLE
from babylon_rl.groups.trained_view import Member

if TYPE_CHECKING:
    from babylon_rl.groups.build import GroupSettings

# Windows an agent on average from which on a group may be refused for its agents' share: over fewer, chance alone
# brings a large one often.
LEAST_TO_REFUSE = 8


def status_of(
    window: Mapping[str, Any],
    members: list[Member],
    left_out: int,
    tolerance: float,
    settings: "GroupSettings",
    identity: Identity | None,
) -> tuple[str, str, bool]:
    """Status, reason, and whether texts alone may be trained on, because the logged members are too few.

    What the logged members come to is told of them alone. Where that is nothing, and texts are above their baseline
    among at least `min_group_size` members, the group is trainable for the supervised loss.
    """
    texts = [member for member in members if not has_tokens(member)]
    logged = [member for member in members if has_tokens(member)]
    status, reason = _of_logged(window, logged, left_out + len(texts), tolerance, settings)
    biased = settings.agent_baseline == "none" and identity is not None and _is_biased(identity, settings)
    if biased and status in (NO_SPREAD, TRAINABLE):
        return (*_biased(identity, settings), False)
    if status in (NOT_READY, TRAINABLE) or len(members) < settings.min_group_size:
        return status, reason, False
    above = zip(members, supervised_advantages(members, tolerance), strict=True)
    better = sum(advantage > 0 for member, advantage in above if not has_tokens(member))
    if not better:
        return status, reason, False
    if biased:
        return (*_biased(identity, settings), False)
    said = f"weighted supervised loss only: {better} of {len(texts)} texts did better than the others ({reason})"
    return TRAINABLE, said, status == TOO_FEW_MEMBERS


def _of_logged(
    window: Mapping[str, Any], members: list[Member], left_out: int, tolerance: float, settings: "GroupSettings"
) -> tuple[str, str]:
    """Status and reason of the members with tokens, whoever their agents are."""
    rewards, least = [member.reward for member in members], settings.min_group_size
    if window["status"] != "ready":
        return NOT_READY, f"window is {window['status']}: {window['reason']}"
    if len(rewards) < least:
        return (
            TOO_FEW_MEMBERS,
            f"{len(rewards)} of {len(rewards) + left_out} trajectories can be trained on, {least} must be",
        )
    valued = sum(has_spread(member.action_values or (), tolerance) for member in members)
    if not has_spread(rewards, tolerance) and valued:
        return TRAINABLE, f"{len(rewards)} equal rewards; {valued} decisions whose actions differ in value"
    if not has_spread(rewards, tolerance):
        return NO_SPREAD, f"the {len(rewards)} rewards are equal within {tolerance:g}: nothing to tell them apart by"
    return TRAINABLE, f"{len(rewards)} members, rewards from {min(rewards):+.5f} to {max(rewards):+.5f}"


def _biased(identity: Identity | None, settings: "GroupSettings") -> tuple[str, str]:
    share = (identity.agent_share if identity is not None else None) or 0
    return AGENT_BIAS, (
        f"{100 * share:.0f} % of the rewards' variance is who the agent is, more than "
        f"{100 * settings.agent_share_limit:.0f} %: set BABYLON_RL_AGENT_BASELINE=shrunken, or raise "
        "BABYLON_RL_AGENT_SHARE_LIMIT"
    )


def _is_biased(identity: Identity, settings: "GroupSettings") -> bool:
    share = identity.agent_share
    return share is not None and identity.share_windows >= LEAST_TO_REFUSE and share > settings.agent_share_limit
