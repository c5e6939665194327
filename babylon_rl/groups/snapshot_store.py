"""Snapshots in the database: a header whose hash is the id, its groups one by one, and an index of their members.

The header's canonical JSON names each group by the hash of its own canonical JSON, so the id covers them all and no
reader needs more than one in memory. Snapshots of format 1 hold their groups in the header itself and are read alike.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb

from babylon_rl.code_version import code_version
from babylon_rl.database.bulk import copy_rows, stream_rows
from babylon_rl.database.tables import model_tables
from babylon_rl.errors import TrainingError
from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED, Lineage
from babylon_rl.groups.trained_view import Group, Member, canonical_json, decode_group

FORMAT = 2
IN_ONE = 1  # the format whose header holds the groups

# Groups of which the texts are in memory at a time.
TOGETHER = 8

_GROUP_COLUMNS = ("snapshot_id", "place", "window_id", "content", "content_sha256", "group_digest", "scores_digest",
                  "window_revision", "outcome_revision")  # fmt: skip
_MEMBER_COLUMNS = ("snapshot_id", "window_id", "trajectory_id", "agent_id", "label", "loss", "reward", "advantage")


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


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot without its groups. `groups`: how many there are."""

    snapshot_id: str
    training_run: str
    window_ids: tuple[str, ...]
    settings: dict[str, Any]
    seed: int
    left_out: dict[str, int]
    groups: int


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What the group of a window was made from: its row of `art_groups`, and what that row was computed from."""

    group_digest: str
    scores_digest: str | None = None
    window_revision: str | None = None
    outcome_revision: str | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the groups of an update come from: what is needed to make its snapshot again.

    `windows`: those looked at; `sources`: of the trainable groups among them, by window; `refused`: members of these
    that the base model cannot be trained on, by window, which may be filled while the groups are read.
    """

    windows: Sequence[str]
    sources: Mapping[str, Source]
    refused: Mapping[str, Sequence[str]]


class MadeFrom(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of an origin with the snapshot. `groups`: digests by window; `left_out`: the counts given."""

    lineage: Lineage | None
    windows: list[str]
    groups: dict[str, str]
    refused: dict[str, list[str]]
    left_out: dict[str, int]


def made_from_of(origin: Origin, lineage: Lineage | None, left_out: Mapping[str, int]) -> MadeFrom:
    """What is stored of the origin."""
    return MadeFrom(
        lineage=lineage,
        windows=list(origin.windows),
        groups={window_id: source.group_digest for window_id, source in origin.sources.items()},
        refused={window_id: list(members) for window_id, members in origin.refused.items() if members},
        left_out=dict(left_out),
    )


def header_content(
    training_run: str, settings: Mapping[str, Any], seed: int, left_out: Mapping[str, int], digests: Iterable[Any]
) -> str:
    """The header's canonical JSON. `digests`: a window and the SHA-256 of its group's canonical JSON each, in order."""
    return canonical_json(
        {
            "format": FORMAT,
            "training_run": training_run,
            "settings": dict(settings),
            "seed": seed,
            "left_out": dict(left_out),
            "groups": [list(pair) for pair in digests],
        }
    )


def write_snapshot(
    connection: psycopg.Connection,
    content: str,
    groups: Sequence[Group],
    contents: Iterable[bytes],
    origin: Origin | None = None,
    made_from: MadeFrom | None = None,
) -> bool:
    """Write header, groups and index in the caller's transaction; False, and nothing is written, where the id is there.

    `groups`: those that the header names, in its order, of which the members' numbers are read; `contents`: the
    canonical JSON of each.
    """
    header, sources = header_of(content), origin.sources if origin is not None else {}
    inserted = connection.execute(
        "INSERT INTO babylon_rl.snapshots (snapshot_id, training_run, content, window_ids, made_from, code_version) "
        "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (snapshot_id) DO NOTHING",
        (
            header.snapshot_id,
            header.training_run,
            content,
            list(header.window_ids),
            None if made_from is None else Jsonb(msgspec.to_builtins(made_from)),
            code_version(),
        ),
    ).rowcount
    if not inserted:
        return False
    named = enumerate(zip(header.window_ids, contents, strict=True))
    copy_rows(
        connection,
        model_tables.snapshot_groups,
        _GROUP_COLUMNS,
        (_group_row(header.snapshot_id, place, window_id, own, sources) for place, (window_id, own) in named),
        batch=TOGETHER,
    )
    copy_rows(
        connection,
        model_tables.snapshot_members,
        _MEMBER_COLUMNS,
        (_member_row(header.snapshot_id, group.window_id, member) for group in groups for member in group.members),
    )
    return True


def _group_row(
    snapshot_id: str, place: int, window_id: str, content: bytes, sources: Mapping[str, Source]
) -> tuple[Any, ...]:
    source = sources.get(window_id)
    told = (None,) * 4 if source is None else msgspec.structs.astuple(source)
    return (snapshot_id, place, window_id, content.decode(), hashlib.sha256(content).hexdigest(), *told)


def _member_row(snapshot_id: str, window_id: str, member: Member) -> tuple[Any, ...]:
    label = None if member.label is msgspec.UNSET else member.label
    loss = IMPORTANCE_WEIGHTED if member.loss is msgspec.UNSET else member.loss
    return (snapshot_id, window_id, member.trajectory_id, member.agent_id, label, loss, member.reward,
            member.advantage)  # fmt: skip


def load_header(connection: psycopg.Connection, snapshot_id: str) -> SnapshotHeader:
    """The snapshot's header; TrainingError where there is none, or it is not what the id says."""
    return header_of(_content(connection, snapshot_id))


def stream_groups(connection: psycopg.Connection, snapshot_id: str) -> Iterator[Group]:
    """The snapshot's groups by window, one at a time, through a server-side cursor.

    Each is checked against its digest before it is given; TrainingError as `load_header`, and where a group is damaged,
    missing or too many.
    """
    value = _parsed(_content(connection, snapshot_id))
    if value["format"] == IN_ONE:
        yield from map(decode_group, value["groups"])
        return
    stored = stored_texts(connection, snapshot_id)
    for window_id, digest in value["groups"]:
        found, text = next(stored, (None, ""))
        if found != window_id or hashlib.sha256(text.encode()).hexdigest() != digest:
            raise _damaged(snapshot_id, f"its group of window {window_id}")
        yield group_of(text)
    if next(stored, None) is not None:
        raise _damaged(snapshot_id, "the number of its groups")


def load_snapshot(connection: psycopg.Connection, snapshot_id: str) -> Snapshot:
    """The whole snapshot, for small ones; TrainingError as `stream_groups`."""
    content = _content(connection, snapshot_id)
    return snapshot_of(content, stream_groups(connection, snapshot_id))


def snapshot_of(content: str, groups: Iterable[Group]) -> Snapshot:
    """The snapshot of a header's content and its groups."""
    header = header_of(content)
    return Snapshot(
        snapshot_id=header.snapshot_id,
        training_run=header.training_run,
        content=content,
        window_ids=header.window_ids,
        groups=tuple(groups),
        settings=header.settings,
        seed=header.seed,
        left_out=header.left_out,
    )


def header_of(content: str) -> SnapshotHeader:
    """The header that the content describes, whose id is the content's hash. TrainingError for an unknown format."""
    value = _parsed(content)
    in_one = value["format"] == IN_ONE
    windows = tuple(group["window_id"] if in_one else group[0] for group in value["groups"])
    return SnapshotHeader(
        snapshot_id=hashlib.sha256(content.encode()).hexdigest(),
        training_run=value["training_run"],
        window_ids=windows,
        settings=value["settings"],
        seed=value["seed"],
        left_out=value["left_out"],
        groups=len(windows),
    )


def group_of(text: str) -> Group:
    """The group of its canonical JSON; TrainingError where it is none."""
    try:
        return msgspec.json.decode(text, type=Group)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Python's parser also takes half a surrogate pair; what is no group fails there with its reason.
        return decode_group(json.loads(text))


def stored_texts(connection: psycopg.Connection, snapshot_id: str) -> Iterator[Any]:
    """Window and canonical JSON of each group as they stand there, by place, unchecked."""
    columns = model_tables.snapshot_groups.c
    statement = (
        sa.select(columns.window_id, columns.content).where(columns.snapshot_id == snapshot_id).order_by(columns.place)
    )
    return stream_rows(connection, statement, batch=TOGETHER)


def _content(connection: psycopg.Connection, snapshot_id: str) -> str:
    row = connection.execute(
        "SELECT content FROM babylon_rl.snapshots WHERE snapshot_id = %s", (snapshot_id,)
    ).fetchone()
    if row is None:
        raise TrainingError(f"There is no snapshot {snapshot_id}. Materialize trained_checkpoints to make one.")
    if hashlib.sha256(row[0].encode()).hexdigest() != snapshot_id:
        raise _damaged(snapshot_id, "its content")
    return row[0]


def _parsed(content: str) -> dict[str, Any]:
    value = json.loads(content)
    if value.get("format") not in (IN_ONE, FORMAT):
        raise TrainingError(
            f"A snapshot has format {value.get('format')}; this version reads formats {IN_ONE} and {FORMAT}."
        )
    return value


def _damaged(snapshot_id: str, what: str) -> TrainingError:
    return TrainingError(
        f"Snapshot {snapshot_id} is damaged: {what} has another hash. Do not train on it; delete the row and "
        "materialize trained_checkpoints again."
    )
