"""A stranger's database: rows as the application's recorders, plugins, engine and scripts really leave them.

Each row says what is expected of it: its window, the reason for which it is refused, the P&L of its hour, and why it
is not trained on. The tables are Prisma's; the rows go in past their foreign keys, as old rows once did.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.engine import make_url

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.urls import with_driver
from babylon_rl.recording.rows import snowflake
from babylon_rl.windows import parse_window_id

HOUR, NEXT = "2025-01-15T10:00", "2025-01-15T11:00"
# Clocks of New York skip an hour here and repeat one there; UTC does neither.
SPRING, AUTUMN = "2025-03-09T07:00", "2025-11-02T06:00"
AGENTS = ("alice", "bob", "market-decision-engine")

ADD_ON_COLUMNS = """ALTER TABLE trajectories ADD COLUMN window_id VARCHAR(50) DEFAULT '2024-01-01T00:00',
    ADD COLUMN window_hours INT, ADD COLUMN agent_id TEXT, ADD COLUMN steps_json JSONB"""


@dataclass(frozen=True)
class Awkward:
    """A row and what is expected of it. `window` None: it belongs to none; `pnl` None: it is refused."""

    name: str
    window: str | None = HOUR
    reason: str | None = None
    pnl: float | None = None
    not_trainable: str | None = None
    misnamed: bool = False
    row: Mapping[str, Any] = field(default_factory=dict)
    logs: Sequence[Mapping[str, Any]] = ()


def call(**changes: Any) -> dict[str, Any]:
    return {"model": "qwen3-32b", "systemPrompt": "You trade.", "userPrompt": "Balance: $1000", "purpose": "action",
            "response": '{"action":"trade"}', "temperature": 0.7, "maxTokens": 512, **changes}  # fmt: skip


def step(number: int = 0, pnl: Any = 0.0, *, minute: float = 15, hour: str = HOUR, calls: Any = None,
         action: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:  # fmt: skip
    moment = parse_window_id(hour) + timedelta(minutes=minute + number)
    state = {"agentBalance": 1000, "openPositions": 0, **({} if pnl is ... else {"agentPnL": pnl})}
    return {
        "stepNumber": number,
        "timestamp": round(moment.timestamp() * 1000),
        "environmentState": state,
        "providerAccesses": [],
        "llmCalls": [call()] if calls is None else calls,
        "action": {"actionType": "TRADING_DECISION", "parameters": {}, "success": True, **(action or {})},
        "reward": 0.1,
        **changes,
    }


def steps(*given: dict[str, Any]) -> str:
    return json.dumps(list(given) or [step()])


def log(name: str, number: int = 0, place: int = 0, **changes: Any) -> dict[str, Any]:
    return {"stepId": f"{name}-step-{number}", "callId": f"{name}-call-{number}-{place}", "model": "q",
            "purpose": "action", "systemPrompt": "You trade.", "userPrompt": "Balance: $1000",
            "response": '{"action":"trade"}', "temperature": 0.7, "maxTokens": 512, **changes}  # fmt: skip


def _plugin_step() -> dict[str, Any]:
    """A step of the plugin: ids of its own, nested state, fractional latency, purpose `other`, no reward yet."""
    return step(
        0, 3.0, stepId="7b1c", observation={}, done=False,
        environmentState={"agentBalance": 0, "agentPoints": 5, "agentPnL": 3.0, "custom": {"deep": {"er": [1, 2.5]}}},
        providerAccesses=[{"providerId": "p", "providerName": "news", "data": {}, "timestamp": 1}, "odd"],
        llmCalls=[call(callId="c-1", latencyMs=12.75, topP=0.9), call(callId="c-2", purpose="other", maxTokens=None)],
        action={"actionType": "BUY_SHARES", "actionName": "BUY_SHARES", "attemptId": "a", "parameters": "all of it",
                "result": [1, 2], "success": True, "immediateReward": 0.1},
    )  # fmt: skip


def at(window: str, minutes: float) -> datetime:
    return (parse_window_id(window) + timedelta(minutes=minutes)).replace(tzinfo=None)


PENDING = {"actionType": "pending", "success": False}
GOOD = steps(step(0, 100.0), step(1, 104.0))
LONG = steps(step(0, 1.0, calls=[call(userPrompt="é🚀 <|im_start|>system\n" + "x" * 200_000)]))
UUID = "0b9c3a52-5a0e-4d0f-9a57-2f6f3f6f2b11"

ROWS = (
    # --- windows
    Awkward("100", pnl=10.0, row={"stepsJson": GOOD}),
    Awkward("101-null-window", pnl=10.0, row={"windowId": None, "stepsJson": GOOD}),
    Awkward("102-label", pnl=10.0, misnamed=True, row={"windowId": "benchmark-1", "stepsJson": GOOD}),
    Awkward("103-spelled", pnl=10.0, row={"windowId": "2025-01-15 10:00:00.000Z", "stepsJson": GOOD}),
    Awkward("104-local", pnl=10.0, row={"windowId": "2025-01-15T05:00-05:00", "stepsJson": GOOD}),
    Awkward("105-straddler", NEXT, pnl=3.0, misnamed=True,
            row={"windowId": HOUR, "scenarioId": HOUR, "startTime": at(HOUR, 58), "endTime": at(NEXT, 2),
                 "stepsJson": steps(step(0, 50.0, minute=58), step(1, 107.0, minute=59)), "finalPnL": 110.0}),
    Awkward("106-off-hour", None, "off_hour_window", row={"windowId": "2025-01-15T10:30", "stepsJson": GOOD}),
    Awkward("107-off-second", None, "off_hour_window", row={"windowId": "2025-01-15T10:00:01", "stepsJson": GOOD}),
    Awkward("108-last-moment", pnl=10.0, row={"endTime": at(HOUR, 59.999), "stepsJson": GOOD}),
    Awkward("109-first-moment", NEXT, pnl=0.0, misnamed=True, row={"endTime": at(NEXT, 0), "stepsJson": GOOD}),
    Awkward("110-infinite", None, "impossible_time", row={"endTime": "infinity", "stepsJson": GOOD}),
    Awkward("111-before-christ", None, "impossible_time", row={"endTime": "0044-03-15 12:00 BC", "stepsJson": GOOD}),
    Awkward("112-year-10000", None, "impossible_time", row={"endTime": "10000-01-01", "stepsJson": GOOD}),
    Awkward("113-infinite-start", pnl=10.0, row={"startTime": "-infinity", "stepsJson": GOOD}),
    Awkward("114-spring", SPRING, pnl=0.0, row={"windowId": SPRING, "endTime": at(SPRING, 30)}),
    Awkward("115-autumn", AUTUMN, pnl=0.0, row={"windowId": AUTUMN, "endTime": at(AUTUMN, 30)}),
    # --- whose row it is, and for what it was made
    Awkward("200-engine", reason="pseudo_agent",
            row={"agentId": "market-decision-engine", "scenarioId": f"market-decisions-{HOUR}", "finalPnL": None}),
    Awkward("201-unknown", reason="unknown_agent", row={"agentId": "nobody"}),
    Awkward("202-evaluation", reason="evaluation", row={"isEvaluation": True, "isTrainingData": False}),
    Awkward("203-not-training", reason="not_training_data", row={"isTrainingData": False, "stepsJson": "["}),
    Awkward("204-used", reason="used_in_training", row={"usedInTraining": True}),
    Awkward("205-terminated", reason="unfinished", row={"finalStatus": "terminated"}),
    Awkward("206-pending", reason="unfinished",
            row={"stepsJson": steps(step(0), step(1, timestamp=0, action=PENDING))}),
    Awkward("207-with-errors", pnl=10.0, row={"finalStatus": "completed_with_errors", "stepsJson": GOOD}),
    # --- the text of the steps
    Awkward("300-null", reason="text_null", row={"stepsJson": "null"}),
    Awkward("301-empty", reason="empty_steps",
            row={"stepsJson": "[]", "scenarioId": "benchmark-7", "windowId": HOUR}),
    Awkward("302-cut", reason="cut_off_json", row={"stepsJson": GOOD[:-40]}),
    Awkward("303-broken", reason="invalid_json", row={"stepsJson": "[}" + GOOD}),
    Awkward("304-object", reason="not_a_list", row={"stepsJson": '{"steps": []}'}),
    Awkward("305-shape", reason="invalid_steps", row={"stepsJson": '[{"stepNumber": "one"}]'}),
    Awkward("306-nan", reason="non_finite_number", row={"stepsJson": steps(step(0, float("nan")))}),
    Awkward("307-beyond", reason="non_finite_number", row={"stepsJson": GOOD.replace("104.0", "1e999")}),
    Awkward("308-column", reason="non_finite_number", row={"finalPnL": float("inf")}),
    Awkward("309-nested", reason="invalid_json", row={"stepsJson": "[" * 100_000}),
    Awkward("310-too-long", reason="too_long", row={"stepsJson": "[" + " " * (32 * 2**20) + "]"}),
    Awkward("311-plugin", pnl=0.0,
            row={"trajectoryId": UUID, "windowId": None, "finalPnL": None, "stepsJson": steps(_plugin_step())}),
    # --- P&L: zero is zero, absent is absent
    Awkward("400-all-zero", pnl=0.0, row={"stepsJson": steps(step(0, 0)), "finalPnL": 0.0}),
    Awkward("401-zero-as-null", pnl=0.0, row={"stepsJson": steps(step(0, 0)), "finalPnL": None}),
    Awkward("402-one-known", pnl=0.0, row={"stepsJson": steps(step(0, ...)), "finalPnL": 7.0}),
    Awkward("403-none-known", reason="no_pnl", row={"stepsJson": steps(step(0, None)), "finalPnL": None}),
    Awkward("404-last-action", pnl=25.0, not_trainable="no_llm_call",
            row={"stepsJson": steps(step(0, 1000.0, calls=[], action={"parameters": {
                "method": "single", "initialPnL": 1000.0, "finalPnL": 1025.0, "pnlChange": 25.0}})), "finalPnL": None}),
    Awkward("405-earlier-hour", pnl=2.0,
            row={"stepsJson": steps(step(0, 500.0, minute=-30), step(31, 8.0, minute=-15)), "finalPnL": 10.0}),
    Awkward("406-no-time", pnl=9.0, row={"stepsJson": steps(step(0, 1.0, timestamp=0)), "finalPnL": 10.0}),
    Awkward("407-decimal-as-text", pnl=8.25, not_trainable="no_llm_call",
            row={"stepsJson": steps(step(0, "12.50", calls=[], action={"parameters": {
                "initialPnL": "12.50", "finalPnL": "20.75", "pnlChange": "8.25"}})), "finalPnL": None}),
    Awkward("408-text-is-no-number", reason="no_pnl",
            row={"stepsJson": steps(step(0, "$5"), step(1, "NaN"), step(2, ""), step(3, "1e999")), "finalPnL": None}),
    # --- calls
    Awkward("500-logged", pnl=0.0, logs=[log("500-logged")], row={"stepsJson": steps(step(0, 0, calls=[]))}),
    Awkward("501-same-log", pnl=0.0, logs=[log("501-same-log")]),
    Awkward("502-other-text", reason="conflicting_calls", logs=[log("502-other-text", response="r")]),
    Awkward("503-no-such-step", reason="conflicting_calls", logs=[log("503-no-such-step", 7)]),
    Awkward("504-reasoning", pnl=0.0, not_trainable="no_decision_call",
            row={"stepsJson": steps(step(0, 0, calls=[call(purpose="reasoning")]))}),
    Awkward("505-null-answer", pnl=0.0, not_trainable="text_missing",
            row={"stepsJson": steps(step(0, 0, calls=[call(response=None)]))}),
    Awkward("506-half-pair", pnl=0.0, not_trainable="not_storable_text",
            row={"stepsJson": steps(step(0, 0, calls=[call(response="half \ud800")]))}),
    Awkward("507-nul", pnl=0.0, not_trainable="not_storable_text",
            row={"stepsJson": steps(step(0, 0, calls=[call(userPrompt="a\x00b")]))}),
    Awkward("508-200-kB", pnl=0.0, row={"stepsJson": LONG, "finalPnL": 1.0}),
    Awkward("509-novel", pnl=0.0, not_trainable="prompt_too_long",
            row={"stepsJson": steps(step(0, 0, calls=[call(userPrompt="x" * 1_100_000)]))}),
    Awkward("510-absent-keys", pnl=0.0, not_trainable="no_llm_call", row={"stepsJson": json.dumps([
        {"stepNumber": 0, "timestamp": None, "environmentState": {"agentPnL": 0},
         "action": {"actionType": "HOLD", "success": True}}])}),
)  # fmt: skip


def make_application(url: str, schema: str | None = None, *, add_on: bool = False) -> None:
    """The application's tables with all the rows, in the database's schema of that name."""
    engine = sa.create_engine(with_driver(url, "psycopg"))
    with engine.begin() as connection:
        if schema:
            connection.execute(sa.schema.CreateSchema(schema))
            connection.execute(sa.text("SELECT set_config('search_path', :path, true)"), {"path": f'"{schema}"'})
        application_metadata.create_all(connection, checkfirst=False)
        raw = connection.connection.driver_connection
        raw.execute("SET LOCAL session_replication_role = replica")  # past the foreign keys
        for agent in AGENTS:
            raw.execute('INSERT INTO "User" (id, "updatedAt") VALUES (%s, now())', (agent,))
        for number, awkward in enumerate(ROWS):
            _insert(raw, number, awkward)
        if add_on:
            raw.execute(ADD_ON_COLUMNS)
    engine.dispose()


def _insert(connection: psycopg.Connection, number: int, awkward: Awkward) -> None:
    name = awkward.row.get("trajectoryId", awkward.name)
    row = {
        "id": snowflake(f"row {awkward.name}"), "trajectoryId": name, "agentId": AGENTS[number % 2],
        "startTime": at(HOUR, 10), "endTime": at(HOUR, 30), "durationMs": 1, "windowId": HOUR,
        "stepsJson": steps(step(0, 0)), "rewardComponentsJson": "{}", "metricsJson": "{}", "metadataJson": "{}",
        "totalReward": 0.1, "episodeLength": 1, "finalStatus": "completed", "updatedAt": at(HOUR, 31),
        "finalPnL": 110.0 if awkward.row.get("stepsJson") == GOOD else 0.0,
        **awkward.row,
    }  # fmt: skip
    _write(connection, "trajectories", row)
    for entry in awkward.logs:
        _write(connection, "llm_call_logs", {
            "id": snowflake(entry["callId"]), "trajectoryId": name, "timestamp": at(HOUR, 20), **entry})  # fmt: skip


def _write(connection: psycopg.Connection, table: str, row: Mapping[str, Any]) -> None:
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(",").join(map(sql.Identifier, row)),
            sql.SQL(",").join(map(sql.Placeholder, row)),
        ),
        row,
    )


def make_reader(url: str, role: str, schema: str = "public") -> str:
    """URL of a role that may read that schema's tables, and nothing else."""
    with psycopg.connect(url, autocommit=True) as connection:
        name, place = sql.Identifier(role), sql.Identifier(schema)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(place, name))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(place, name))
    return make_url(url).set(username=role).render_as_string(hide_password=False)
