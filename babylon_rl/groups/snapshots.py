"""Snapshots: the immutable training set of one update, named by the hash of its content.

A snapshot holds the trained views themselves with their final advantages, the training settings and the seed, so that
the same content gives the same id on any machine and in any row order, and training reads nothing else.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.admitting import Admitted, admitted_members, tolerance_of, with_supervised
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
from babylon_rl.groups.provenance import Admission, Lineage, days_between
from babylon_rl.groups.statuses import NO_SPREAD, TOO_FEW_MEMBERS
from babylon_rl.groups.trained_view import Group, Member, canonical_json, decode_group

FORMAT = 1

# Counted under these names: a member without values in a window whose other members have them, and one of a batch
# that is larger than its target.
NO_VALUES, DROPPED = "members without action_values", "members dropout"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A training set. `left_out`: how many groups or members are not in it, by reason."""

    snapshot_id: str
    training_run: str
    content: str
    window_ids: tuple[str, ...]
    groups: tuple[Group, ...]
    settings: dict[str, Any]
    seed: int
    left_out: dict[str, int]


def make_snapshot(
    groups: Iterable[Group],
    training_run: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    lineage: Lineage | None = None,
    left_out: Mapping[str, int] | None = None,
    backend: str = "torch",
) -> Snapshot:
    """Snapshot of the groups of one update.

    `settings`: the training settings as JSON values; read here are `advantages` (leave_one_out |
    leave_one_out_action_centred | all_actions, which is the former in windows whose actions have no recorded values),
    `minibatches`, `admit`, `stale_limit`, `stale_days` (back from the largest window given), `spread_tolerance`,
    `dropout_target` and `max_dropout`. `lineage`: by it members are labelled, and those stay that a loss of `backend`
    takes (`groups.admitting`); advantages of the importance-weighted ones are computed without the others of their
    window. Members whose decisions have rewards of their own get an advantage each decision, unless all actions are
    trained. `left_out`: counts of what was left out before. A batch of more than `dropout_target` members of one loss
    is made smaller by seed, which its settings then say under `dropout` and `dropout_supervised`. TrainingError where
    nothing is trainable.
    """
    kind = settings.get("advantages", LEAVE_ONE_OUT)
    if kind not in ADVANTAGES:
        raise SettingsError(f"There are no advantages {kind!r}. Set `advantages` to one of: {', '.join(ADVANTAGES)}.")
    counts: Counter[str] = Counter(left_out or {})
    given, texts, used = _given(groups, settings, seed, lineage, Admission.of(settings, backend), counts)
    made = (_made(given[window_id], kind, settings, counts, texts[window_id]) for window_id in sorted(given))
    batch = [group for group in made if group is not None]
    if kind != LEAVE_ONE_OUT:
        windows = [group.window_id for group in with_supervised(batch, given, texts)]
        shares = dict(zip(windows, minibatch_of(windows, int(settings.get("minibatches", 1))), strict=True))
        batch = _centred(batch, [shares[group.window_id] for group in batch])
    batch = with_supervised(batch, given, texts)
    if not any(_trains(member) for group in batch for member in group.members):
        said = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no group was given"
        raise TrainingError(
            f"Nothing trainable for {training_run}: {said}. Record more windows with the current checkpoint, or with "
            "more exploration where every agent does the same."
        )
    content = canonical_json(
        {
            "format": FORMAT,
            "training_run": training_run,
            "settings": {**settings, **used},
            "seed": seed,
            "groups": batch,
            "left_out": dict(counts),
        }
    )
    return _snapshot(content)


def _given(
    groups: Iterable[Group],
    settings: Mapping[str, Any],
    seed: int,
    lineage: Lineage | None,
    admission: Admission,
    counts: Counter[str],
) -> tuple[dict[str, Group], dict[str, list[Member]], dict[str, Any]]:
    """The windows' groups of the importance-weighted members, the texts of the supervised loss, and what was used."""
    found: dict[str, Group] = {}
    for group in groups:
        if group.window_id in found:
            raise TrainingError(f"Window {group.window_id} is in the batch twice; an update takes a window once.")
        found[group.window_id] = group
    last = max(found, default="")
    admitted = {
        window_id: _admitted(group, lineage, admission, last, tolerance_of(group, settings), counts)
        for window_id, group in found.items()
    }
    weighted = {w: msgspec.structs.replace(found[w], members=own.weighted) for w, own in admitted.items()}
    texts = {w: msgspec.structs.replace(found[w], members=own.supervised) for w, own in admitted.items()}
    weighted, used = _dropped(weighted, settings, seed, counts)
    texts, used_of_texts = _dropped(texts, settings, seed, counts)
    if used_of_texts:
        used = {**used, "dropout_supervised": used_of_texts["dropout"]}
    return weighted, {window_id: group.members for window_id, group in texts.items()}, used


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
) -> Admitted:
    days = days_between(group.window_id, last)
    return admitted_members(group, lineage, admission, counts, days=days, tolerance=tolerance)


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
    labels = [_verb(decision.response) for decision in member.decisions]
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
    labels = [[_verb(choice) for choice in member.decisions[0].choices or ()] for member in members]
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
    return "+".join(sorted({_verb(decision.response) for decision in member.decisions}))


def _verb(response: str) -> str:
    text = response.strip()
    if text.startswith("{"):
        try:
            text = str(json.loads(text).get("action", ""))
        except json.JSONDecodeError:
            return "malformed"
    words = text.split()
    return words[0].strip(".,:;!").upper() if words else "malformed"


def save_snapshot(connection: psycopg.Connection, snapshot: Snapshot) -> None:
    """Write the snapshot in the caller's transaction; one that is already there stays as it is."""
    connection.execute(
        "INSERT INTO babylon_rl.snapshots (snapshot_id, training_run, content, window_ids) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (snapshot_id) DO NOTHING",
        (snapshot.snapshot_id, snapshot.training_run, snapshot.content, list(snapshot.window_ids)),
    )


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot without its groups. `groups`: how many there are."""

    snapshot_id: str
    training_run: str
    window_ids: tuple[str, ...]
    settings: dict[str, Any]
    seed: int
    left_out: dict[str, int]
    groups: int


def load_header(connection: psycopg.Connection, snapshot_id: str) -> SnapshotHeader:
    """The snapshot's header; TrainingError as `load_snapshot`."""
    found = load_snapshot(connection, snapshot_id)
    return SnapshotHeader(
        snapshot_id=found.snapshot_id,
        training_run=found.training_run,
        window_ids=found.window_ids,
        settings=found.settings,
        seed=found.seed,
        left_out=found.left_out,
        groups=len(found.groups),
    )


def stream_groups(connection: psycopg.Connection, snapshot_id: str) -> Iterator[Group]:
    """The snapshot's groups by window, one at a time, each checked against its digest."""
    yield from load_snapshot(connection, snapshot_id).groups


def load_snapshot(connection: psycopg.Connection, snapshot_id: str) -> Snapshot:
    """The snapshot of that id; TrainingError where there is none, or its content is not what the id says."""
    row = connection.execute(
        "SELECT content FROM babylon_rl.snapshots WHERE snapshot_id = %s", (snapshot_id,)
    ).fetchone()
    if row is None:
        raise TrainingError(f"There is no snapshot {snapshot_id}. Materialize trained_checkpoints to make one.")
    if hashlib.sha256(row[0].encode()).hexdigest() != snapshot_id:
        raise TrainingError(
            f"Snapshot {snapshot_id} is damaged: its content has another hash. Do not train on it; delete the row and "
            "materialize trained_checkpoints again."
        )
    return _snapshot(row[0])


def _snapshot(content: str) -> Snapshot:
    """The snapshot that the content describes, whose id is the content's hash."""
    value = json.loads(content)
    if value.get("format") != FORMAT:
        raise TrainingError(f"A snapshot has format {value.get('format')}; this version reads format {FORMAT}.")
    groups = tuple(decode_group(group) for group in value["groups"])
    return Snapshot(
        snapshot_id=hashlib.sha256(content.encode()).hexdigest(),
        training_run=value["training_run"],
        content=content,
        window_ids=tuple(group.window_id for group in groups),
        groups=groups,
        settings=value["settings"],
        seed=value["seed"],
        left_out=value["left_out"],
    )
