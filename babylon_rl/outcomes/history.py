"""Prices within hours, and when questions were resolved: what was known at a moment, and what only after it.

A table that is missing, lacks a column or may not be read holds nothing, as in `sources`. Times are epoch milliseconds.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg
from psycopg import sql

from babylon_rl.outcomes.sources import readable
from babylon_rl.windows import WINDOW_LENGTH, neighbours, parse_window_id, window_of

MOST_WINDOWS = 24  # of one query


class Path(NamedTuple):
    """Prices of an instrument, oldest first. `name`: a ticker's; a question's is its id."""

    name: str
    moments: Sequence[int]
    prices: Sequence[float]


class Question(NamedTuple):
    """A question, and since when all the world knows how it ended; None: it does not yet."""

    text: str
    public_since: int | None


_POINTS = sql.SQL("""
    SELECT o.id, o.name, (extract(epoch FROM p.{at}) * 1000)::bigint, p.{price}::float8
    FROM ({owners}) o
    CROSS JOIN LATERAL (
        SELECT {at}, {price}, id FROM {prices} p
        WHERE p.{owner} = o.id AND p.{at} >= %(first)s AND p.{at} < %(end)s
    ) p
    WHERE p.{price} > '-Infinity' AND p.{price} < 'Infinity'
    ORDER BY o.id, p.{at}, p.id
""")
_SOURCES = (
    ("StockPrice", "organizationId", "timestamp", "price", "Organization", "coalesce(name, id)"),
    ("PredictionPriceHistory", "marketId", "createdAt", "yesPrice", "Market", "id"),
)
# The last change of a resolved question may be its resolution; an hour after its end it is history.
_QUESTIONS = """
    SELECT id, question,
           CASE WHEN resolved AND resolution IS NOT NULL AND isfinite("updatedAt") AND isfinite("endDate")
                THEN (extract(epoch FROM least("updatedAt", "endDate" + interval '1 hour')) * 1000)::bigint END
    FROM "Market" WHERE id = ANY(%s)
"""


class Histories:
    """Prices of the windows of a range, read for some neighbouring windows at a time."""

    def __init__(self, connection: psycopg.Connection, window_ids: Iterable[str]) -> None:
        self._connection, self._tables = connection, readable(connection)
        self._spans = neighbours(window_ids, MOST_WINDOWS)
        self._read: tuple[str, str] | None = None
        self._paths: dict[str, list[Path]] = {}

    def paths(self, window_id: str) -> list[Path]:
        """Prices within the window, a path an instrument; an instrument without a price in it has none."""
        span = next((one for one in self._spans if one[0] <= window_id <= one[1]), (window_id, window_id))
        if span != self._read:
            self._read, self._paths = span, {}
            for source in _SOURCES:
                if source[0] in self._tables:
                    self._add(source, span)
        return self._paths.get(window_id, [])

    def questions(self, market_ids: Sequence[str]) -> dict[str, Question]:
        """Of those of the questions that there are: text, and since when their outcome is public."""
        if "Market" not in self._tables or not market_ids:
            return {}
        rows = self._connection.execute(_QUESTIONS, (list(market_ids),))
        return {market_id: Question(text or "", since) for market_id, text, since in rows}

    def _add(self, source: tuple[str, ...], span: tuple[str, str]) -> None:
        prices, owner, at, price, owners, name = source
        listed = sql.SQL("SELECT id, {} AS name FROM {}").format(sql.SQL(name), sql.Identifier(owners))
        if owners not in self._tables:
            listed = sql.SQL(
                "SELECT DISTINCT {owner} AS id, {owner} AS name FROM {prices} "
                "WHERE {owner} IS NOT NULL AND {at} >= %(first)s AND {at} < %(end)s"
            ).format(owner=sql.Identifier(owner), prices=sql.Identifier(prices), at=sql.Identifier(at))
        query = _POINTS.format(
            owners=listed,
            prices=sql.Identifier(prices),
            owner=sql.Identifier(owner),
            at=sql.Identifier(at),
            price=sql.Identifier(price),
        )
        first, end = parse_window_id(span[0]), parse_window_id(span[1]) + WINDOW_LENGTH
        hours = {"first": first.replace(tzinfo=None), "end": end.replace(tzinfo=None)}
        found: dict[tuple[str, str], tuple[str, list[int], list[float]]] = {}
        for owner_id, called, moment, value in self._connection.execute(query, hours):
            _, moments, values = found.setdefault((_window_at(moment), owner_id), (called, [], []))
            moments.append(moment)
            values.append(value)
        for (window_id, _), path in found.items():
            self._paths.setdefault(window_id, []).append(Path(*path))


def _window_at(milliseconds: int) -> str:
    return window_of(datetime.fromtimestamp(milliseconds / 1000, UTC))
