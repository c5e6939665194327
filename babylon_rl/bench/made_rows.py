"""Made rows of a realistic size and shape for the benches; the same seed makes the same rows."""

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pandas as pd
import psycopg
import sqlalchemy as sa

from babylon_rl.database.application_tables import trajectories
from babylon_rl.database.bulk import copy_rows
from babylon_rl.scoring.scorers import COLUMNS
from babylon_rl.windows import parse_window_id

TICKERS = tuple(f"TICK{number}" for number in range(12))
NEWS = "Analysts disagree about the quarter; volumes rise — “nobody knows”, says a trader in Zürich. "
AGENTS = 200
STEPS = 20


def scored_frame(window_ids: Sequence[str], rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of `scored_trajectories` in the shape in which the scorer leaves them, about a kilobyte each."""
    chance = random.Random(seed)
    made = [_scored(chance, window_ids[number * len(window_ids) // rows], number) for number in range(rows)]
    return pd.DataFrame(made, columns=list(COLUMNS))


def _scored(chance: random.Random, window_id: str, number: int) -> dict[str, Any]:
    traded = chance.sample(TICKERS, chance.randint(1, 6))
    pnl, capital = chance.gauss(0, 80), 1000 * chance.uniform(0.5, 20)
    parts = ("pnl_over_capital", "exposure", "market_move", "market_part", "fees_over_capital", "capital_at_risk")
    acted = ", ".join(f"{chance.choice(('BUY', 'SELL'))} {ticker}" for ticker in traded)
    features = {
        "trajectory_id": f"trajectory-{number:012}",
        "agent_id": f"agent-{number % AGENTS}",
        "capital": capital,
        "window_pnl": pnl,
        "fees": chance.uniform(0, 3),
        "notional": {ticker: chance.uniform(1, 500) for ticker in traded},
        "exposure": {ticker: chance.uniform(-500, 500) for ticker in traded},
        "kinds": dict.fromkeys(traded, "ticker"),
        "decisions": 20,
        "steps": 20,
        "trades_tried": 8,
        "trades_succeeded": len(traded),
        "malformed": 0,
        "acted": acted,
        "last_state_pnl": pnl * 3,
        "most_open": chance.uniform(1, 2000),
        "step_numbers": list(range(STEPS)),
        "trades": [(step, None, round(chance.uniform(-500, 500), 2)) for step in range(len(traded))],
        "yes_prices": {},
    }
    return {
        "window_id": window_id,
        "trajectory_id": features["trajectory_id"],
        "agent_id": features["agent_id"],
        "scorer": "alpha",
        "scorer_version": "2",
        "scorer_settings": {},
        "reward": pnl / capital,
        "parts": {name: chance.uniform(-1, 1) for name in parts},
        "decision_rewards": None,
        "counterfactuals": {"flat": 0.0, "hold": None, "best": chance.uniform(0, 0.1)},
        "outcome_score": pnl / capital,
        "features": features,
        "rank": number + 1,
        "reason": f"P&L {pnl:+.2f} ({pnl / capital:.2%} of ${capital:,.0f}) {acted}; market +0.3 %",
        "provenance": "no_logprobs",
        "checkpoint": None,
        "action_values": None,
        "window_revision": f"{number:064x}",
        "outcome_revision": f"{7:064x}",
    }


def fill_recorded(connection: psycopg.Connection, window_ids: Sequence[str], rows: int, seed: int = 0) -> None:
    """Recorded trajectories of 20 steps and about 25 kB in the application's table, evenly over the windows.

    Their texts repeat among rows, for a server keeps them compressed either way; numbers differ.
    """
    connection.execute(
        'INSERT INTO "User" (id, "updatedAt") SELECT \'agent-\' || n, now() FROM generate_series(0, %s - 1) n '
        "ON CONFLICT DO NOTHING",
        (AGENTS,),
    )
    made = _recorded(window_ids, rows, seed)
    first = next(made)
    copy_rows(connection, trajectories, list(first), (tuple(row.values()) for row in (first, *made)))
    _analyze(connection)


def _recorded(window_ids: Sequence[str], rows: int, seed: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(seed)
    for number in range(rows):
        window_id = window_ids[number * len(window_ids) // rows]
        start = parse_window_id(window_id).replace(tzinfo=None)
        pnl = chance.gauss(0, 50)
        steps = [
            recorded_step(chance, index, int(parse_window_id(window_id).timestamp() * 1000)) for index in range(STEPS)
        ]
        yield {
            "id": f"bench-{number}",
            "trajectoryId": f"bench-{number}",
            "agentId": f"agent-{number % AGENTS}",
            "startTime": start + timedelta(minutes=1),
            "endTime": start + timedelta(minutes=50),
            "durationMs": 2_940_000,
            "windowId": window_id,
            "stepsJson": msgspec.json.encode(steps).decode(),
            "rewardComponentsJson": "{}",
            "metricsJson": "{}",
            "metadataJson": "{}",
            "totalReward": 0.0,
            "episodeLength": STEPS,
            "finalStatus": "completed",
            "finalBalance": 1000 + pnl,
            "finalPnL": pnl,
            "updatedAt": start,
        }


def recorded_step(chance: random.Random, index: int, begin: int) -> dict[str, Any]:
    """A step as another recorder writes it, about a kilobyte."""
    ticker, price = chance.choice(TICKERS), round(chance.uniform(5, 500), 2)
    amount = round(chance.uniform(1, 50), 2)
    pnl = round(chance.gauss(0, 20), 2)
    decision = {"action": "trade", "trade": {"side": "long", "ticker": ticker, "amount": amount}}
    return {
        "stepNumber": index,
        "timestamp": begin + index * 120_000,
        "environmentState": {
            "agentBalance": 1000.0,
            "agentPnL": pnl,
            "openPositions": index % 4,
            "activeMarkets": 12,
            "agentPoints": 1000,
        },
        "providerAccesses": [
            {
                "providerName": "markets",
                "purpose": "context",
                "data": {"ticker": ticker, "price": price, "change": pnl / 100, "volume": chance.randint(1, 10**6)},
            }
        ],
        "llmCalls": [
            {
                "model": "qwen3-32b",
                "systemPrompt": "You trade in a market of companies. " + NEWS * 2,
                "userPrompt": f"Balance $1000.00. {ticker} stands at {price}. " + NEWS * 3,
                "response": msgspec.json.encode(decision).decode(),
                "temperature": 0.8,
                "maxTokens": 512,
                "latencyMs": chance.randint(100, 4000),
                "purpose": "action",
                "actionType": "BUY_SHARES",
            }
        ],
        "action": {
            "actionType": "BUY_SHARES" if index % 3 == 0 else "HOLD",
            "parameters": {"ticker": ticker, "amount": amount} if index % 3 == 0 else {},
            "success": True,
            "result": {"price": price, "shares": amount / price, "fees": 0.1},
            "reasoning": "The news favours it. " + NEWS,
        },
        "reward": 0.1,
    }


def _analyze(connection: psycopg.Connection) -> None:
    connection.commit()
    connection.execute("ANALYZE trajectories")
    connection.commit()


def empty(connection: psycopg.Connection, table: sa.Table) -> None:
    """Take all rows out of the table."""
    name = psycopg.sql.Identifier(*([table.schema] if table.schema else []), table.name)
    connection.execute(psycopg.sql.SQL("TRUNCATE {}").format(name))


_COPIES = """
    INSERT INTO trajectories
        (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "stepsJson",
         "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
         "finalBalance", "finalPnL", "updatedAt")
    SELECT 'copy-' || n, 'copy-' || n, 'agent-' || n %% %(agents)s, hour + interval '1 minute',
           hour + interval '50 minutes', 2940000, to_char(hour, 'YYYY-MM-DD"T"HH24:00'),
           replace(replace(%(steps)s, %(time)s, (extract(epoch FROM hour) * 1000)::bigint::text), %(price)s, n::text),
           '{}', '{}', '{}', 0, %(length)s, 'completed', 1000, n %% 100, hour
    FROM (
        SELECT n, %(first)s::timestamp + (n * %(windows)s::bigint / %(rows)s) * interval '1 hour' AS hour
        FROM generate_series(0, %(rows)s - 1) n
    ) numbered
"""


def fill_copies(connection: psycopg.Connection, first: str, windows: int, rows: int, steps: int) -> None:
    """So many rows of so many steps made by the server: copies of one but for its time and a price. 1 step is 1 kB."""
    connection.execute(
        'INSERT INTO "User" (id, "updatedAt") SELECT \'agent-\' || n, now() FROM generate_series(0, %s - 1) n',
        (AGENTS,),
    )
    time, price = 1_111_111_111_111, 987_654.25
    one = {**recorded_step(random.Random(0), 0, time), "environmentState": {"agentBalance": 1000.0, "agentPnL": 0.5}}
    one["action"] = {**one["action"], "result": {"price": price, "fees": 0.1}}
    text = msgspec.json.encode([{**one, "stepNumber": number} for number in range(steps)]).decode()
    connection.execute(
        _COPIES,
        {"agents": AGENTS, "steps": text, "time": str(time), "price": str(price), "length": steps, "first": first,
         "windows": windows, "rows": rows},
    )  # fmt: skip
    _analyze(connection)
