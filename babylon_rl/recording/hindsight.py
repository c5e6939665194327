"""What a recorded row holds that its agent never saw: judges' words, and what the game's engine knew beforehand.

Read for the search for leaks alone; no view of a run holds any of it. Columns and tables that are missing, may not be
read or hold no JSON tell nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from babylon_rl.database.catalogue import readable_columns
from babylon_rl.database.connect import Recordings
from babylon_rl.recording.catalog import APPLICATION, OURS

PIECE = 400  # rows of one query
LONGEST = 2**20  # characters of a column that are looked at

_JUDGED = ("reasoning", "strengthsJson", "weaknessesJson")
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|`[^`\n]*`")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class Hindsight(NamedTuple):
    """Of one trajectory. `words`: what judges wrote, a sentence each; `knowledge`: JSON values of `gameKnowledge`."""

    words: tuple[str, ...] = ()
    knowledge: Any = None


class _Shown(msgspec.Struct, rename="camel"):
    step_number: int = 0
    provider_accesses: Any = None


_shown = msgspec.json.Decoder(list[_Shown])


def hindsights(recordings: Recordings, trajectory_ids: Sequence[str]) -> dict[str, Hindsight]:
    """What the rows of these trajectories hold, by trajectory; one that holds nothing may be missing."""
    found: dict[str, Hindsight] = {}
    for connection, table, name in _tables(recordings):
        columns = readable_columns(connection, name)
        if "trajectoryId" not in columns:
            continue
        wanted = [_column(column, columns) for column in ("metadataJson", "aiJudgeReasoning")]
        for trajectory_id, metadata, reasoning in _rows(connection, table, wanted, trajectory_ids):
            found.setdefault(trajectory_id, Hindsight(sentences([reasoning]), _knowledge(metadata)))
    application = recordings.application
    columns = readable_columns(application, "reward_judgments")
    if "trajectoryId" in columns:
        wanted = [_column(column, columns) for column in _JUDGED]
        for trajectory_id, *told in _rows(application, sql.Identifier("reward_judgments"), wanted, trajectory_ids):
            before = found.get(trajectory_id, Hindsight())
            words = sentences(text for one in told for text in _texts(_decoded(one), one))
            found[trajectory_id] = before._replace(words=before.words + words)
    return found


def shown(recordings: Recordings, trajectory_ids: Sequence[str]) -> dict[str, dict[int, list[Any]]]:
    """What agents were shown beside their prompts: providerAccesses by trajectory and step, JSON values."""
    found: dict[str, dict[int, list[Any]]] = {}
    for connection, table, _ in _tables(recordings):
        wanted = [sql.SQL('"stepsJson"::text')]
        for trajectory_id, text in _rows(connection, table, wanted, trajectory_ids):
            if trajectory_id in found or text is None:
                continue
            try:
                steps = _shown.decode(text)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
            of_step: dict[int, list[Any]] = {}
            for step in steps:
                of_step.setdefault(step.step_number, []).append(step.provider_accesses)
            found[trajectory_id] = of_step
    return found


def sentences(texts: Iterable[str | None]) -> tuple[str, ...]:
    """Sentences of what judges wrote; what they quote is another's, and left out."""
    return tuple(
        one.strip() for text in texts if text for one in _SENTENCE.split(_QUOTED.sub(" ", text)) if one.strip()
    )


def _tables(recordings: Recordings) -> Iterator[tuple[psycopg.Connection, sql.Identifier, str]]:
    """The application's rows first: a trajectory that stands in both is the application's."""
    yield recordings.application, APPLICATION, "trajectories"
    yield recordings.ours, OURS, "babylon_rl.trajectories"


def _column(name: str, there: frozenset[str]) -> sql.Composable:
    if name not in there:
        return sql.SQL("NULL::text")
    return sql.SQL("left({}::text, {})").format(sql.Identifier(name), sql.Literal(LONGEST))


def _rows(
    connection: psycopg.Connection, table: sql.Identifier, wanted: Sequence[sql.Composable], ids: Sequence[str]
) -> Iterator[tuple]:
    query = sql.SQL('SELECT "trajectoryId", {} FROM {} WHERE "trajectoryId" = ANY(%s)').format(
        sql.SQL(", ").join(wanted), table
    )
    for start in range(0, len(ids), PIECE):
        yield from connection.execute(query, (list(ids[start : start + PIECE]),))


def _knowledge(metadata: str | None) -> Any:
    value = _decoded(metadata)
    return value.get("gameKnowledge") or None if isinstance(value, dict) else None


def _decoded(text: str | None) -> Any:
    """JSON values of a text; None where it is none. Not strict: NaN is a number here."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _texts(value: Any, plain: str | None = None) -> Iterator[str]:
    """Texts within JSON values; `plain` where there is no JSON."""
    if value is None and plain is not None:
        yield plain
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
