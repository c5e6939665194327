"""Ground truth of a window from the application's price history: where each instrument stood at the hour's edges.

A window is half-open: a price stamped with the first moment of the next hour belongs to that hour. What an agent's own
positions say about prices is not used.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg

from babylon_rl.pricing import Cpmm
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

COLUMNS = "window_id instrument kind question open close change outcome settled source revision".split()

# Only what was traded in the hour is listed; a price from before it serves as the opening.
_TICKERS = """
    SELECT o.name, opening.price, opening.at, closing.price, closing.at
    FROM "Organization" o
    CROSS JOIN LATERAL (
        SELECT price, "timestamp" AS at FROM "StockPrice" p
        WHERE p."organizationId" = o.id AND p."timestamp" >= %(start)s AND p."timestamp" < %(end)s
        ORDER BY p."timestamp" DESC, p.id DESC LIMIT 1
    ) closing
    LEFT JOIN LATERAL (
        SELECT price, "timestamp" AS at FROM "StockPrice" p
        WHERE p."organizationId" = o.id AND p."timestamp" <= %(start)s
        ORDER BY p."timestamp" DESC, p.id DESC LIMIT 1
    ) opening ON true
    ORDER BY o.name, o.id
"""
_QUESTIONS = """
    SELECT m.id, m.question, m."yesShares", m."noShares", m.resolved, m.resolution, m."endDate",
           opening.price, closing.price
    FROM "Market" m
    LEFT JOIN LATERAL (
        SELECT "yesPrice" AS price FROM "PredictionPriceHistory" h
        WHERE h."marketId" = m.id AND h."createdAt" >= %(start)s AND h."createdAt" < %(end)s
        ORDER BY h."createdAt" DESC, h.id DESC LIMIT 1
    ) closing ON true
    LEFT JOIN LATERAL (
        SELECT "yesPrice" AS price FROM "PredictionPriceHistory" h
        WHERE h."marketId" = m.id AND h."createdAt" <= %(start)s
        ORDER BY h."createdAt" DESC, h.id DESC LIMIT 1
    ) opening ON true
    WHERE closing.price IS NOT NULL OR (m."endDate" > %(start)s AND m."endDate" <= %(end)s)
    ORDER BY m.id
"""

# A question that ends after the hour never settles in it, so nobody waits for that.
_AWAITED = """
    SELECT w.window_id, count(*)
    FROM unnest(%(window_ids)s::text[]) w(window_id)
    JOIN "Market" m ON m."endDate" <= w.window_id::timestamp + interval '1 hour' AND (
        m."endDate" > w.window_id::timestamp OR EXISTS (
            SELECT FROM "PredictionPriceHistory" h WHERE h."marketId" = m.id
                AND h."createdAt" >= w.window_id::timestamp
                AND h."createdAt" < w.window_id::timestamp + interval '1 hour'
        )
    )
    WHERE NOT m.resolved OR m.resolution IS NULL
    GROUP BY w.window_id
"""


def awaited_outcomes(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, int]:
    """Questions of each window that ended by its end and are not resolved; windows without any are not named."""
    return dict(connection.execute(_AWAITED, {"window_ids": list(window_ids)}).fetchall())


def outcomes_of(connection: psycopg.Connection, window_ids: Sequence[str], now: datetime | None = None) -> pd.DataFrame:
    """What the market did in each window: rows of table `market_outcomes`, tickers first, none for a quiet window.

    `open` is the last price at or before the hour's start, `close` the last before its end (dollars; for a question
    the probability of YES). Unknown values are null, never guessed. A ticker is settled once the hour is over (by
    `now`, else the clock), a question once it resolved; a resolution that is not known is no NO. `revision` is the
    digest of the window's rows.
    """
    rows = [row for window_id in dict.fromkeys(window_ids) for row in window_outcomes(connection, window_id, now)]
    return pd.DataFrame(rows, columns=COLUMNS)


def window_outcomes(
    connection: psycopg.Connection, window_id: str, now: datetime | None = None
) -> list[dict[str, Any]]:
    """The rows of one window, as `outcomes_of` says."""
    now = now or datetime.now(UTC)
    start = parse_window_id(window_id)
    over = now >= start + WINDOW_LENGTH
    naive = start.replace(tzinfo=None)
    edges = {"start": naive, "end": naive + WINDOW_LENGTH}
    rows = [_ticker(window_id, naive, over, *found) for found in connection.execute(_TICKERS, edges)]
    rows += [_question(window_id, edges["end"], over, *found) for found in connection.execute(_QUESTIONS, edges)]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return [{**row, "revision": digest} for row in rows]


def _ticker(
    window_id: str,
    start: datetime,
    over: bool,
    name: str,
    first: float | None,
    first_at: datetime | None,
    last: float,
    _last_at: datetime,
) -> dict[str, Any]:
    usable = first is not None and math.isfinite(first) and first > 0 and math.isfinite(last)
    change = last / first - 1 if usable else None
    source = "StockPrice"
    if first_at is None:
        source += ", no price at the opening"
    elif start - first_at > timedelta(hours=1):
        source += f", opening price of {first_at:%Y-%m-%dT%H:%M}"
    return {
        "window_id": window_id,
        "instrument": name,
        "kind": "ticker",
        "question": None,
        "open": first if usable else None,
        "close": last if math.isfinite(last) else None,
        "change": change,
        "outcome": None if change is None else "up" if change > 0 else "down" if change < 0 else "flat",
        "settled": over,
        "source": source,
    }


def _question(
    window_id: str,
    end: datetime,
    over: bool,
    market_id: str,
    text: str,
    yes_shares: Any,
    no_shares: Any,
    resolved: bool,
    resolution: bool | None,
    end_date: datetime,
    first: float | None,
    last: float | None,
) -> dict[str, Any]:
    source = "PredictionPriceHistory"
    if last is None and yes_shares > 0 and no_shares > 0:
        # The maker as it stands now, which need not be how it stood in the hour: the source says so.
        last, source = Cpmm(float(yes_shares), float(no_shares)).probability, "Market, its maker's present shares"
    elif last is None:
        source = "Market, no price known"
    # A resolution is this hour's truth from the hour in which the market ended on.
    known = resolved and resolution is not None and end_date <= end
    return {
        "window_id": window_id,
        "instrument": market_id,
        "kind": "question",
        "question": text,
        "open": first,
        "close": last,
        "change": None if first is None or last is None else last - first,
        "outcome": ("YES" if resolution else "NO") if known else None,
        "settled": over and known,
        "source": source,
    }
