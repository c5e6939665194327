"""What checkpoints were made of, both ways: from a checkpoint down to each trajectory, and from recordings up to it.

A chain goes from a checkpoint over its parents to the base model; each update trained on one snapshot. Members are
counted and found in `snapshot_members`; their calls stand in `snapshot_groups`. A snapshot of format 1 has its groups
in its content alone, and is read from there.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
import psycopg
from psycopg.rows import dict_row

from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED
from babylon_rl.groups.trained_view import canonical_json

_T = TypeVar("_T")

NO_LABEL = "unlabelled"  # of members whose snapshot was made before anybody labelled them


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Members of a snapshot with one label and loss."""

    label: str
    loss: str
    members: int
    agents: int


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint of a chain and what its own update trained on.

    `snapshot_code`: code version that made the snapshot; `code_version`: that trained it. `windows`: in order.
    """

    checkpoint_id: str
    training_run: str
    parent_id: str | None
    step: int
    state: str
    base_model: str
    backend: str | None
    job_id: str | None
    remote_job_id: str | None
    snapshot_id: str | None
    windows: list[str]
    members: list[Counted]
    weights_sha256: str | None
    base_sha256: str | None
    tokenizer_sha256: str | None
    code_version: str | None
    snapshot_code: str | None
    path: str | None
    inference_name: str | None
    inference_url: str | None
    last_window: str | None
    made: datetime
    promoted: bool


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """A trajectory as an update trained on it. `scores_digest`: of its window's scores; `calls`: those trained on.

    Digests and revisions are None where the rows that they stand in are no longer there.
    """

    snapshot_id: str
    window_id: str
    trajectory_id: str
    agent_id: str
    label: str
    loss: str
    reward: float
    advantage: float
    scorer: str
    scorer_version: str
    group_digest: str | None
    scores_digest: str | None
    window_revision: str | None
    outcome_revision: str | None
    calls: list[str]


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that a recording is in: its own update's snapshot, or one that it descends from.

    `through`: the checkpoint whose update trained on it; itself where that is direct.
    """

    checkpoint_id: str
    training_run: str
    step: int
    state: str
    direct: bool
    through: str
    snapshot_id: str | None
    promoted: bool
    served: bool


# --- down ------------------------------------------------------------------------------------------

_CHAIN = """
WITH RECURSIVE line AS (
    SELECT c.*, 0 AS depth FROM babylon_rl.checkpoints c WHERE checkpoint_id = %(checkpoint)s
    UNION ALL
    SELECT c.*, line.depth + 1 FROM babylon_rl.checkpoints c JOIN line ON c.checkpoint_id = line.parent_id
    WHERE line.depth + 1 < %(most)s
)
SELECT line.*, line.created_at AS made, coalesce(s.window_ids, '{}') AS windows, s.code_version AS snapshot_code,
       a.job_id, a.remote_job_id,
       EXISTS (SELECT FROM babylon_rl.promotions p WHERE p.to_checkpoint = line.checkpoint_id) AS promoted
FROM line LEFT JOIN babylon_rl.snapshots s USING (snapshot_id)
LEFT JOIN LATERAL (
    SELECT job_id, remote_job_id FROM babylon_rl.training_attempts a
    WHERE a.snapshot_id = line.snapshot_id AND a.parent_id = line.parent_id
    ORDER BY a.state = 'done' DESC, a.created_at DESC LIMIT 1
) a ON true
ORDER BY line.depth
"""

_COUNTED = """
SELECT snapshot_id, coalesce(label, %(none)s), loss, count(*), count(DISTINCT agent_id)
FROM babylon_rl.snapshot_members WHERE snapshot_id = ANY(%(snapshots)s) GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC, 2, 3
"""


def chain(connection: psycopg.Connection, checkpoint_id: str, most: int = 1_000_000) -> list[Ancestor]:
    """The checkpoint and its ancestors, `most` of them, the base model last; none where there is no such checkpoint."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_CHAIN, {"checkpoint": checkpoint_id, "most": most}).fetchall()
    counted = count_members(connection, [row["snapshot_id"] for row in rows if row["snapshot_id"]])
    fields = set(Ancestor.__struct_fields__) - {"members"}
    return [
        msgspec.convert(
            {**{name: row[name] for name in fields}, "members": counted.get(row["snapshot_id"], [])}, Ancestor
        )
        for row in rows
    ]


def count_members(connection: psycopg.Connection, snapshot_ids: Sequence[str]) -> dict[str, list[Counted]]:
    """Members of each snapshot by label and loss, the most frequent first."""
    found: dict[str, list[Counted]] = defaultdict(list)
    for snapshot, label, loss, members, agents in connection.execute(
        _COUNTED, {"none": NO_LABEL, "snapshots": list(snapshot_ids)}
    ).fetchall():
        found[snapshot].append(Counted(label=label, loss=loss, members=members, agents=agents))
    for snapshot in set(snapshot_ids) - set(found):
        tally: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one in _from_content(connection, snapshot):
            tally[one.label, one.loss].append(one.agent_id)
        found[snapshot] = [
            Counted(label=label, loss=loss, members=len(agents), agents=len(set(agents)))
            for (label, loss), agents in sorted(tally.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
    return dict(found)


def members_by_window(connection: psycopg.Connection, snapshot_id: str) -> dict[str, dict[str, int]]:
    """Members of a snapshot by window and label."""
    rows = connection.execute(
        """SELECT window_id, coalesce(label, %s), count(*) FROM babylon_rl.snapshot_members WHERE snapshot_id = %s
           GROUP BY 1, 2 ORDER BY 1, 2""",
        (NO_LABEL, snapshot_id),
    ).fetchall()
    found: dict[str, dict[str, int]] = {}
    for window, label, members in rows:
        found.setdefault(window, {})[label] = members
    if not rows:
        for one in _from_content(connection, snapshot_id):
            own = found.setdefault(one.window_id, {})
            own[one.label] = own.get(one.label, 0) + 1
    return found


_GROUPS = """
SELECT window_id, content, group_digest, scores_digest, window_revision, outcome_revision
FROM babylon_rl.snapshot_groups
WHERE snapshot_id = %(snapshot)s AND (%(window)s::text IS NULL OR window_id = %(window)s) ORDER BY place
"""


def trajectories(connection: psycopg.Connection, snapshot_id: str, window_id: str | None = None) -> Iterator[Used]:
    """The trajectories of a snapshot by window and id, of one window where it is named, read a few groups at a time."""
    any_group = False
    with connection.cursor(name="groups", row_factory=dict_row) as cursor:
        cursor.itersize = 20
        for row in cursor.execute(_GROUPS, {"snapshot": snapshot_id, "window": window_id}):
            any_group = True
            group = _decoded(row.pop("content"), _Group)
            row.pop("window_id")
            yield from _members(snapshot_id, group, row)
    if not any_group:
        yield from (one for one in _from_content(connection, snapshot_id) if window_id in (None, one.window_id))


# What the groups of a format 1 snapshot were made of, as far as the rows are still there.
_ORIGINS = """
SELECT g.window_id, g.group_digest, g.scores_digest, g.window_revision,
       (SELECT s.outcome_revision FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = g.window_id AND s.digest = g.scores_digest LIMIT 1) AS outcome_revision
FROM (SELECT DISTINCT d.key, d.value FROM babylon_rl.trained_checkpoints t
      CROSS JOIN LATERAL jsonb_each_text(t.group_digests) d WHERE t.snapshot_id = %s AND t.updated) looked
JOIN babylon_rl.art_groups g ON g.window_id = looked.key AND g.group_digest = looked.value
"""
_UNKNOWN = dict.fromkeys(("group_digest", "scores_digest", "window_revision", "outcome_revision"))


def _from_content(connection: psycopg.Connection, snapshot_id: str) -> Iterator[Used]:
    """The trajectories of a snapshot that holds its groups in its content; none of another one."""
    row = connection.execute(
        "SELECT content FROM babylon_rl.snapshots s WHERE snapshot_id = %s AND NOT EXISTS ("
        "SELECT FROM babylon_rl.snapshot_groups g WHERE g.snapshot_id = s.snapshot_id)",
        (snapshot_id,),
    ).fetchone()
    if row is None:
        return
    with connection.cursor(row_factory=dict_row) as cursor:
        origins = {one.pop("window_id"): one for one in cursor.execute(_ORIGINS, (snapshot_id,)).fetchall()}
    for group in _decoded(row[0], _Whole).groups:
        yield from _members(snapshot_id, group, origins.get(group.window_id, _UNKNOWN))


def _members(snapshot_id: str, group: "_Group", origin: Mapping[str, str | None]) -> Iterator[Used]:
    for member in group.members:
        yield Used(
            snapshot_id=snapshot_id,
            window_id=group.window_id,
            trajectory_id=member.trajectory_id,
            agent_id=member.agent_id,
            label=member.label or NO_LABEL,
            loss=member.loss,
            reward=member.reward,
            advantage=member.advantage,
            scorer=group.scorer,
            scorer_version=group.scorer_version,
            calls=[call.call_id for call in member.decisions],
            **origin,
        )


# Of a stored group what lineage tells; its texts and tokens are passed over, which is most of the time of reading it.
class _Call(msgspec.Struct):
    call_id: str


class _Member(msgspec.Struct):
    trajectory_id: str
    agent_id: str
    reward: float
    advantage: float
    decisions: list[_Call]
    label: str | None = None
    loss: str = IMPORTANCE_WEIGHTED


class _Group(msgspec.Struct):
    window_id: str
    scorer: str
    scorer_version: str
    members: list[_Member]


class _Whole(msgspec.Struct):
    groups: list[_Group]


def _decoded(content: str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Python's parser also takes half a surrogate pair, which an agent may have written.
        return msgspec.convert(json.loads(content), kind)


# --- up --------------------------------------------------------------------------------------------

_USERS = """
WITH RECURSIVE line AS (
    SELECT checkpoint_id, checkpoint_id AS through FROM babylon_rl.checkpoints WHERE snapshot_id = ANY(%(snapshots)s)
    UNION
    SELECT c.checkpoint_id, line.through FROM babylon_rl.checkpoints c JOIN line ON c.parent_id = line.checkpoint_id
)
SELECT DISTINCT ON (c.training_run, c.step, c.checkpoint_id) c.checkpoint_id, c.training_run, c.step, c.state,
       line.through = c.checkpoint_id AS direct, line.through, c.snapshot_id,
       EXISTS (SELECT FROM babylon_rl.promotions p WHERE p.to_checkpoint = c.checkpoint_id) AS promoted,
       c.checkpoint_id = (SELECT to_checkpoint FROM babylon_rl.promotions ORDER BY promotion_id DESC LIMIT 1) AS served
FROM line JOIN babylon_rl.checkpoints c USING (checkpoint_id) JOIN babylon_rl.checkpoints t
  ON t.checkpoint_id = line.through
ORDER BY c.training_run, c.step, c.checkpoint_id, line.through <> c.checkpoint_id, t.step
"""


def users(connection: psycopg.Connection, snapshot_ids: Collection[str]) -> list[User]:
    """Checkpoints trained on one of the snapshots, and all that descend from them, by run and step."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_USERS, {"snapshots": list(snapshot_ids)}).fetchall()
    return [User(**{**row, "served": bool(row["served"])}) for row in rows]


def with_trajectory(connection: psycopg.Connection, trajectory_id: str) -> list[Used]:
    """The trajectory as each snapshot has it."""
    rows = connection.execute(
        "SELECT snapshot_id, window_id FROM babylon_rl.snapshot_members WHERE trajectory_id = %s", (trajectory_id,)
    ).fetchall()
    found = [
        one
        for snapshot, window in rows
        for one in trajectories(connection, snapshot, window)
        if one.trajectory_id == trajectory_id
    ]
    for snapshot in _of_format_1(connection, trajectory_id):
        found += [one for one in _from_content(connection, snapshot) if one.trajectory_id == trajectory_id]
    return found


def trained_into(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """By window the checkpoints whose snapshots hold its group, each with the window that its update ended with."""
    rows = connection.execute(
        """SELECT used.window_id, c.checkpoint_id, c.last_window
           FROM babylon_rl.snapshots s JOIN babylon_rl.checkpoints c USING (snapshot_id)
           CROSS JOIN LATERAL unnest(s.window_ids) used(window_id)
           WHERE s.window_ids && %(windows)s::text[] AND used.window_id = ANY(%(windows)s) AND c.last_window IS NOT NULL
           ORDER BY used.window_id, c.created_at""",
        {"windows": list(window_ids)},
    ).fetchall()
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for window, checkpoint, ended in rows:
        found[window].append((checkpoint, ended))
    return dict(found)


def snapshots_of_agent(connection: psycopg.Connection, agent_id: str) -> dict[str, set[tuple[str, str]]]:
    """Window and trajectory of each member that is the agent's, by snapshot."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for snapshot, window, trajectory in connection.execute(
        "SELECT snapshot_id, window_id, trajectory_id FROM babylon_rl.snapshot_members WHERE agent_id = %s",
        (agent_id,),
    ).fetchall():
        found[snapshot].add((window, trajectory))
    for snapshot in _of_format_1(connection, agent_id):
        for one in _from_content(connection, snapshot):
            if one.agent_id == agent_id:
                found[snapshot].add((one.window_id, one.trajectory_id))
    return dict(found)


def _of_format_1(connection: psycopg.Connection, named: str) -> list[str]:
    """Snapshots with their groups in their content, where it has the text somewhere as JSON writes it."""
    rows = connection.execute(
        """SELECT snapshot_id FROM babylon_rl.snapshots s
           WHERE NOT EXISTS (SELECT FROM babylon_rl.snapshot_groups g WHERE g.snapshot_id = s.snapshot_id)
             AND position(%s IN content) > 0 ORDER BY created_at""",
        (canonical_json(named),),
    ).fetchall()
    return [row[0] for row in rows]
