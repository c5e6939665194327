"""What is told of stored snapshots: which there are, what is in one, and which one a short id means."""

from collections import Counter
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from psycopg.rows import class_row

from babylon_rl.errors import TrainingError
from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED
from babylon_rl.groups.snapshot_store import load_header, stream_groups
from babylon_rl.groups.trained_view import Member

# Ids that are told where a short one means several.
SHOWN = 5


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot in a list. `members`: null where they stand in the header only; `size`: bytes of JSON."""

    snapshot_id: str
    training_run: str
    created_at: datetime
    code_version: str | None
    windows: int
    first: str | None
    last: str | None
    members: int | None
    size: int
    rebuildable: bool
    checkpoints: list[str]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a snapshot. Counts of members by label (`-`: nobody asked) and by loss; tokens over all decisions."""

    listed: Listed
    members: int
    decisions: int
    labels: dict[str, int]
    losses: dict[str, int]
    prompt_tokens: int
    answer_tokens: int
    left_out: dict[str, int]
    settings: dict[str, Any]
    seed: int


_LISTED = """
    SELECT s.snapshot_id, s.training_run, s.created_at, s.code_version, cardinality(s.window_ids) AS windows,
           s.window_ids[1] AS first, s.window_ids[cardinality(s.window_ids)] AS last,
           nullif((SELECT count(*) FROM babylon_rl.snapshot_members m
                   WHERE m.snapshot_id = s.snapshot_id), 0) AS members,
           (octet_length(s.content) + coalesce((SELECT sum(octet_length(g.content)) FROM babylon_rl.snapshot_groups g
                                                WHERE g.snapshot_id = s.snapshot_id), 0))::bigint AS size,
           s.made_from IS NOT NULL AS rebuildable,
           ARRAY(SELECT c.checkpoint_id FROM babylon_rl.checkpoints c WHERE c.snapshot_id = s.snapshot_id
                 ORDER BY c.created_at, c.checkpoint_id) AS checkpoints
    FROM babylon_rl.snapshots s
    WHERE %(snapshot_id)s::text IS NULL OR s.snapshot_id = %(snapshot_id)s
    ORDER BY s.created_at DESC, s.snapshot_id
"""


def list_snapshots(connection: psycopg.Connection, snapshot_id: str | None = None) -> list[Listed]:
    """The snapshots, the latest first; the one of that id where one is given."""
    with connection.cursor(row_factory=class_row(Listed)) as cursor:
        return cursor.execute(_LISTED, {"snapshot_id": snapshot_id}).fetchall()


def show_snapshot(connection: psycopg.Connection, snapshot_id: str) -> Shown:
    """What is in the snapshot, read group by group; TrainingError where it is missing or damaged."""
    header = load_header(connection, snapshot_id)
    (listed,) = list_snapshots(connection, snapshot_id)
    labels: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    decisions = prompt_tokens = answer_tokens = 0
    for group in stream_groups(connection, snapshot_id):
        for member in group.members:
            labels[_or(member, "label", "-")] += 1
            losses[_or(member, "loss", IMPORTANCE_WEIGHTED)] += 1
            decisions += len(member.decisions)
            prompt_tokens += sum(len(decision.prompt_token_ids) for decision in member.decisions)
            answer_tokens += sum(len(decision.token_ids) for decision in member.decisions)
    return Shown(
        listed=listed,
        members=labels.total(),
        decisions=decisions,
        labels=dict(sorted(labels.items())),
        losses=dict(sorted(losses.items())),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        left_out=header.left_out,
        settings=header.settings,
        seed=header.seed,
    )


def find_snapshot(connection: psycopg.Connection, short: str) -> str:
    """The id that begins like this; TrainingError where there is none, or several."""
    found = [
        one
        for (one,) in connection.execute(
            "SELECT snapshot_id FROM babylon_rl.snapshots WHERE starts_with(snapshot_id, %s) ORDER BY 1 LIMIT %s",
            (short, SHOWN + 1),
        )
    ]
    if not found or not short:
        raise TrainingError(f"No snapshot begins with {short!r}; `babylon-rl snapshot list` shows those there are.")
    if len(found) > 1:
        told = ", ".join(one[: len(short) + 8] for one in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
        raise TrainingError(f"{short} is the beginning of several snapshots: {told}. Give more of the id.")
    return found[0]


def _or(member: Member, field: str, otherwise: str) -> str:
    value = getattr(member, field)
    return otherwise if value is msgspec.UNSET else value
