"""What is looked for in stored groups and snapshots: whether they are what was recorded and named, and hold no leak."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame, stream_rows
from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import art_groups, scored_trajectories
from babylon_rl.errors import TrainingError
from babylon_rl.groups.leaks import told
from babylon_rl.groups.searching import LeakGuard
from babylon_rl.groups.snapshot_store import IN_ONE, stream_groups
from babylon_rl.groups.statuses import TRAINABLE
from babylon_rl.groups.trained_view import Group, check_verbatim, decode_group, digest_of
from babylon_rl.recording.reader import RangeReader


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A snapshot's content by its types: in format 1 with its groups, in format 2 with their windows and digests."""

    format: Literal[1, 2]
    training_run: str
    settings: dict
    seed: int
    groups: list[Group | tuple[str, str]]
    left_out: dict[str, int]


def not_trainable(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Groups that are not trainable and why: window_id, status, members, reason."""
    columns = art_groups.c
    statement = (
        current_rows(art_groups, window_ids)
        .where(columns.status != TRAINABLE)
        .with_only_columns(columns.window_id, columns.status, columns.members, columns.reason)
    )
    return read_frame(connection, statement)


def alarming(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Alarms that the windows' runs raise: window_id, kind, detail, value, limit."""
    columns = art_groups.c
    statement = current_rows(art_groups, window_ids).with_only_columns(columns.window_id, columns.alarms)
    found = [
        (window_id, alarm["kind"], alarm["detail"], alarm["value"], alarm["limit"])
        for window_id, alarms in read_frame(connection, statement).itertuples(index=False)
        for alarm in alarms or ()
    ]
    return pd.DataFrame(found, columns=["window_id", "kind", "detail", "value", "limit"])


def altered_groups(recordings: Recordings, window_ids: Sequence[str]) -> pd.DataFrame:
    """Stored groups that do not match their digest, or whose text is not the recorded text: window_id, what.

    A window that was recorded anew since its group was built is not compared: its group is stale, which is no damage.
    One pass over the rows; one window's recordings are in memory at a time.
    """
    columns = art_groups.c
    statement = current_rows(art_groups, window_ids).with_only_columns(
        columns.window_id, columns.group, columns.group_digest, columns.members, columns.window_revision
    )
    # What was trained on is compared as it was before that was noted.
    reader, found = RangeReader(recordings, window_ids, used=True), []
    for window_id, stored, digest, members, revision in stream_rows(recordings.ours, statement, batch=20):
        try:
            group = decode_group(stored)
            if digest_of(group) != digest:
                raise TrainingError("the stored group does not match its digest: the row was changed")
            if len(group.members) != members:
                raise TrainingError(f"the row says {members} members and the group has {len(group.members)}")
            if group.members:
                recorded = reader.trainable(window_id)
                if revision is None or recorded.revision == revision:
                    check_verbatim(group, recorded)
        except (TrainingError, ValueError) as error:
            found.append((window_id, str(error)))
    return pd.DataFrame(found, columns=["window_id", "what"])


def check_rebuilds(connection: psycopg.Connection, snapshot_id: str) -> None:
    """TrainingError unless the snapshot and each of its groups come, through their types, to the digests they have."""
    row = connection.execute(
        "SELECT content FROM babylon_rl.snapshots WHERE snapshot_id = %s", (snapshot_id,)
    ).fetchone()
    if row is None:
        raise TrainingError(f"snapshot {snapshot_id} is missing")
    try:
        typed = msgspec.convert(json.loads(row[0]), _Content)
        made = digest_of(typed)
    except (msgspec.ValidationError, ValueError) as error:
        raise TrainingError(f"the content is no snapshot: {error}") from None
    if made != snapshot_id:
        raise TrainingError(f"snapshot {snapshot_id} rebuilds to {made}")
    if typed.format == IN_ONE:
        return
    for named, group in zip(typed.groups, stream_groups(connection, snapshot_id), strict=True):
        if (group.window_id, digest_of(group)) != named:
            raise TrainingError(f"snapshot {snapshot_id}: the group of {group.window_id} rebuilds to another digest")


def left_out_for_leaks(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Runs that their windows' groups leave out for a leak: window_id, leaks (how many runs), reason (the first's)."""
    query = """
        SELECT g.window_id, count(*), min(one->>'reason')
        FROM babylon_rl.art_groups g CROSS JOIN LATERAL jsonb_array_elements(g.left_out) one
        WHERE g.window_id = ANY(%s) AND g.superseded_at IS NULL AND starts_with(one->>'reason', 'leak: ')
        GROUP BY g.window_id ORDER BY g.window_id
    """
    rows = connection.execute(query, (list(window_ids),)).fetchall()
    return pd.DataFrame(rows, columns=["window_id", "leaks", "reason"])


def leaking_groups(recordings: Recordings, window_ids: Sequence[str]) -> pd.DataFrame:
    """Stored groups with a member that leaks, by what is known today: window_id, trajectory_id, what.

    What was learned since a group was built may show it: a question resolved, a judge wrote.
    """
    columns = art_groups.c
    statement = current_rows(art_groups, window_ids).with_only_columns(columns.window_id, columns.group)
    reader, guard = RangeReader(recordings, window_ids, used=True), LeakGuard(recordings, window_ids)
    scored = read_frame(recordings.ours, current_rows(scored_trajectories, window_ids))
    scores = dict(iter(scored.groupby("window_id"))) if len(scored) else {}
    found = []
    for window_id, stored in stream_rows(recordings.ours, statement, batch=20):
        members = {member["trajectory_id"] for member in stored["members"]}
        if members:
            recorded = reader.trainable(window_id)
            rows = scores.get(window_id, scored.iloc[:0]).to_dict("records")
            runs = [run for run in recorded.usable if run.trajectory_id in members]
            leaks = guard.leaks(dataclasses.replace(recorded, usable=runs), rows)
            found += [(window_id, name, told(leaks[name])) for name in sorted(leaks)]
    return pd.DataFrame(found, columns=["window_id", "trajectory_id", "what"])
