"""The first system's way from recorded rows to scores, on the same rows: what the reading is measured against.

asyncpg fetches a window's rows, `json.loads` decodes their steps, each step becomes a pydantic model with models in it,
and the scores are inserted row by row with `executemany`. Names and shapes are those of the recordings; the formula is
its heuristic. It keeps what the first system keeps, in a table of its own.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

SCORES = """
    CREATE TABLE IF NOT EXISTS babylon_rl.first_system_scores (
        trajectory_id text PRIMARY KEY, window_id text NOT NULL, agent_id text NOT NULL,
        score double precision NOT NULL, reasoning text NOT NULL, metrics jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""
FETCH = """
    SELECT "trajectoryId", "agentId", "windowId", "stepsJson", "finalPnL", "episodeLength", "totalReward"
    FROM trajectories WHERE "windowId" = $1 ORDER BY "trajectoryId"
"""
INSERT = """
    INSERT INTO babylon_rl.first_system_scores (trajectory_id, window_id, agent_id, score, reasoning, metrics)
    VALUES ($1, $2, $3, $4, $5, $6)
"""


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class EnvironmentState(_Model):
    """State before a step."""

    agent_balance: float
    agent_pn_l: float
    open_positions: int
    active_markets: int = 0


class ProviderAccess(_Model):
    """What the agent looked up."""

    provider_name: str
    data: dict[str, Any]
    purpose: str


class LLMCall(_Model):
    """One call of a model."""

    model: str
    system_prompt: str
    user_prompt: str
    response: str
    reasoning: str | None = None
    temperature: float
    max_tokens: int
    latency_ms: float | None = None
    purpose: str
    action_type: str | None = None


class Action(_Model):
    """What was done."""

    action_type: str
    parameters: dict[str, Any]
    success: bool
    result: dict[str, Any] | None = None
    error: str | None = None
    reasoning: str | None = None


class TrajectoryStep(_Model):
    """One step."""

    step_number: int
    timestamp: int
    environment_state: EnvironmentState
    provider_accesses: list[ProviderAccess]
    llm_calls: list[LLMCall]
    action: Action
    reward: float


def score_as_it_did(url: str, window_ids: Sequence[str]) -> int:
    """Read, decode, score and insert the windows one after the other; the number of rows."""
    return asyncio.run(_score(url, window_ids))


async def _score(url: str, window_ids: Sequence[str]) -> int:
    import asyncpg

    connection = await asyncpg.connect(url)
    written = 0
    try:
        for window_id in window_ids:
            rows = await connection.fetch(FETCH, window_id)
            scored = [_scored(row, [TrajectoryStep(**step) for step in json.loads(row["stepsJson"])]) for row in rows]
            await connection.executemany(INSERT, scored)
            written += len(scored)
    finally:
        await connection.close()
    return written


def _scored(row: Any, steps: list[TrajectoryStep]) -> tuple[str, str, str, float, str, str]:
    pnl = steps[-1].environment_state.agent_pn_l
    trades = [step for step in steps if "BUY" in step.action.action_type or "SELL" in step.action.action_type]
    metrics = {
        "pnl": pnl,
        "final_pnl": row["finalPnL"],
        "balance": steps[-1].environment_state.agent_balance,
        "steps": len(steps),
        "trades": len(trades),
        "successful": sum(step.action.success for step in trades),
        "calls": sum(len(step.llm_calls) for step in steps),
        "reward": sum(step.reward for step in steps),
        "notional": sum(float(step.action.parameters.get("amount", 0)) for step in trades),
        "fees": sum(float((step.action.result or {}).get("fees", 0)) for step in trades),
    }
    score = 0.5 * max(0.0, min(1.0, (pnl + 1000) / 2000)) + 0.3 * (pnl > 0) + 0.2 * min(1.0, len(steps) / 20)
    reason = f"P&L {pnl:+.2f}, {len(trades)} trades"
    return row["trajectoryId"], row["windowId"], row["agentId"], score, reason, json.dumps(metrics)
