"""Snapshots: the immutable training set of one update, named by the hash of its content.

A snapshot holds the trained views themselves with their final advantages, the training settings and the seed, so that
the same content gives the same id on any machine and in any row order, and training reads nothing else. Here one is
made: groups pass by once, admission looks at the whole of each, and what concerns the batch is reckoned on outlines
(`groups.outlines`), so that memory holds no text of more than one. `groups.snapshot_store` keeps them.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.admitting import admitted_members, by_loss, tolerance_of, with_supervised
from babylon_rl.groups.advantages import (
    ADVANTAGES,
    ALL_ACTIONS,
    LEAVE_ONE_OUT,
    all_actions,
    center_by_action,
    centred_twice,
    decision_advantages,
    has_spread,
)
from babylon_rl.groups.dropout import MAX_DROPOUT, TARGET, drop_of_batch, dropout_rate
from babylon_rl.groups.outlines import Outlines, decisions_of, verb_of, with_decisions
from babylon_rl.groups.provenance import Admission, Lineage, days_between
from babylon_rl.groups.snapshot_store import (
    Origin,
    Snapshot,
    SnapshotHeader,
    Source,
    group_of,
    header_content,
    header_of,
    load_header,
    load_snapshot,
    made_from_of,
    snapshot_of,
    stream_groups,
    write_snapshot,
)
from babylon_rl.groups.spool import Place, Spool
from babylon_rl.groups.statuses import NO_SPREAD, TOO_FEW_MEMBERS
from babylon_rl.groups.trained_view import Group, Member, canonical_json

__all__ = [
    "Origin",
    "Snapshot",
    "SnapshotHeader",
    "Source",
    "action_of",
    "assembled",
    "build_snapshot",
    "load_header",
    "load_snapshot",
    "make_snapshot",
    "minibatch_of",
    "save_snapshot",
    "stream_groups",
]

# Counted under these names: a member without values in a window whose other members have them, and one of a batch
# that is larger than its target.
NO_VALUES, DROPPED = "members without action_values", "members dropout"


def make_snapshot(
    groups: Iterable[Group],
    training_run: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    lineage: Lineage | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Snapshot:
    """Snapshot of the groups of one update.

    `settings`: the training settings as JSON values; read here are `advantages` (leave_one_out |
    leave_one_out_action_centred | all_actions, which is the former in windows whose actions have no recorded values),
    `minibatches`, `backend`, `admit`, `stale_limit`, `stale_days` (back from `last_window`, which is the largest given
    where they do not say it), `spread_tolerance`, `dropout_target` and `max_dropout`. `lineage`: by it members are
    labelled, and those stay that a loss of the backend takes (`groups.admitting`); advantages of importance-weighted
    members are computed without the others of their window. Members whose decisions have rewards of their own get an
    advantage each decision, unless all actions are trained. `left_out`: counts of what was left out before. A batch of
    more than `dropout_target` members of one loss is made smaller by seed, which its settings then say under `dropout`.
    TrainingError where nothing is trainable.
    """
    groups = list(groups)
    last = max((group.window_id for group in groups), default="")
    own = {"lineage": lineage, "left_out": left_out, "last_window": last}
    with assembled(groups, training_run, settings, seed, **own) as made:
        return snapshot_of(made.content, (group_of(text.decode()) for text in made.texts()))


def build_snapshot(
    connection: psycopg.Connection,
    groups: Iterable[Group],
    training_run: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    lineage: Lineage | None = None,
    left_out: Mapping[str, int] | None = None,
    origin: Origin | None = None,
) -> SnapshotHeader:
    """Make the snapshot that `make_snapshot` would, and save it in the caller's transaction, group by group.

    `groups` are read once; their texts and tokens lie in a temporary file, and only numbers stay in memory. `left_out`
    is read after them. `origin`: what `snapshot rebuild` starts from. One that is there already stays as it is.
    """
    with assembled(groups, training_run, settings, seed, lineage=lineage, left_out=left_out) as made:
        made_from = None if origin is None else made_from_of(origin, lineage, left_out or {})
        write_snapshot(connection, made.content, made.batch, made.texts(), origin, made_from)
        return header_of(made.content)


def save_snapshot(connection: psycopg.Connection, snapshot: Snapshot) -> None:
    """Write the snapshot in the caller's transaction; one that is already there stays as it is."""
    texts = (canonical_json(group).encode() for group in snapshot.groups)
    write_snapshot(connection, snapshot.content, snapshot.groups, texts)


class Assembled(NamedTuple):
    """A snapshot that is made and not stored. `batch`: its groups without texts and tokens; `texts`: the whole ones'
    canonical JSON, in the same order, as often as it is asked for."""

    content: str
    batch: list[Group]
    texts: Callable[[], Iterator[bytes]]


@contextlib.contextmanager
def assembled(
    groups: Iterable[Group],
    training_run: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    lineage: Lineage | None = None,
    left_out: Mapping[str, int] | None = None,
    last_window: str = "",
) -> Iterator[Assembled]:
    """The snapshot of the groups while the context lasts; arguments and errors as of `make_snapshot`.

    `last_window`: from which days are counted where the settings do not say it; groups pass by once.
    """
    kind = settings.get("advantages", LEAVE_ONE_OUT)
    if kind not in ADVANTAGES:
        raise SettingsError(f"There are no advantages {kind!r}. Set `advantages` to one of: {', '.join(ADVANTAGES)}.")
    counts: Counter[str] = Counter()
    given: dict[str, Group] = {}
    texts: dict[str, Group] = {}
    places: dict[str, Place] = {}
    admission, last = Admission.of(settings), str(settings.get("last_window") or last_window)
    outlines = Outlines()
    with Spool() as whole, Spool() as made:
        for group in groups:
            if group.window_id in given:
                raise TrainingError(f"Window {group.window_id} is in the batch twice; an update takes a window once.")
            group = _admitted(group, lineage, admission, last, tolerance_of(group, settings), counts)
            given[group.window_id], texts[group.window_id] = by_loss(outlines.of(group))
            places[group.window_id] = whole.add(decisions_of(group))
        counts.update(left_out or {})
        given, texts, used = _dropped_by_loss(given, texts, settings, seed, counts)
        weighed = (_made(given[w], kind, settings, counts, texts[w].members) for w in sorted(given))
        batch = [group for group in weighed if group is not None]
        given.clear()
        if kind != LEAVE_ONE_OUT:
            windows = [group.window_id for group in with_supervised(batch, texts)]
            shares = dict(zip(windows, minibatch_of(windows, int(settings.get("minibatches", 1))), strict=True))
            batch = _centred(batch, [shares[group.window_id] for group in batch])
        batch = with_supervised(batch, texts)
        if not any(_trains(member) for group in batch for member in group.members):
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no group was given"
            raise TrainingError(
                f"Nothing trainable for {training_run}: {said}. Record more windows with the current checkpoint, or "
                "with more exploration where every agent does the same."
            )
        digests, final = [], []
        for group in batch:
            text = with_decisions(group, whole.read(places[group.window_id])).encode()
            digests.append((group.window_id, hashlib.sha256(text).hexdigest()))
            final.append(made.add(text))
        content = header_content(training_run, {**settings, **used}, seed, counts, digests)
        yield Assembled(content, batch, lambda: map(made.read, final))


def _dropped_by_loss(
    given: dict[str, Group], texts: dict[str, Group], settings: Mapping[str, Any], seed: int, counts: Counter[str]
) -> tuple[dict[str, Group], dict[str, Group], dict[str, Any]]:
    """Both after the automatic dropout, each for itself, so that texts take no logged member's place."""
    given, used = _dropped(given, settings, seed, counts)
    texts, used_of_texts = _dropped(texts, settings, seed, counts)
    if used_of_texts:
        used = {"dropout": {**used.get("dropout", {}), "supervised": used_of_texts["dropout"]}}
    return given, texts, used


def _dropped(
    groups: dict[str, Group], settings: Mapping[str, Any], seed: int, counts: Counter[str]
) -> tuple[dict[str, Group], dict[str, Any]]:
    """The groups without the members that the automatic dropout leaves out, and what was used; see `groups.dropout`."""
    members = [(window_id, one.trajectory_id) for window_id, group in groups.items() for one in group.members]
    target = int(settings.get("dropout_target", TARGET))
    most = float(settings.get("max_dropout", MAX_DROPOUT))
    rate = dropout_rate(len(members), target, most)
    out = drop_of_batch(members, rate, seed)
    if not out:
        return groups, {}
    counts[DROPPED] += len(out)
    kept = {
        window_id: msgspec.structs.replace(
            group, members=[one for one in group.members if (window_id, one.trajectory_id) not in out]
        )
        for window_id, group in groups.items()
    }
    used = {"target": target, "max_dropout": most, "members": len(members), "rate": rate, "left_out": len(out)}
    return kept, {"dropout": used}


def _made(
    group: Group, kind: str, settings: Mapping[str, Any], counts: Counter[str], texts: Sequence[Member]
) -> Group | None:
    """The group with its window's advantages, or None where there are none to give; counted where no text trains."""
    tolerance = tolerance_of(group, settings)
    own: Counter[str] = Counter()
    if kind == ALL_ACTIONS and any(member.action_values is not None for member in group.members):
        # Each decision's own mean is taken off, and nothing for who the agent is.
        members = [msgspec.structs.replace(member, baseline=msgspec.UNSET) for member in group.members]
        made = _valued(group, members, tolerance, own)
    else:
        members = [msgspec.structs.replace(member, action_values=None) for member in group.members]
        made = _with_advantages(group, members, tolerance, own)
    if texts:
        # The window is in the batch, whatever its logged members come to.
        own.pop(TOO_FEW_MEMBERS, None)
        own.pop(NO_SPREAD, None)
    counts.update(own)
    return made


def _admitted(
    group: Group, lineage: Lineage | None, admission: Admission, last: str, tolerance: float, counts: Counter[str]
) -> Group:
    """The group with the members that some loss takes; see `groups.admitting`."""
    days = days_between(group.window_id, last) if last else 0.0
    own = admitted_members(group, lineage, admission, counts, days=days, tolerance=tolerance)
    members = sorted([*own.weighted, *own.supervised], key=lambda member: member.trajectory_id)
    return msgspec.structs.replace(group, members=members)


def _with_advantages(group: Group, members: list[Member], tolerance: float, counts: Counter[str]) -> Group | None:
    """The group of these members with leave-one-out advantages of their rewards less their baselines, or None."""
    rewards = [member.reward for member in members]
    if len(rewards) < 2:
        counts[TOO_FEW_MEMBERS] += 1
        return None
    if not has_spread(rewards, tolerance):
        counts[NO_SPREAD] += 1
        return None
    return _replaced(group, members, centred_twice(rewards, [member.taken_off for member in members], tolerance))


def _valued(group: Group, members: list[Member], tolerance: float, counts: Counter[str]) -> Group | None:
    """The group of those members whose actions have values that differ; None (counted) where there is none."""
    kept = []
    for member in members:
        if member.action_values is None:
            counts[NO_VALUES] += 1
        elif has_spread(member.action_values, tolerance):
            kept.append(member)
    if not kept:
        counts[NO_SPREAD] += 1
        return None
    return msgspec.structs.replace(group, members=kept)


def _with_action_advantages(member: Member, advantages: list[float]) -> Member:
    decision = member.decisions[0]
    taken = (decision.choices or []).index(decision.response.strip())
    return msgspec.structs.replace(member, advantage=advantages[taken], action_advantages=advantages)


def _trains(member: Member) -> bool:
    """Whether anything of the member reaches the gradient."""
    if member.decision_advantages is not msgspec.UNSET:
        return any(member.decision_advantages)
    return any(member.action_advantages) if member.action_advantages is not None else member.advantage != 0


def minibatch_of(groups: Sequence[Any], minibatches: int) -> list[int]:
    """The minibatch of each group: equal shares of the windows, in order. An update makes one step a minibatch."""
    shares = max(1, min(minibatches, len(groups)))
    return [index * shares // len(groups) for index in range(len(groups))]


def _centred(batch: list[Group], minibatches: list[int]) -> list[Group]:
    """The batch with its advantages centred within each action of a minibatch.

    Over the minibatch and not over the batch: each optimizer step follows one minibatch, and what tilts a step to one
    side is the sum over its own answers. Windows whose actions are valued and others are centred apart.
    """
    centred: dict[str, Group] = {}
    for minibatch in set(minibatches):
        groups = [group for group, own in zip(batch, minibatches, strict=True) if own == minibatch]
        for made in (
            _centred_over_all([group for group in groups if _is_valued(group)]),
            _centred_over_taken([group for group in groups if not _is_valued(group)]),
        ):
            centred |= {group.window_id: group for group in made}
    return [centred[group.window_id] for group in batch]


def _centred_over_taken(groups: list[Group]) -> list[Group]:
    """Centred over what was done: over members, and over the decisions of those whose decisions have advantages."""
    members = [member for group in groups for member in group.members]
    taken = [own for member in members for own in _taken(member)]
    values = iter(center_by_action(*(list(column) for column in zip(*taken, strict=True)))) if taken else iter(())
    return [
        msgspec.structs.replace(group, members=[_retaken(member, values) for member in group.members])
        for group in groups
    ]


def _taken(member: Member) -> list[tuple[float, str, float]]:
    """Advantage, label and weight of a member, or of each of its decisions where these have their own."""
    if member.decision_advantages is msgspec.UNSET:
        return [(member.advantage, action_of(member), 1.0)]
    labels = [verb_of(decision.response) for decision in member.decisions]
    weight = 1 / len(labels)
    return [(own, label, weight) for own, label in zip(member.decision_advantages, labels, strict=True)]


def _retaken(member: Member, values: Iterator[float]) -> Member:
    """The member with the advantages that come next."""
    if member.decision_advantages is msgspec.UNSET:
        return msgspec.structs.replace(member, advantage=next(values))
    own = [next(values) for _ in member.decisions]
    return msgspec.structs.replace(member, advantage=math.fsum(own) / len(own), decision_advantages=own)


def _centred_over_all(groups: list[Group]) -> list[Group]:
    members = [member for group in groups for member in group.members]
    labels = [[verb_of(choice) for choice in member.decisions[0].choices or ()] for member in members]
    made = iter(all_actions([member.action_values or [] for member in members], labels))
    return [
        msgspec.structs.replace(group, members=[_with_action_advantages(m, next(made)) for m in group.members])
        for group in groups
    ]


def _is_valued(group: Group) -> bool:
    return group.members[0].action_values is not None


def _replaced(group: Group, members: list[Member], advantages: list[float]) -> Group:
    replaced = [_with_advantage(member, advantage) for member, advantage in zip(members, advantages, strict=True)]
    return msgspec.structs.replace(group, members=replaced)


def _with_advantage(member: Member, advantage: float) -> Member:
    """The member with that advantage, and its decisions with theirs where they have rewards of their own."""
    own: list[float] | msgspec.UnsetType = msgspec.UNSET
    if member.decision_rewards is not msgspec.UNSET:
        own = [value + 0.0 for value in decision_advantages(member.reward, advantage, member.decision_rewards)]
    return msgspec.structs.replace(member, advantage=advantage, decision_advantages=own)


def action_of(member: Member) -> str:
    """Label of what a member did: the first word of its answer, or the set of them over several decisions.

    "BUY ACME" and "BUY BOLT" are both BUY. An answer in JSON is labelled by its `action`.
    """
    return "+".join(sorted({verb_of(decision.response) for decision in member.decisions}))
