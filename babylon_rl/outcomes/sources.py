"""What the application's tables hold on prices and resolutions of some hours: one set of queries for all of them.

A table that is missing there, lacks a column, has one of another type or may not be read holds nothing; the next
source serves. Times are UTC without a zone, hours are half-open.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

import psycopg
from psycopg import sql

from babylon_rl.database.catalogue import catalogue_of
from babylon_rl.windows import parse_window_id, window_of

MOST_WINDOWS = 168  # of one set of queries

TABLES = (
    *("StockPrice", "Organization", "PredictionPriceHistory", "Market"),
    *("PerpPosition", "Position", "market_outcomes"),
)

Edge = Mapping[str, Mapping[str, "Edges"]]  # by window and the instrument's id in the source
Deals = Mapping[str, Mapping[str, "Dealt"]]


class Edges(NamedTuple):
    """The last price up to the hour's start, and the last before its end."""

    opened_at: datetime | None
    opening: float | None
    closing: float


class Dealt(NamedTuple):
    """The first and the last price that positions show inside the hour; the last is None where there is no later one.

    `ticker`: as the positions name it; None for a question.
    """

    first_at: datetime | None
    first: float | None
    last: float | None
    ticker: str | None = None


class Market(NamedTuple):
    """A question as it stands at the reading; times that no calendar has are clipped."""

    question: str
    yes_shares: float
    no_shares: float
    resolved: bool
    resolution: bool | None
    ends_at: datetime
    changed_at: datetime


class Frozen(NamedTuple):
    """A row of the application's own `market_outcomes`."""

    written_at: datetime
    ticker: str | None
    start: float | None
    end: float | None
    market_id: str | None
    question: str | None
    outcome: str | None
    no_price: float | None  # what it calls finalProbability


@dataclass(frozen=True)
class Facts:
    """All that is known of some hours, by source."""

    stock_prices: Edge = field(default_factory=dict)
    perp_positions: Deals = field(default_factory=dict)
    organizations: Mapping[str, str] = field(default_factory=dict)  # name by id
    aliases: Mapping[str, frozenset[str]] = field(default_factory=dict)  # ids by a ticker that is no name
    price_history: Edge = field(default_factory=dict)
    positions: Deals = field(default_factory=dict)
    markets: Mapping[str, Market] = field(default_factory=dict)
    frozen: Mapping[str, Sequence[Frozen]] = field(default_factory=dict)  # oldest first, by window

    @cached_property
    def ids_by_name(self) -> dict[str, frozenset[str]]:
        """Organizations of each name."""
        ids: dict[str, frozenset[str]] = {}
        for organization, name in self.organizations.items():
            ids[name] = ids.get(name, frozenset()) | {organization}
        return ids

    @cached_property
    def ended(self) -> dict[str, set[str]]:
        """Questions by the window by whose end they ended: one that ends on the hour ended in the hour before."""
        ended: dict[str, set[str]] = {}
        for market_id, market in self.markets.items():
            before = max(market.ends_at, datetime.min + timedelta(hours=1)) - timedelta(microseconds=1)
            ended.setdefault(window_of(before), set()).add(market_id)
        return ended


def readable(connection: psycopg.Connection) -> frozenset[str]:
    """Of `TABLES` those that are there with the columns that are read, of their types, and that our role may read."""
    catalogue = catalogue_of(connection)
    return frozenset(table for table in TABLES if catalogue.table(table).usable)


def facts_of(connection: psycopg.Connection, window_ids: Sequence[str], tables: frozenset[str]) -> Facts:
    """What the readable `tables` hold on these windows; neighbours are read fastest together."""
    if not window_ids:
        return Facts()
    ordered = sorted(set(window_ids))
    starts = [parse_window_id(window_id).replace(tzinfo=None) for window_id in ordered]
    hours = {"window_ids": ordered, "starts": starts, "first": starts[0], "last": starts[-1]}
    frozen = _frozen(connection, hours) if "market_outcomes" in tables else {}
    history = _edges(connection, hours, tables, "PredictionPriceHistory", "Market")
    positions = _dealt(connection, _POSITIONS, hours) if "Position" in tables else {}
    named = {market_id for of_window in (*history.values(), *positions.values()) for market_id in of_window}
    named |= {row.market_id for rows in frozen.values() for row in rows if row.market_id}
    query = 'SELECT id, name FROM "Organization" WHERE name IS NOT NULL'
    names = dict(connection.execute(query)) if "Organization" in tables else {}
    return Facts(
        stock_prices=_edges(connection, hours, tables, "StockPrice", "Organization"),
        perp_positions=_dealt(connection, _PERP_POSITIONS, hours) if "PerpPosition" in tables else {},
        organizations=names,
        aliases=_aliases(connection, frozen, names) if "PerpPosition" in tables else {},
        price_history=history,
        positions=positions,
        markets=_markets(connection, hours, named) if "Market" in tables else {},
        frozen=frozen,
    )


# --- prices at the hour's edges -------------------------------------------------------------------

# An instrument has candidates only between its first and its last price: few questions live at one time. Each lookup
# is one step into the index (owner, time descending).
_EDGES = sql.SQL("""
    WITH hours AS MATERIALIZED (
        SELECT window_id, start, start + interval '1 hour' AS finish
        FROM unnest(%(window_ids)s::text[], %(starts)s::timestamp[]) h(window_id, start)
    ), spans AS MATERIALIZED (
        SELECT o.id,
               (SELECT p.{at} FROM {prices} p WHERE p.{owner} = o.id AND p.{at} >= %(first)s
                ORDER BY p.{at} LIMIT 1) AS first,
               (SELECT p.{at} FROM {prices} p
                WHERE p.{owner} = o.id AND p.{at} < %(last)s::timestamp + interval '1 hour'
                ORDER BY p.{at} DESC LIMIT 1) AS last
        FROM ({owners}) o
    )
    SELECT h.window_id, s.id, opening.at, opening.price, closing.price
    FROM spans s
    JOIN hours h ON h.finish > s.first AND h.start <= s.last
    CROSS JOIN LATERAL (
        SELECT p.{price}::float8 AS price FROM {prices} p
        WHERE p.{owner} = s.id AND p.{at} >= h.start AND p.{at} < h.finish
        ORDER BY p.{at} DESC, p.id DESC LIMIT 1
    ) closing
    LEFT JOIN LATERAL (
        SELECT p.{price}::float8 AS price, p.{at} AS at FROM {prices} p
        WHERE p.{owner} = s.id AND p.{at} <= h.start AND p.{at} >= '0001-01-01'
        ORDER BY p.{at} DESC, p.id DESC LIMIT 1
    ) opening ON true
""")
_OWNERS = sql.SQL("SELECT id FROM {}")
_OWNERS_SEEN = sql.SQL(
    "SELECT DISTINCT {owner} AS id FROM {prices} "
    "WHERE {owner} IS NOT NULL AND {at} >= %(first)s AND {at} < %(last)s::timestamp + interval '1 hour'"
)
_PRICES = {
    "StockPrice": {"owner": "organizationId", "at": "timestamp", "price": "price"},
    "PredictionPriceHistory": {"owner": "marketId", "at": "createdAt", "price": "yesPrice"},
}


def _edges(
    connection: psycopg.Connection, hours: Mapping[str, object], tables: frozenset[str], prices: str, owners: str
) -> dict[str, dict[str, Edges]]:
    if prices not in tables:
        return {}
    names = {"prices": sql.Identifier(prices)}
    names |= {name: sql.Identifier(column) for name, column in _PRICES[prices].items()}
    listed = _OWNERS.format(sql.Identifier(owners)) if owners in tables else _OWNERS_SEEN.format(**names)
    found = connection.execute(_EDGES.format(**names, owners=listed), hours)
    edges: dict[str, dict[str, Edges]] = {}
    for window_id, owner, *told in found:
        edges.setdefault(window_id, {})[owner] = Edges(*told)
    return edges


# --- prices of positions --------------------------------------------------------------------------

# A position is evidence of a trade when it is opened or closed. Its present price is one of the hour only where it was
# last updated in the hour: otherwise it is a price from before or after.
_PERP_POSITIONS = """
    WITH points AS (
        SELECT coalesce("organizationId", ticker) AS owner, ticker, "openedAt" AS at, "entryPrice" AS price,
               0 AS what, id
        FROM "PerpPosition"
        WHERE "openedAt" >= %(first)s AND "openedAt" < %(last)s::timestamp + interval '1 hour'
        UNION ALL
        SELECT coalesce("organizationId", ticker), ticker, "lastUpdated", "currentPrice", 1, id FROM "PerpPosition"
        WHERE "lastUpdated" >= %(first)s AND "lastUpdated" < %(last)s::timestamp + interval '1 hour'
        UNION ALL
        SELECT coalesce("organizationId", ticker), ticker, "closedAt", NULL, 2, id FROM "PerpPosition"
        WHERE "closedAt" >= %(first)s AND "closedAt" < %(last)s::timestamp + interval '1 hour'
    ), dealt AS (
        SELECT h.window_id, p.owner, min(p.ticker) AS ticker,
               min(p.at) FILTER (WHERE what = 0) AS first_at,
               (array_agg(p.price ORDER BY p.at, p.id) FILTER (WHERE what = 0))[1] AS first,
               max(p.at) FILTER (WHERE what < 2) AS last_at,
               (array_agg(p.price ORDER BY p.at DESC, p.what DESC, p.id DESC) FILTER (WHERE what < 2))[1] AS last
        FROM points p
        JOIN unnest(%(window_ids)s::text[], %(starts)s::timestamp[]) h(window_id, start)
            ON date_trunc('hour', p.at) = h.start
        WHERE p.owner IS NOT NULL
        GROUP BY h.window_id, p.owner
        HAVING bool_or(what <> 1)
    )
    SELECT window_id, owner, first_at, first::float8,
           CASE WHEN first_at IS NULL OR last_at > first_at THEN last::float8 END, ticker FROM dealt
"""

# avgPrice is a mean over all purchases of the position: of the hour only where the position did not change after it.
_POSITIONS = """
    WITH paid AS (
        SELECT h.window_id, p."marketId" AS owner, p."createdAt" AS at, p.id,
               CASE WHEN p."avgPrice" <= 0 OR p."avgPrice" > 1 THEN NULL
                    WHEN (p."updatedAt" < h.start + interval '1 hour') IS NOT TRUE THEN NULL
                    WHEN p.side THEN p."avgPrice" WHEN NOT p.side THEN 1 - p."avgPrice" END::float8 AS price
        FROM "Position" p
        JOIN unnest(%(window_ids)s::text[], %(starts)s::timestamp[]) h(window_id, start)
            ON date_trunc('hour', p."createdAt") = h.start
        WHERE p."createdAt" >= %(first)s AND p."createdAt" < %(last)s::timestamp + interval '1 hour'
            AND p."marketId" IS NOT NULL
    ), dealt AS (
        SELECT window_id, owner, min(at) FILTER (WHERE price IS NOT NULL) AS first_at,
               (array_agg(price ORDER BY at, id) FILTER (WHERE price IS NOT NULL))[1] AS first,
               max(at) FILTER (WHERE price IS NOT NULL) AS last_at,
               (array_agg(price ORDER BY at DESC, id DESC) FILTER (WHERE price IS NOT NULL))[1] AS last
        FROM paid GROUP BY window_id, owner
    )
    SELECT window_id, owner, first_at, first, CASE WHEN last_at > first_at THEN last END FROM dealt
"""


def _dealt(connection: psycopg.Connection, query: str, hours: Mapping[str, object]) -> dict[str, dict[str, Dealt]]:
    deals: dict[str, dict[str, Dealt]] = {}
    for window_id, owner, *told in connection.execute(query, hours):
        deals.setdefault(window_id, {})[owner] = Dealt(*told)
    return deals


# --- questions, and what the application froze ----------------------------------------------------

# A time that is not known is late: the question has not ended, and its shares are not those of an hour gone by.
_MARKETS = """
    SELECT id, question, coalesce("yesShares"::float8, 'NaN'), coalesce("noShares"::float8, 'NaN'),
           resolved, resolution,
           least(greatest(coalesce("endDate", 'infinity'), '0001-01-01'), '9999-12-31'),
           least(greatest(coalesce("updatedAt", 'infinity'), '0001-01-01'), '9999-12-31')
    FROM "Market"
    WHERE id = ANY(%(named)s)
        OR ("endDate" > %(first)s AND "endDate" <= %(last)s::timestamp + interval '1 hour')
"""
_FROZEN = """
    SELECT "windowId", least(greatest("createdAt", '0001-01-01'), '9999-12-31'), "stockTicker", "startPrice"::float8,
           "endPrice"::float8, "predictionMarketId", question, outcome, "finalProbability"::float8
    FROM market_outcomes WHERE "windowId" = ANY(%(window_ids)s) ORDER BY "createdAt", id
"""


def _markets(connection: psycopg.Connection, hours: Mapping[str, object], named: Iterable[str]) -> dict[str, Market]:
    found = connection.execute(_MARKETS, {**hours, "named": sorted(named)})
    return {market_id: Market(*told) for market_id, *told in found}


def _frozen(connection: psycopg.Connection, hours: Mapping[str, object]) -> dict[str, list[Frozen]]:
    rows: dict[str, list[Frozen]] = {}
    for window_id, *told in connection.execute(_FROZEN, hours):
        rows.setdefault(window_id, []).append(Frozen(*told))
    return rows


def _aliases(
    connection: psycopg.Connection, frozen: Mapping[str, Sequence[Frozen]], names: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """Organizations of tickers that none of them has as its name, by what positions say."""
    unknown = {row.ticker for rows in frozen.values() for row in rows if row.ticker} - set(names.values())
    if not unknown:
        return {}
    query = 'SELECT DISTINCT ticker, coalesce("organizationId", ticker) FROM "PerpPosition" WHERE ticker = ANY(%s)'
    found: dict[str, frozenset[str]] = {}
    for ticker, organization in connection.execute(query, (sorted(unknown),)):
        found[ticker] = found.get(ticker, frozenset()) | {organization}
    return found
