"""What is looked for in stored groups and snapshots: whether they are, byte for byte, what was recorded and named."""

import hashlib
import json
from collections.abc import Sequence

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame, stream_rows
from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import art_groups
from babylon_rl.errors import TrainingError
from babylon_rl.groups.statuses import TRAINABLE
from babylon_rl.groups.trained_view import Group, canonical_json, check_verbatim, decode_group, digest_of
from babylon_rl.recording.reader import RangeReader


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A snapshot's content by its types."""

    format: int
    training_run: str
    settings: dict
    seed: int
    groups: list[Group]
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


def rebuilt_id(content: str) -> str:
    """Id that the content comes to once it went through its types; TrainingError where it does not fit them."""
    try:
        typed = msgspec.convert(json.loads(content), _Content)
        return hashlib.sha256(canonical_json(typed).encode()).hexdigest()
    except (msgspec.ValidationError, ValueError) as error:
        raise TrainingError(f"the content is no snapshot: {error}") from None
