"""Rows of `art_groups` as an update reads them: small columns of all of them first, then the groups a few at a time."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import read_frame, stream_rows
from babylon_rl.groups.build import check_digest
from babylon_rl.groups.snapshot_store import Source, group_of
from babylon_rl.groups.statuses import TRAINABLE
from babylon_rl.groups.trained_view import Group

# Groups that are in memory at a time.
TOGETHER = 128

_SMALL = sa.text(
    """
    SELECT g.window_id, g.status, g.group_digest, g.reward_spread, g.settings, g.window_revision, g.scores_digest,
           scored.outcome_revision, decided.decisions
    FROM babylon_rl.art_groups g
    LEFT JOIN LATERAL (
        SELECT string_agg(DISTINCT s.outcome_revision, ',') AS outcome_revision
        FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = g.window_id AND s.superseded_at IS NULL
          AND (s.digest = g.scores_digest OR g.scores_digest IS NULL)
    ) scored ON true
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_agg(jsonb_build_array(d.value -> 'exploration',
                   CASE jsonb_typeof(d.value -> 'choices') WHEN 'array' THEN jsonb_array_length(d.value -> 'choices')
                   ELSE 0 END)), '[]') AS decisions
        FROM jsonb_array_elements(g."group" -> 'members') m CROSS JOIN jsonb_array_elements(m.value -> 'decisions') d
        WHERE jsonb_array_length(d.value -> 'token_ids') > 0
    ) decided
    WHERE g.window_id = ANY(:window_ids) AND g.superseded_at IS NULL
    ORDER BY g.window_id
    """
)

# A group's own digest names it, whether it is the current one or was replaced since. It is fetched once the rows are in
# order, by each row's own id: a sort would carry all of them.
_NAMED = sa.text(
    r"""
    SELECT found.window_id, found.group_digest,
           (SELECT own."group"\:\:text FROM babylon_rl.art_groups own WHERE own.row_id = found.row_id)
    FROM (
        SELECT DISTINCT ON (g.window_id) g.window_id, g.group_digest, g.row_id
        FROM unnest(:window_ids, :digests) AS named (window_id, group_digest)
        JOIN babylon_rl.art_groups g ON g.window_id = named.window_id AND g.group_digest = named.group_digest
        ORDER BY g.window_id, g.superseded_at DESC NULLS FIRST
    ) found
    ORDER BY found.window_id
    """
)


def group_rows(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Current rows of the windows without their groups, by window.

    Of each its status, `group_digest`, `reward_spread` and settings, what it was made from (`window_revision`,
    `scores_digest`, and `outcome_revision` of these scores, null where they were replaced since), and `decisions`: the
    exploration and number of choices of each decision whose tokens are recorded.
    """
    return read_frame(connection, _SMALL.bindparams(sa.bindparam("window_ids", list(window_ids), ARRAY(sa.Text))))


def sources_of(rows: pd.DataFrame) -> dict[str, Source]:
    """What the trainable groups among the rows of `group_rows` are made from, by window."""
    wanted = rows[rows["status"] == TRAINABLE]
    columns = ("group_digest", "scores_digest", "window_revision", "outcome_revision")
    return {
        row["window_id"]: Source(**{name: row[name] for name in columns})
        for row in wanted[["window_id", *columns]].to_dict("records")
    }


def stream_named(connection: psycopg.Connection, digests: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Window, digest and JSON text of the groups with these digests by window, in order, through a server-side cursor.

    A window whose group is not there any more is not among them.
    """
    texts = ARRAY(sa.Text)
    statement = _NAMED.bindparams(
        sa.bindparam("window_ids", list(digests), texts), sa.bindparam("digests", list(digests.values()), texts)
    )
    return stream_rows(connection, statement, batch=8)


def stream_trainable(connection: psycopg.Connection, sources: Mapping[str, Source]) -> Iterator[list[Group]]:
    """The groups of the sources by window, up to `TOGETHER` at a time.

    They are those that the sources name, also where a row was replaced meanwhile. TrainingError where a stored group
    does not match its digest.
    """
    rows = stream_named(connection, {window_id: source.group_digest for window_id, source in sources.items()})
    while part := list(itertools.islice(rows, TOGETHER)):
        groups = []
        for window_id, digest, text in part:
            groups.append(group_of(text))
            check_digest(window_id, groups[-1], digest)
        yield groups
