"""Calls of the language model that are kept beside the steps: the application's log of texts, our record of tokens.

A log's row belongs to a step by the trajectory and by `<trajectory>-step-<number>`, or by the step's own id. It fills a
step that has no calls; where the step has calls, it must say the same.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import md5, sha256
from typing import NamedTuple

import msgspec
import psycopg
import sqlalchemy as sa
from psycopg import sql

from babylon_rl.database.bulk import compiled
from babylon_rl.database.connect import Recordings
from babylon_rl.database.tables import recorded_calls
from babylon_rl.database.values import clean_text
from babylon_rl.recording.catalog import Entry
from babylon_rl.recording.decoding import Decoded, Refusal
from babylon_rl.recording.reasons import Reason
from babylon_rl.recording.records import LLMCall, ReadStep, RecordedCall

_CALL_COLUMNS = [recorded_calls.c[name] for name in RecordedCall.__struct_fields__]
_NUMBERED = re.compile(r"-call-(\d+)-(\d+)\Z", re.ASCII)
_STEP = re.compile(r"-step-(\d+)\Z", re.ASCII)

# Digests are of UTF-8, whatever the database's encoding is. Of what is NULL in a table that somebody altered there is
# nothing: an empty text.
_TOLD = """SELECT "trajectoryId", coalesce("stepId", ''), coalesce("callId", ''),
    ARRAY[md5(convert_to(coalesce("systemPrompt", ''), 'UTF8')), md5(convert_to(coalesce("userPrompt", ''), 'UTF8')),
          md5(convert_to(coalesce(response, ''), 'UTF8'))]"""
_PLACES = _TOLD + """ FROM {table} WHERE "trajectoryId" = ANY(%s)"""
_FULL = (
    _TOLD
    + """, coalesce(model, ''), coalesce("systemPrompt", ''), coalesce("userPrompt", ''), coalesce(response, ''),
    temperature, "maxTokens", coalesce(purpose, ''), reasoning, "latencyMs", "actionType"
    FROM {table} WHERE "trajectoryId" = ANY(%s) ORDER BY timestamp, "callId" """
)


class Logged(NamedTuple):
    """A row of the log. `texts`: digests of system prompt, user prompt and answer; `call`: None unless asked for."""

    step_id: str
    call_id: str
    texts: tuple[str, ...]
    call: LLMCall | None


def read_calls(connection: psycopg.Connection | None, trajectory_ids: Sequence[str]) -> dict[str, list[RecordedCall]]:
    """Recorded calls by trajectory, ordered by step and call; none without our tables."""
    if connection is None or not trajectory_ids:
        return {}
    statement = (
        sa.select(*_CALL_COLUMNS)
        .where(recorded_calls.c.trajectory_id == sa.any_(sa.literal(list(trajectory_ids), sa.ARRAY(sa.Text))))
        .order_by(recorded_calls.c.trajectory_id, recorded_calls.c.step_number, recorded_calls.c.call_id)
    )
    found: dict[str, list[RecordedCall]] = defaultdict(list)
    with connection.cursor(binary=True) as cursor:
        for values in cursor.execute(*compiled(statement)):
            call = RecordedCall(**dict(zip(RecordedCall.__struct_fields__, values, strict=True)))
            found[call.trajectory_id].append(call)
    return dict(found)


class CallLog:
    """`llm_call_logs` of both origins; `of_application`: whether the application's can be read."""

    def __init__(self, recordings: Recordings, *, of_application: bool) -> None:
        ours = recordings.ours
        self._tables = [] if ours is None else [(ours, sql.Identifier("babylon_rl", "llm_call_logs"))]
        if of_application:
            self._tables.insert(0, (recordings.application, sql.Identifier("llm_call_logs")))

    def told_of(self, trajectory_ids: Sequence[str]) -> set[str]:
        """Which of the trajectories the log tells something of."""
        query = sql.SQL('SELECT DISTINCT "trajectoryId" FROM {} WHERE "trajectoryId" = ANY(%s)')
        return {
            name
            for connection, table in (self._tables if trajectory_ids else ())
            for (name,) in connection.execute(query.format(table), (list(trajectory_ids),))
        }

    def added(self, rows: Sequence[tuple[Entry, Decoded]]) -> Iterator[tuple[Entry, Decoded]]:
        """The rows with the log's calls in steps that have none, or with what the log says against them."""
        if not rows:
            return
        bare = {entry.trajectory_id for entry, own in rows if not all(step.llm_calls for step in own.steps)}
        told = [entry.trajectory_id for entry, _ in rows if entry.trajectory_id not in bare]
        logged = self.read(sorted(bare), told)
        for entry, own in rows:
            try:
                steps = with_logged(entry.trajectory_id, own.steps, logged.get(entry.trajectory_id, ()))
                yield entry, own if steps is own.steps else replace(own, steps=steps, said=_with_calls(own.said, steps))
            except Refusal as refusal:
                yield entry, replace(own, conflict=refusal)

    def read(self, bare: Sequence[str], told: Sequence[str]) -> dict[str, list[Logged]]:
        """Log rows by trajectory: with the texts of `bare`, without them of `told`; each call once.

        Two texts under one call id are both there: `with_logged` tells of them.
        """
        found: dict[str, list[Logged]] = defaultdict(list)
        seen: set[tuple[str, tuple[str, ...]]] = set()
        for connection, table in self._tables:
            for trajectory_id, logged in _rows(connection, table, bare, told):
                key = (logged.call_id, logged.texts)
                if key not in seen:
                    seen.add(key)
                    found[trajectory_id].append(logged)
        return found


def _rows(
    connection: psycopg.Connection, table: sql.Identifier, bare: Sequence[str], told: Sequence[str]
) -> Iterator[tuple[str, Logged]]:
    if told:
        query = sql.SQL(_PLACES).format(table=table)
        for trajectory_id, step_id, call_id, texts in connection.execute(query, (list(told),)):
            yield trajectory_id, Logged(step_id, call_id, tuple(texts), None)
    if bare:
        query = sql.SQL(_FULL).format(table=table)
        for row in connection.execute(query, (list(bare),)):
            trajectory_id, step_id, call_id, texts, model, system, user, response, temperature, *rest = row
            limit, purpose, reasoning, latency, action = rest
            call = LLMCall(
                model=model, system_prompt=system, user_prompt=user, response=response, temperature=temperature,
                max_tokens=limit, purpose=purpose, reasoning=reasoning, latency_ms=latency, action_type=action,
            )  # fmt: skip
            yield trajectory_id, Logged(step_id, call_id, tuple(texts), call)


def with_logged(trajectory_id: str, steps: list[ReadStep], logged: Sequence[Logged]) -> list[ReadStep]:
    """The steps, those without calls with the log's. Refusal where log and steps contradict each other."""
    if not logged:
        return steps
    places = {f"{trajectory_id}-step-{step.step_number}": at for at, step in enumerate(steps)}
    places |= {step.step_id: at for at, step in enumerate(steps) if step.step_id}
    by_call: dict[str, Logged] = {}
    of_step: dict[int, list[Logged]] = defaultdict(list)
    for row in logged:
        at = places.get(row.step_id)
        if at is None:
            raise Refusal(Reason.CONFLICTING_CALLS, f"call {row.call_id} is logged for {row.step_id}, which is no step")
        if by_call.setdefault(row.call_id, row) is not row:
            raise Refusal(Reason.CONFLICTING_CALLS, f"call {row.call_id} is logged twice, with different texts")
        of_step[at].append(row)
    filled = list(steps)
    for at, rows in of_step.items():
        if steps[at].llm_calls:
            _compare(steps[at], rows)
        else:
            calls = [row.call for row in sorted(rows, key=_order) if row.call is not None]
            filled[at] = msgspec.structs.replace(steps[at], llm_calls=calls)
    return filled


def _with_calls(said: bytes, steps: list[ReadStep]) -> bytes:
    """Digest of what steps say that have the log's calls."""
    return sha256(said + msgspec.json.encode([step.llm_calls for step in steps])).digest()


def _order(row: Logged) -> tuple[int, int]:
    """Numbered calls by their number; others as they were logged, for sorting is stable."""
    number = _number(row)
    return (0, number) if number is not None else (1, 0)


def _number(row: Logged) -> int | None:
    """Number of the call in its step, as its id says it."""
    found = _NUMBERED.search(row.call_id)
    step = _STEP.search(row.step_id)
    if found is None or (step is not None and step[1] != found[1]):
        return None
    return int(found[2])


def _compare(step: ReadStep, rows: Sequence[Logged]) -> None:
    """Refusal unless each row of the log is a call of the step."""
    texts = [_texts(call) for call in step.llm_calls]
    named: Mapping[str, int] = {call.call_id: at for at, call in enumerate(step.llm_calls) if call.call_id}
    for row in rows:
        at = named.get(row.call_id, _number(row))
        said = texts if at is None or at >= len(texts) else [texts[at]]
        if row.texts not in said:
            raise Refusal(
                Reason.CONFLICTING_CALLS,
                f"call {row.call_id} is logged with other texts than step {step.step_number} has for it",
            )


def _texts(call: LLMCall) -> tuple[str, ...]:
    """Digests of the call's texts as a table holds them."""
    texts = (call.system_prompt, call.user_prompt, call.response)
    return tuple(md5(clean_text(text).encode(), usedforsecurity=False).hexdigest() for text in texts)
