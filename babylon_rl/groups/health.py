"""Collapse seen early: what a window or a batch of play looks like, and which alarms that raises.

Pure: plain inputs, frozen records. What a run does about the alarms of a batch is in `training.alarms`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from babylon_rl.groups.statuses import AGENT_BIAS, NO_SPREAD, TRAINABLE

# Features of a trajectory that are looked at here.
HEALTH_FEATURES = ("acted", "fees", "malformed", "window_pnl")
OPPOSITE_LABELS = ("BUY", "SELL")
HOLD_LABEL, MALFORMED_LABEL = "HOLD", "malformed"

Kind = Literal["one_sided", "all_hold", "malformed", "overtrading", "no_spread"]

# What a single window can show: a few agents on one side, or alike, are no sign yet.
WINDOW_KINDS: tuple[Kind, ...] = ("all_hold", "overtrading", "malformed")


class AlarmLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on an alarm is raised, and how the run answers it.

    `one_sided`, `all_hold`: share of one label, as a part of the most that exploration leaves to one label: where a
    share e of the answers is drawn uniformly from n choices, a policy that always says the same shows it in
    1 - e (n - 1) / n of them. `malformed`: share of answers that are no action. `fees`: fees over the sum of |P&L
    before fees|. `no_spread`: share of groups whose rewards are equal. `exploration`: that of the round after an alarm,
    where the recipe's is not higher. `patience`: updates with alarms in a row that stop the run.
    """

    one_sided: float = 0.95
    all_hold: float = 0.95
    malformed: float = 0.2
    fees: float = 0.5
    no_spread: float = 0.5
    exploration: float = 0.3
    patience: int = 3


class BatchHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What the agents of one update's windows did.

    `shares`: share of the trajectories by label: the action's word, several joined by +, or `malformed`. `explored`:
    share of the answers that exploration alone turns away from any one label. `windows`: groups with rewards, of which
    `no_spread` is the share whose rewards are equal.
    """

    answers: int
    shares: dict[str, float]
    explored: float
    fees: float
    windows: int
    no_spread: float

    @property
    def one_sided(self) -> float:
        """The larger share of the two opposite labels."""
        return max(self.shares.get(label, 0.0) for label in OPPOSITE_LABELS)

    @property
    def hold(self) -> float:
        return self.shares.get(HOLD_LABEL, 0.0)

    @property
    def malformed(self) -> float:
        return self.shares.get(MALFORMED_LABEL, 0.0)


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a batch that reached its limit. `detail`: the figure as a person reads it."""

    kind: Kind
    value: float
    limit: float
    detail: str


def health_of(
    features: Sequence[Mapping[str, Any]],
    groups: Mapping[str, int],
    decisions: Iterable[tuple[float, int]] = (),
) -> BatchHealth:
    """Health of a batch.

    `features`: of each trajectory, as stored with its score; `groups`: counts of the windows' groups by status;
    `decisions`: exploration and number of choices of each recorded answer.
    """
    labels = Counter(label_of(f) for f in features)
    turned = [exploration * (choices - 1) / choices if choices else 0.0 for exploration, choices in decisions]
    fees = math.fsum(f["fees"] for f in features)
    gross = math.fsum(abs(f["window_pnl"] + f["fees"]) for f in features)
    windows = sum(groups.get(status, 0) for status in (TRAINABLE, NO_SPREAD, AGENT_BIAS))
    return BatchHealth(
        answers=len(features),
        shares={label: count / len(features) for label, count in sorted(labels.items())},
        explored=math.fsum(turned) / len(turned) if turned else 0.0,
        # Fees without any gain or loss are all cost.
        fees=fees / gross if gross else float(fees > 0),
        windows=windows,
        no_spread=groups.get(NO_SPREAD, 0) / windows if windows else 0.0,
    )


def label_of(features: Mapping[str, Any]) -> str:
    """Label of what a trajectory did, from its features: BUY, SELL, HOLD, several joined by +, or malformed."""
    words = {part.split()[0].upper() for part in str(features["acted"]).split(",") if part.split()}
    if features["malformed"] or not words or words == {"NOTHING"}:
        return MALFORMED_LABEL
    return "+".join(sorted(words))


def alarms_of(health: BatchHealth, limits: AlarmLimits) -> list[Alarm]:
    """The alarms that the batch raises; none where nothing was played."""
    if not health.answers:
        return []
    most = 1 - health.explored
    side = max(OPPOSITE_LABELS, key=lambda label: health.shares.get(label, 0.0))
    found: list[tuple[Kind, float, float, str]] = [
        ("one_sided", health.one_sided, limits.one_sided * most, f"{side} {_percent(health.one_sided)}"),
        ("all_hold", health.hold, limits.all_hold * most, f"{HOLD_LABEL} {_percent(health.hold)}"),
        ("malformed", health.malformed, limits.malformed, f"{_percent(health.malformed)} of the answers"),
        ("overtrading", health.fees, limits.fees, f"fees are {_percent(health.fees)} of the P&L before them"),
        ("no_spread", health.no_spread, limits.no_spread, f"{_percent(health.no_spread)} of {health.windows} groups"),
    ]
    return [
        Alarm(kind=kind, value=value, limit=limit, detail=detail)
        for kind, value, limit, detail in found
        if value >= limit and value > 0
    ]


def window_alarms(
    features: Sequence[Mapping[str, Any]],
    decisions: Iterable[tuple[float, int]] = (),
    limits: AlarmLimits | None = None,
) -> list[Alarm]:
    """Alarms of one window, of `WINDOW_KINDS`; they are told and stop nothing. Arguments as of `health_of`."""
    raised = alarms_of(health_of(features, {}, decisions), limits or AlarmLimits())
    return [alarm for alarm in raised if alarm.kind in WINDOW_KINDS]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
