"""The direct look at every recorded row: who wrote it, in which window it is, whether it can be used, and why not.

Nothing is materialized and nothing kept: memory does not grow with the number of rows.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from babylon_rl.database.connect import Recordings
from babylon_rl.recording.actions import normal
from babylon_rl.recording.attribution import named_time
from babylon_rl.recording.catalog import all_entries
from babylon_rl.recording.records import ReadStep
from babylon_rl.recording.row_reader import ENGINE, Examined, RowReader
from babylon_rl.recording.rows import snowflake
from babylon_rl.recording.window import Rejected

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# What the application's agent tick does; its test scripts do something else.
TICK_ACTIONS = frozenset({"trading_decision", "create_post", "create_comment"})


class SurveyedRow(NamedTuple):
    """A recorded row. `reason`: why it cannot be scored, `not_trainable`: why it cannot be trained on; None: it can.

    `producer`: agent_tick, plugin, engine, benchmark, script, babylon_rl or unknown. `has_text`: a call of a language
    model is recorded with an answer; `has_logprobs`: with tokens and their log-probabilities, for every decision.
    """

    trajectory_id: str
    agent_id: str
    window_id: str | None
    producer: str
    reason: str | None
    detail: str
    not_trainable: str | None
    has_text: bool
    has_logprobs: bool


def survey(recordings: Recordings, first: str | None = None, last: str | None = None) -> Iterator[SurveyedRow]:
    """Every recorded row of both origins, each trajectory once; between two windows, those that ended in that span.

    Each database must be in one snapshot (`Database.recordings`).
    """
    reader = RowReader(recordings)
    for batch in all_entries(recordings, first, last):
        yield from map(_surveyed, reader.examine(batch))


def _surveyed(row: Examined) -> SurveyedRow:
    found, entry = row.found, row.entry
    refused = isinstance(found, Rejected)
    return SurveyedRow(
        trajectory_id=entry.trajectory_id,
        agent_id=entry.agent_id,
        window_id=row.window_id,
        producer=_producer(row),
        reason=found.reason if refused else None,
        detail=found.detail,
        not_trainable=None if refused else found.not_trainable,
        has_text=any(call.response.strip() for step in row.steps for call in step.llm_calls),
        has_logprobs=not refused and found.provenance == "logged",
    )


def _producer(row: Examined) -> str:
    """Who wrote the row, by the marks that each leaves."""
    entry, scenario = row.entry, row.entry.scenario_id or ""
    if entry.agent_id == ENGINE or scenario.startswith("market-decisions-"):
        return "engine"
    if row.has_tokens or entry.row_id == snowflake(entry.trajectory_id):
        return "babylon_rl"
    if scenario.startswith("benchmark-"):
        return "benchmark"
    if entry.named is None and _UUID.fullmatch(entry.trajectory_id):
        return "plugin"
    if not entry.trajectory_id.isdecimal():
        return "unknown"
    # The tick and the scripts use one recorder; the tick names no scenario, which is the start hour then.
    if named_time(scenario) is not None and _ticks(row.steps):
        return "agent_tick"
    return "script" if scenario else "unknown"


def _ticks(steps: list[ReadStep]) -> bool:
    return all(normal(step.action.action_type) in TICK_ACTIONS for step in steps)
