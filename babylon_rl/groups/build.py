"""From the scored trajectories of a window to its group: the row of `art_groups`, with why each one left out was.

Also the way back: the trainable groups of stored rows, with their digests checked.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pandas as pd

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.admitting import has_tokens, supervised_advantages
from babylon_rl.groups.advantages import SPREAD_TOLERANCE, centred_twice
from babylon_rl.groups.baselines import AgentHistory, Identity, of_members
from babylon_rl.groups.dropout import choose
from babylon_rl.groups.health import window_alarms
from babylon_rl.groups.leaks import Leak, told
from babylon_rl.groups.provenance import WEIGHTED_SUPERVISED
from babylon_rl.groups.standing import status_of
from babylon_rl.groups.statuses import TRAINABLE
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
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.calibration import SET_ASIDE
from babylon_rl.scoring.seam import NO_CAPITAL
from babylon_rl.settings import Settings

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

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

# Share of the decisions' rewards that adding them up may round away.
SUM_ROUNDING = 1e-9

# Provenances of trajectories whose text is recorded: those may be members.
WITH_TEXT = ("logged", "no_logprobs")

# Why a trajectory is no member, by the provenance that its score carries.
LEFT_OUT = {
    "no_logprobs": "no_logprobs: of a call that chose an action, no sampled tokens and log-probabilities are recorded",
    "no_text": "no_text: no call of a language model is recorded",
    "no_capital": "no_capital: its reward cannot be computed without a capital",
}


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How groups are made: the settings of the same names; `seed` is `group_seed`."""

    min_group_size: int = 2
    max_per_group: int = 0
    seed: int = 0
    agent_baseline: Literal["shrunken", "none"] = "shrunken"
    agent_share_limit: float = 0.5

    @classmethod
    def of(cls, settings: Settings) -> "GroupSettings":
        """Those of the user; SettingsError where no group could have both its least and its largest size."""
        if 0 < settings.max_per_group < settings.min_group_size:
            raise SettingsError(
                f"BABYLON_RL_MAX_PER_GROUP={settings.max_per_group} is below "
                f"BABYLON_RL_MIN_GROUP_SIZE={settings.min_group_size}: no group could be trained on. Raise the one (0: "
                "all members) or lower the other."
            )
        return cls(
            min_group_size=settings.min_group_size,
            max_per_group=settings.max_per_group,
            seed=settings.group_seed,
            agent_baseline=settings.agent_baseline,
            agent_share_limit=settings.agent_share_limit,
        )


def build_group(
    window: Mapping[str, Any],
    recorded: "RecordedWindow",
    scored: pd.DataFrame,
    *,
    settings: GroupSettings | None = None,
    verdict: Mapping[str, Any] | None = None,
    history: AgentHistory | None = None,
    leaks: Mapping[str, Sequence[Leak]] | None = None,
    tolerance: float = SPREAD_TOLERANCE,
) -> dict[str, Any]:
    """Row of `art_groups` for a window.

    `window`: its row of `windows`; `scored`: its rows of `scored_trajectories`, one scorer, with the digest under which
    they are stored; `verdict`: its row of `judge_calibration`: where the judge is set aside, rewards are alpha's;
    `history`: rewards of this window and earlier ones, for the agents' baselines; `leaks`: what was found in the texts,
    by trajectory; `tolerance`: rewards that differ by less are equal. VerbatimError where the trained view is not what
    was recorded; SettingsError where several scorers are mixed.
    """
    settings = settings or GroupSettings()
    scored = scored[scored["window_id"] == recorded.window_id]
    scores_digest = scored["digest"].iloc[0] if "digest" in scored and len(scored) else None
    scorer, version = _scorer_of(recorded.window_id, scored)
    aside = verdict is not None and verdict["verdict"] == SET_ASIDE and scorer not in ("", ALPHA.name)
    if aside:
        scored, scorer, version, tolerance = _by_alpha(scored), ALPHA.name, ALPHA.version, ALPHA.noise
    members, left_out = _members(recorded, scored, leaks or {})
    members, left_out = _chosen(members, left_out, recorded.window_id, settings)
    identity = history.at(recorded.window_id, scorer, version) if history is not None and len(members) > 1 else None
    members, baselines = _with_baselines(members, identity, settings)
    status, reason, text_alone = status_of(window, members, len(left_out), tolerance, settings, identity)
    if status == TRAINABLE:
        members = _with_advantages(members, tolerance)
    group = Group(
        window_id=recorded.window_id,
        scorer=scorer,
        scorer_version=version,
        members=members,
        tolerance=tolerance if tolerance != SPREAD_TOLERANCE else msgspec.UNSET,
        loss=WEIGHTED_SUPERVISED if text_alone else msgspec.UNSET,
    )
    check_verbatim(group, recorded)
    return {
        **_stored(group),
        "status": status,
        "reason": f"{reason}; {_said_aside(verdict)}" if verdict is not None and aside else reason,
        "left_out": left_out,
        "window_revision": recorded.revision,
        "scores_digest": scores_digest,
        "agent_share": identity.agent_share if identity is not None else None,
        "baselines": baselines,
        "alarms": _alarms(scored, members),
        "settings": _made_with(settings, tolerance, identity, group.loss),
        "judge_verdict": verdict["verdict"] if verdict is not None else None,
    }


def _stored(group: Group) -> dict[str, Any]:
    rewards = [member.reward for member in group.members]
    return {
        "window_id": group.window_id,
        "group": encode_group(group),
        "group_digest": digest_of(group),
        "members": len(rewards),
        "scorer": group.scorer,
        "reward_mean": sum(sorted(rewards)) / len(rewards) if rewards else None,
        "reward_spread": max(rewards) - min(rewards) if rewards else None,
    }


def _scorer_of(window_id: str, scored: pd.DataFrame) -> tuple[str, str]:
    scorers = sorted(set(zip(scored["scorer"], scored["scorer_version"], strict=True)))
    if len(scorers) > 1:
        raise SettingsError(
            f"Window {window_id} has scores of {scorers}; a group takes one. Filter the scores by the scorer."
        )
    return scorers[0] if scorers else ("", "")


def _by_alpha(scored: pd.DataFrame) -> pd.DataFrame:
    """The rows with alpha's rewards, which stand beside every score; values and parts of the other scorer go."""
    outcomes = scored["outcome_score"].astype(float)
    changed = scored.assign(
        scorer=ALPHA.name,
        scorer_version=ALPHA.version,
        reward=outcomes,
        provenance=scored["provenance"].where(outcomes.notna(), NO_CAPITAL),
    )
    for column in ("action_values", "decision_rewards"):
        changed[column] = pd.Series([None] * len(changed), index=changed.index, dtype=object)
    return changed


def _said_aside(verdict: Mapping[str, Any]) -> str:
    model = str(verdict.get("judge") or "").partition(" ")[0]
    return f"the judge {model} is {verdict['reason']}; rewards are alpha's"


def _chosen(
    members: list[Member], left_out: list[dict[str, str]], window_id: str, settings: GroupSettings
) -> tuple[list[Member], list[dict[str, str]]]:
    """At most `max_per_group` of the members, and the others among those left out, which stand by trajectory.

    Those with tokens come first, and are chosen as they are where there is no text; texts take the places left.
    """
    if not 0 < settings.max_per_group < len(members):
        return members, left_out
    kept: set[str] = set()
    for own in ([m for m in members if has_tokens(m)], [m for m in members if not has_tokens(m)]):
        room = settings.max_per_group - len(kept)
        names = [one.trajectory_id for one in own]
        kept |= set(names if len(names) <= room else choose(names, room, window_id, settings.seed))
    reason = f"max_per_group: {len(kept)} of {len(members)} were chosen by seed {settings.seed}"
    others = [
        {"trajectory_id": one.trajectory_id, "agent_id": one.agent_id, "reason": reason}
        for one in members
        if one.trajectory_id not in kept
    ]
    return (
        [one for one in members if one.trajectory_id in kept],
        sorted([*left_out, *others], key=lambda one: one["trajectory_id"]),
    )


def _with_baselines(
    members: list[Member], identity: Identity | None, settings: GroupSettings
) -> tuple[list[Member], dict[str, float] | None]:
    """The members with what is taken off for who their agents are, and that by agent; None where nothing is."""
    if identity is None or settings.agent_baseline == "none":
        return members, None
    baselines = of_members(identity.baselines, [member.agent_id for member in members])
    return [
        # Absent and not 0, so that the digest is that of a group without baselines.
        msgspec.structs.replace(member, baseline=baselines[member.agent_id] or msgspec.UNSET)
        for member in members
    ], baselines


def _with_advantages(members: list[Member], tolerance: float) -> list[Member]:
    """Leave-one-out advantages of the logged members among themselves; of texts, what they are above all the others."""
    logged = [member for member in members if has_tokens(member)]
    centred = centred_twice([m.reward for m in logged], [m.taken_off for m in logged], tolerance) if logged else []
    own = dict(zip((m.trajectory_id for m in logged), centred, strict=True))
    return [
        msgspec.structs.replace(member, advantage=own.get(member.trajectory_id, above))
        for member, above in zip(members, supervised_advantages(members, tolerance), strict=True)
    ]


def _alarms(scored: pd.DataFrame, members: list[Member]) -> list[dict[str, Any]]:
    """What the window's runs look like, members or not."""
    decisions = [
        (one.exploration, len(one.choices or ())) for member in members for one in member.decisions if one.token_ids
    ]
    return [msgspec.to_builtins(alarm) for alarm in window_alarms(list(scored["features"]), decisions)]


def _made_with(
    settings: GroupSettings, tolerance: float, identity: Identity | None, loss: str | msgspec.UnsetType
) -> dict[str, Any]:
    """The settings, and what the baselines rest on. `shrinkage`: null where agents do not differ. `loss`: as the
    group's, so that who asks which groups train need not read them."""
    told: dict[str, Any] = {**msgspec.to_builtins(settings), "tolerance": tolerance}
    if loss is not msgspec.UNSET:
        told["loss"] = loss
    if identity is not None:
        shrinkage = identity.shrinkage if math.isfinite(identity.shrinkage) else None
        told["history"] = {"windows": identity.windows, "last": identity.last, "shrinkage": shrinkage}
    return told


def tolerance_in(made_with: Any) -> float:
    """Tolerance in stored settings of a group; the default where it was stored without settings."""
    return float(made_with["tolerance"]) if isinstance(made_with, Mapping) else SPREAD_TOLERANCE


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
    if row["provenance"] not in WITH_TEXT:
        return LEFT_OUT.get(row["provenance"], str(row["provenance"]))
    decisions = view_of(trajectory) if row["provenance"] == trajectory.provenance else None
    if decisions is None:
        return LEFT_OUT["no_logprobs"]
    logged = row["provenance"] == "logged"
    return Member(
        trajectory_id=trajectory.trajectory_id,
        agent_id=trajectory.agent_id,
        reward=float(row["reward"]) + 0.0,
        advantage=0.0,
        checkpoint=str(row["checkpoint"]) if logged or isinstance(row["checkpoint"], str) else "",
        decisions=decisions,
        action_values=_action_values(row.get("action_values"), decisions),
        decision_rewards=_decision_rewards(row, trajectory, decisions) if logged else msgspec.UNSET,
    )


def _action_values(values: Any, decisions: list[Decision]) -> list[float] | None:
    """Values in the order of the decision's choices; None unless each choice of a single decision has one."""
    choices = decisions[0].choices if len(decisions) == 1 else None
    if not isinstance(values, Mapping) or choices is None or set(values) != set(choices):
        return None
    if decisions[0].response.strip() not in choices:
        return None
    return [float(values[choice]) + 0.0 for choice in choices]


def _decision_rewards(
    row: Mapping[str, Any], trajectory: "UsableTrajectory", decisions: list[Decision]
) -> list[float] | msgspec.UnsetType:
    """Reward of each of several decisions, in order; UNSET unless they have all of the run's reward between them.

    Decisions of one step share its reward evenly.
    """
    told = row.get("decision_rewards")
    if not isinstance(told, Mapping) or len(decisions) < 2:
        return msgspec.UNSET
    rewards = {int(step): float(reward) for step, reward in told.items()}
    steps_of = {call.call_id: call.step_number for call in trajectory.calls}
    steps = [steps_of[decision.call_id] for decision in decisions]
    shared = Counter(steps)
    # What was earned where the policy decided nothing is not to be credited to the others.
    if not shared.keys() <= rewards.keys() or any(rewards[step] for step in rewards.keys() - shared.keys()):
        return msgspec.UNSET
    own = [rewards[step] / shared[step] + 0.0 for step in steps]
    total, size = math.fsum(own), math.fsum(map(abs, own))
    return own if abs(total - float(row["reward"])) <= SUM_ROUNDING * (1 + size) else msgspec.UNSET


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
        check_digest(row["window_id"], group, row["group_digest"])
        groups.append(group)
    return groups, dict(sorted(others.items()))


def check_digest(window_id: str, group: Group, digest: str) -> None:
    """TrainingError where a window's stored group does not match its digest."""
    if digest_of(group) != digest:
        raise TrainingError(
            f"The stored group of window {window_id} does not match its digest: the row was changed. Materialize "
            "art_groups of the window again."
        )
