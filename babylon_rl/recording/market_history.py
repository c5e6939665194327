"""What a simulated market leaves behind in the application's tables: agents, prices, questions and their resolutions.

Only ever for a simulated market. Writing the same history again changes nothing; writing another one into the same
hour is refused, for outcomes would then belong to neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from babylon_rl.database import application_tables as app
from babylon_rl.errors import RecordingError
from babylon_rl.recording.rows import snowflake, utc_naive


@dataclass(frozen=True)
class TickerHistory:
    """Prices of a ticker, dollars, at aware times."""

    ticker: str
    points: tuple[tuple[datetime, float], ...]


@dataclass(frozen=True)
class QuestionHistory:
    """A prediction market: its maker at the opening, the probability of YES at aware times, and how it resolved."""

    market_id: str
    question: str
    yes_shares: float
    no_shares: float
    opened_at: datetime
    ends_at: datetime
    resolution: bool
    points: tuple[tuple[datetime, float], ...]


def record_market(
    connection: psycopg.Connection,
    agent_ids: Sequence[str],
    tickers: Sequence[TickerHistory],
    questions: Sequence[QuestionHistory],
) -> None:
    """Write agents, prices and questions, in the caller's transaction. RecordingError if others are there already."""
    now = utc_naive(datetime.now(UTC))
    _insert(connection, app.user, [_user(agent_id, now) for agent_id in dict.fromkeys(agent_ids)])
    organizations = _organizations(connection, sorted({t.ticker for t in tickers}), now)
    _insert_same(
        connection, app.stock_price, "price", [r for t in tickers for r in _prices(t, organizations[t.ticker])]
    )
    _insert_same(connection, app.market, "question", [_market(q) for q in questions])
    _insert_same(
        connection, app.prediction_price_history, "yesPrice", [r for q in questions for r in _probabilities(q)]
    )


def _user(agent_id: str, now: datetime) -> dict[str, Any]:
    return {
        "id": agent_id,
        "displayName": f"Simulated {agent_id}",
        "isAgent": True,
        "isTest": True,
        "agentSystem": "babylon_rl simulated market",
        "createdAt": now,
        "updatedAt": now,
    }


def _organizations(connection: psycopg.Connection, tickers: list[str], now: datetime) -> dict[str, str]:
    """Id of each ticker's organization, made where there is none; an organization's name is its ticker."""
    _insert(connection, app.organization, [{"id": t, "name": t, "createdAt": now, "updatedAt": now} for t in tickers])
    return {t: t for t in tickers}


def _prices(history: TickerHistory, organization_id: str) -> list[dict[str, Any]]:
    return [
        {
            "id": snowflake(f"{history.ticker}/{moment.astimezone(UTC).isoformat()}"),
            "organizationId": organization_id,
            "price": price,
            "timestamp": utc_naive(moment),
            "isSnapshot": False,
        }
        for moment, price in history.points
    ]


def _market(question: QuestionHistory) -> dict[str, Any]:
    return {
        "id": question.market_id,
        "question": question.question,
        "yesShares": question.yes_shares,
        "noShares": question.no_shares,
        "liquidity": question.yes_shares + question.no_shares,
        "resolved": True,
        "resolution": question.resolution,
        "endDate": utc_naive(question.ends_at),
        "createdAt": utc_naive(question.opened_at),
        "updatedAt": utc_naive(question.ends_at),
    }


def _probabilities(question: QuestionHistory) -> list[dict[str, Any]]:
    return [
        {
            "id": snowflake(f"{question.market_id}/{moment.astimezone(UTC).isoformat()}"),
            "marketId": question.market_id,
            "yesPrice": probability,
            "noPrice": 1 - probability,
            "createdAt": utc_naive(moment),
        }
        for moment, probability in question.points
    ]


def _insert(connection: psycopg.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(map(sql.Placeholder, columns)),
    )
    with connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def _insert_same(connection: psycopg.Connection, table: sa.Table, told_by: str, rows: list[dict[str, Any]]) -> None:
    """INSERT rows; where one is there already, its column `told_by` must hold the same."""
    _insert(connection, table, rows)
    query = sql.SQL("SELECT id, {} FROM {} WHERE id = ANY(%s)").format(
        sql.Identifier(told_by), sql.Identifier(table.name)
    )
    there = dict(connection.execute(query, ([row["id"] for row in rows],)).fetchall())
    for row in rows:
        if there.get(row["id"]) != row[told_by]:
            hour = row.get("timestamp") or row["createdAt"]
            raise RecordingError(
                f"The hour of {hour:%Y-%m-%dT%H:%M} already holds another simulated market ({table.name} {row['id']}: "
                f"{there.get(row['id'])!r}, not {row[told_by]!r}). Play it with the seed it was played with, take "
                "other windows, or name an empty database."
            )
