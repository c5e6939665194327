"""From the scored trajectories of a window to its group: the row of `art_groups`, with why each one left out was.

Also the way back: the trainable groups of stored rows, with their digests checked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.advantages import SPREAD_TOLERANCE, has_spread, leave_one_out
from babylon_rl.groups.leaks import Leak, told
from babylon_rl.groups.trained_view import (
    Decision,
    Group,
    Member,
    check_verbatim,
    decode_group,
    digest_of,
    encode_group,
    view_of,
)

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

TRAINABLE, TOO_FEW_MEMBERS, NO_SPREAD, NOT_READY = "trainable", "too_few_members", "no_spread", "not_ready"

COLUMNS = (
    "window_id",
    "group",
    "group_digest",
    "status",
    "reason",
    "members",
    "left_out",
    "scorer",
    "reward_mean",
    "reward_spread",
    "window_revision",
    "scores_digest",
    "agent_share",
    "baselines",
    "alarms",
    "settings",
    "judge_verdict",
)

# Why a trajectory is no member, by the provenance that its score carries.
LEFT_OUT = {
    "no_logprobs": "no_logprobs: no sampled tokens and log-probabilities are recorded for its calls",
    "no_text": "no_text: no call of a language model is recorded",
    "no_capital": "no_capital: its reward cannot be computed without a capital",
}


def build_group(
    window: Mapping[str, Any],
    recorded: "RecordedWindow",
    scored: pd.DataFrame,
    *,
    tolerance: float = SPREAD_TOLERANCE,
    leaks: Mapping[str, Sequence[Leak]] | None = None,
) -> dict[str, Any]:
    """Row of `art_groups` for a window.

    `window`: its row of `windows`; `scored`: its rows of `scored_trajectories`, one scorer, with the digest under which
    they are stored. `leaks`: what the guard found, by trajectory; such a one is left out. VerbatimError where the
    trained view is not what was recorded; SettingsError where several scorers are mixed.
    """
    scored = scored[scored["window_id"] == recorded.window_id]
    scorers = sorted(set(zip(scored["scorer"], scored["scorer_version"], strict=True)))
    if len(scorers) > 1:
        raise SettingsError(
            f"Window {recorded.window_id} has scores of {scorers}; a group takes one. Filter the scores by the scorer."
        )
    scorer, version = scorers[0] if scorers else ("", "")
    members, left_out = _members(recorded, scored, leaks or {})
    rewards = [member.reward for member in members]
    status, reason = _status(window, members, len(left_out), tolerance)
    if status == TRAINABLE and has_spread(rewards, tolerance):
        members = [
            msgspec.structs.replace(member, advantage=advantage)
            for member, advantage in zip(members, leave_one_out(rewards), strict=True)
        ]
    group = Group(window_id=recorded.window_id, scorer=scorer, scorer_version=version, members=members)
    check_verbatim(group, recorded)
    return {
        "window_id": recorded.window_id,
        "group": encode_group(group),
        "group_digest": digest_of(group),
        "status": status,
        "reason": reason,
        "members": len(members),
        "left_out": left_out,
        "scorer": scorer,
        "reward_mean": sum(sorted(rewards)) / len(rewards) if rewards else None,
        "reward_spread": max(rewards) - min(rewards) if rewards else None,
        "window_revision": recorded.revision,
        "scores_digest": scored["digest"].iloc[0] if "digest" in scored and len(scored) else None,
        "agent_share": None,
        "baselines": None,
        "alarms": None,
        "settings": None,
        "judge_verdict": None,
    }


def _members(
    recorded: "RecordedWindow", scored: pd.DataFrame, leaks: Mapping[str, Sequence[Leak]]
) -> tuple[list[Member], list[dict[str, str]]]:
    """Members by trajectory id, advantages still 0, and those left out with the reason."""
    rows = {str(row["trajectory_id"]): row for row in scored.to_dict("records")}
    trajectories = {trajectory.trajectory_id: trajectory for trajectory in recorded.usable}
    members, left_out = [], []
    for trajectory_id in sorted(rows.keys() | trajectories.keys()):
        row, trajectory = rows.get(trajectory_id), trajectories.get(trajectory_id)
        agent_id = str(row["agent_id"]) if row else trajectory.agent_id if trajectory else ""
        made = _member(row, trajectory)
        if isinstance(made, Member) and leaks.get(trajectory_id):
            made = told(leaks[trajectory_id])
        if isinstance(made, Member):
            members.append(made)
        else:
            left_out.append({"trajectory_id": trajectory_id, "agent_id": agent_id, "reason": made})
    return members, left_out


def _member(row: Mapping[str, Any] | None, trajectory: "UsableTrajectory | None") -> Member | str:
    """The member, or why there is none."""
    if row is None:
        return "not_scored: it was recorded after the window was scored"
    if trajectory is None:
        return "not_recorded: its recording is gone or no longer usable"
    if trajectory.not_trainable is not None:
        return f"{trajectory.not_trainable}: {trajectory.detail}"
    if row["provenance"] != "logged":
        return LEFT_OUT.get(row["provenance"], str(row["provenance"]))
    decisions = view_of(trajectory)
    if decisions is None:
        return LEFT_OUT["no_logprobs"]
    return Member(
        trajectory_id=trajectory.trajectory_id,
        agent_id=trajectory.agent_id,
        reward=float(row["reward"]) + 0.0,
        advantage=0.0,
        checkpoint=str(row["checkpoint"]),
        decisions=decisions,
        action_values=_action_values(row.get("action_values"), decisions),
    )


def _action_values(values: Any, decisions: list[Decision]) -> list[float] | None:
    """Values in the order of the decision's choices; None unless each choice of a single decision has one."""
    choices = decisions[0].choices if len(decisions) == 1 else None
    if not isinstance(values, Mapping) or choices is None or set(values) != set(choices):
        return None
    if decisions[0].response.strip() not in choices:
        return None
    return [float(values[choice]) + 0.0 for choice in choices]


def _status(window: Mapping[str, Any], members: list[Member], left_out: int, tolerance: float) -> tuple[str, str]:
    rewards = [member.reward for member in members]
    if window["status"] != "ready":
        return NOT_READY, f"window is {window['status']}: {window['reason']}"
    if len(rewards) < 2:
        return TOO_FEW_MEMBERS, f"{len(rewards)} of {len(rewards) + left_out} trajectories can be trained on, 2 must be"
    valued = sum(has_spread(member.action_values or (), tolerance) for member in members)
    if not has_spread(rewards, tolerance) and valued:
        return TRAINABLE, f"{len(rewards)} equal rewards; {valued} decisions whose actions differ in value"
    if not has_spread(rewards, tolerance):
        return NO_SPREAD, f"the {len(rewards)} rewards are equal within {tolerance:g}: nothing to tell them apart by"
    return TRAINABLE, f"{len(rewards)} members, rewards from {min(rewards):+.5f} to {max(rewards):+.5f}"


def trainable_groups(rows: pd.DataFrame) -> tuple[list[Group], dict[str, int]]:
    """The trainable groups among rows of `art_groups`, by window, and how many others there are by status.

    TrainingError where a stored group does not match its digest.
    """
    groups = []
    others: Counter[str] = Counter()
    for row in rows.sort_values("window_id").to_dict("records"):
        if row["status"] != TRAINABLE:
            others[row["status"]] += 1
            continue
        group = decode_group(row["group"])
        if digest_of(group) != row["group_digest"]:
            raise TrainingError(
                f"The stored group of window {row['window_id']} does not match its digest: the row was changed. "
                "Materialize art_groups of the window again."
            )
        groups.append(group)
    return groups, dict(sorted(others.items()))
