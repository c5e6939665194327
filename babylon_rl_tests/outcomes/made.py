"""Rows of the application's tables for tests of outcomes, with what a test does not name filled in."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

WINDOW = "2025-01-15T10:00"
START = datetime(2025, 1, 15, 10)
LATER = START.replace(tzinfo=UTC) + timedelta(days=1)

# As Prisma makes it; no other part of the package reads it.
POSITION = """
    CREATE TABLE "Position" (
        id text PRIMARY KEY, "userId" text NOT NULL, "marketId" text NOT NULL, side boolean NOT NULL,
        shares numeric(18,6) NOT NULL, "avgPrice" numeric(18,6) NOT NULL,
        "createdAt" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, "updatedAt" timestamp(3) NOT NULL,
        amount numeric(18,2) NOT NULL DEFAULT 0, outcome boolean, pnl numeric(18,2), "questionId" integer,
        "resolvedAt" timestamp(3), status text NOT NULL DEFAULT 'active')
"""
FILLED: dict[str, dict[str, Any]] = {
    "Organization": {"updatedAt": START},
    "StockPrice": {},
    "PerpPosition": {"userId": "u", "side": "long", "size": 10, "leverage": 5, "organizationId": "acme"},
    "Market": {"question": "Will it?", "liquidity": 1000, "endDate": START + timedelta(days=9), "updatedAt": START},
    "PredictionPriceHistory": {"noPrice": 0.5},
    "Position": {"userId": "u", "shares": 10, "side": True},
    "market_outcomes": {"windowId": WINDOW, "createdAt": START + timedelta(hours=2)},
}
_ids = itertools.count()


def at(minutes: float) -> datetime:
    """So many minutes into the window, as the application stores times."""
    return START + timedelta(minutes=minutes)


def put(connection: psycopg.Connection, table: str, **values: Any) -> None:
    """Insert a row."""
    row = {"id": f"{table}-{next(_ids):06}", **FILLED[table], **values}
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() for _ in row),
        ),
        list(row.values()),
    )


def perp(
    connection: psycopg.Connection, opened: float, entry: float, updated: float, price: float, **more: Any
) -> None:
    """A position on ACME: opened and last updated so many minutes into the window."""
    times = {"openedAt": at(opened), "lastUpdated": at(updated)}
    put(connection, "PerpPosition", **{"ticker": "ACME", **times, "entryPrice": entry, "currentPrice": price, **more})
