"""Runs and raw rows of the application's tables, for tests of what is recorded and read."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from babylon_rl.recording.records import Action, LLMCall, RecordedCall, Run, Step, Trajectory
from babylon_rl.recording.rows import call_id, snowflake
from babylon_rl.windows import parse_window_id

WINDOW = "2025-01-15T10:00"


def add_agents(connection: psycopg.Connection, *agent_ids: str) -> None:
    for agent_id in agent_ids:
        connection.execute('INSERT INTO "User" (id, "updatedAt") VALUES (%s, now())', (agent_id,))


def make_step(
    number: int = 0, *, pnl: float | None = 0.0, at: datetime | None = None, calls: int = 1, **action
) -> Step:
    at = at or parse_window_id(WINDOW) + timedelta(minutes=5 + number)
    call = LLMCall(
        model="m", system_prompt="You trade.", user_prompt="News: good \u00e9\U0001f680.", response="BUY ACME",
        temperature=1.0, max_tokens=8, purpose="action", latency_ms=12.5,
    )  # fmt: skip
    state = {"agentBalance": 1000.0, "openPositions": 0}
    return Step(
        step_number=number,
        timestamp=round(at.timestamp() * 1000),
        environment_state=state if pnl is None else {**state, "agentPnL": pnl},
        provider_accesses=[{"providerName": "news", "data": {"text": "good"}, "purpose": "news"}],
        llm_calls=[call] * calls,
        action=Action(**{"action_type": "open_long", "parameters": {"ticker": "ACME"}, "success": True, **action}),
        reward=0.0,
    )


def make_run(
    name: str = "t1", agent: str = "agent-1", *, window: str = WINDOW, pnl: float | None = 3.5, **changes
) -> Run:
    start = parse_window_id(window)
    fields = {
        "trajectory_id": name,
        "agent_id": agent,
        "window_id": window,
        "start_time": start,
        "end_time": start + timedelta(minutes=55),
        "steps": [make_step(at=start + timedelta(minutes=1))],
        "final_balance": 1003.5,
        "final_pnl": pnl,
        **changes,
    }
    call = RecordedCall(
        call_id=call_id(name, 0, 0), trajectory_id=name, step_number=0, model="m", checkpoint="base",
        prompt_token_ids=[1, 2, 3], token_ids=[7, 8], logprobs=[-0.5, -0.25], choices=["BUY ACME", "SELL ACME"],
        temperature=1.0, top_p=1.0, exploration=0.1, seed=11, finish_reason="stop",
    )  # fmt: skip
    return Run(Trajectory(**fields), [call])


def add_row(connection: psycopg.Connection, name: str, agent: str = "agent-1", **changes) -> None:
    """A row of `trajectories` as some producer might write it."""
    end = datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    row = {
        "id": snowflake(name), "trajectoryId": name, "agentId": agent, "startTime": end - timedelta(minutes=20),
        "endTime": end, "durationMs": 1, "windowId": WINDOW, "stepsJson": steps_json(), "rewardComponentsJson": "{}",
        "metricsJson": "{}", "metadataJson": "{}", "totalReward": 0, "episodeLength": 1, "finalStatus": "completed",
        "finalPnL": 5.0, "updatedAt": end, **changes,
    }  # fmt: skip
    row = {k: v.astimezone(UTC).replace(tzinfo=None) if isinstance(v, datetime) else v for k, v in row.items()}
    connection.execute(
        sql.SQL("INSERT INTO trajectories ({}) VALUES ({})").format(
            sql.SQL(",").join(map(sql.Identifier, row)), sql.SQL(",").join(map(sql.Placeholder, row))
        ),
        row,
    )


def steps_json(
    *pnls: float | None, calls: bool = False, action: str = "TRADING_DECISION", first_minute: int = 15
) -> str:
    """stepsJson as the application writes it for a live tick."""
    start = datetime(2025, 1, 15, 10, tzinfo=UTC)
    call = {"model": "q", "systemPrompt": "s", "userPrompt": "u", "response": "r", "temperature": 0.7,
            "maxTokens": 10, "purpose": "action"}  # fmt: skip
    return json.dumps(
        [
            {
                "stepNumber": n,
                "timestamp": round((start + timedelta(minutes=first_minute + n)).timestamp() * 1000),
                "environmentState": {
                    "agentBalance": 1,
                    "openPositions": 0,
                    **({} if pnl is None else {"agentPnL": pnl}),
                },
                "providerAccesses": [],
                "llmCalls": [call] if calls else [],
                "action": {"actionType": action, "parameters": {}, "success": True, "unknown": 1},
                "reward": 0.1,
            }
            for n, pnl in enumerate(pnls or (0.0,))
        ]
    )
