"""Ground truth of a window: where each instrument stood at the hour's edges, from the first source that knows it.

A window is half-open: a price stamped with the first moment of the next hour belongs to that hour. The order of the
sources is that of the functions below; each row says its own. Unknown values are null, never guessed.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg

from babylon_rl.outcomes.sources import MOST_WINDOWS, Dealt, Edges, Facts, Frozen, Market, facts_of, readable
from babylon_rl.pricing import Cpmm
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

COLUMNS = "window_id instrument kind question open close change outcome settled source revision".split()

HISTORIES = ("StockPrice", "PredictionPriceHistory")
# What positions and makers show changes as they are traded on: a later look may no longer tell it.
FLEETING = ("PerpPosition", "Position", "Market, its maker's shares unchanged")

Row = dict[str, Any]

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
_AWAITED_WITHOUT_HISTORY = """
    SELECT w.window_id, count(*)
    FROM unnest(%(window_ids)s::text[]) w(window_id)
    JOIN "Market" m ON m."endDate" > w.window_id::timestamp
        AND m."endDate" <= w.window_id::timestamp + interval '1 hour'
    WHERE NOT m.resolved OR m.resolution IS NULL
    GROUP BY w.window_id
"""


def awaited_outcomes(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, int]:
    """Questions of each window that ended by its end and are not resolved; windows without any are not named."""
    tables = readable(connection)
    if "Market" not in tables:
        return {}
    query = _AWAITED if "PredictionPriceHistory" in tables else _AWAITED_WITHOUT_HISTORY
    return dict(connection.execute(query, {"window_ids": list(window_ids)}).fetchall())


def outcomes_of(connection: psycopg.Connection, window_ids: Sequence[str], now: datetime | None = None) -> pd.DataFrame:
    """What the market did in each window: rows of table `market_outcomes`, tickers first, none for a quiet window.

    `open` is the last price at or before the hour's start, `close` the last before its end (dollars; for a question
    the probability of YES); where no price history tells them, what `source` says. A ticker is settled once the hour
    is over (by `now`, else the clock), a question once it resolved, in whichever hour; a resolution that is not known
    is no NO. `revision` is the digest of the window's rows.
    """
    wanted = list(dict.fromkeys(window_ids))
    tables = readable(connection)
    rows: list[Row] = []
    for at in range(0, len(wanted), MOST_WINDOWS):
        part = wanted[at : at + MOST_WINDOWS]
        facts = facts_of(connection, part, tables)
        rows += [row for window_id in part for row in window_outcomes(facts, window_id, now)]
    return pd.DataFrame(rows, columns=COLUMNS)


def window_outcomes(facts: Facts, window_id: str, now: datetime | None = None) -> list[Row]:
    """The rows of one window, as `outcomes_of` says."""
    start = parse_window_id(window_id)
    over = is_over(window_id, now)
    naive = start.replace(tzinfo=None)
    rows = [*_tickers(facts, window_id, naive, over), *_questions(facts, window_id, over)]
    return with_revision(_each_once(rows))


def is_over(window_id: str, now: datetime | None = None) -> bool:
    """Whether the hour is over, by `now`, else the clock."""
    return (now or datetime.now(UTC)) - WINDOW_LENGTH >= parse_window_id(window_id)


def with_revision(rows: list[Row]) -> list[Row]:
    """The rows of a window with the digest of them all as `revision`."""
    told = [{name: value for name, value in row.items() if name != "revision"} for row in rows]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return [{**row, "revision": digest} for row in told]


def _each_once(rows: list[Row]) -> list[Row]:
    """The rows, an instrument's name once: a question that is called like a ticker is told apart."""
    taken: set[str] = set()
    for row in rows:
        while row["instrument"] in taken:
            row["instrument"] += f" ({row['kind']})"
        taken.add(row["instrument"])
    return rows


# --- tickers: StockPrice, then PerpPosition, then the application's market_outcomes -----------------


def _tickers(facts: Facts, window_id: str, start: datetime, over: bool) -> list[Row]:
    found: dict[str, tuple[str, Row]] = {}  # by organization; the name to sort by
    for organization, edges in facts.stock_prices.get(window_id, {}).items():
        first, last, source = _at_the_edges(edges, start)
        name = facts.organizations.get(organization, organization)
        found[organization] = name, _ticker(window_id, name, first, last, over, source)
    for organization, dealt in facts.perp_positions.get(window_id, {}).items():
        if organization not in found:
            name = facts.organizations.get(organization) or dealt.ticker or organization
            row = _ticker(window_id, name, _price(dealt.first), _price(dealt.last), over, _in_the_hour(dealt))
            found[organization] = name, row
    ids = facts.ids_by_name
    for ticker, frozen in _frozen_tickers(facts, window_id).items():
        meant = ids.get(ticker, frozenset()) | facts.aliases.get(ticker, frozenset())
        if any(organization in found for organization in meant):
            continue
        organization = next(iter(meant)) if len(meant) == 1 else ticker
        name = facts.organizations.get(organization, ticker)
        found[organization] = name, _frozen_ticker(window_id, name, frozen, start, over)
    bearers = Counter(name for name, _ in found.values())
    rows = []
    for organization, (name, row) in sorted(found.items(), key=lambda one: (one[1][0], one[0])):
        # Two organizations of one name: which of them a trade meant is not known.
        alike = len(ids.get(name, ())) > 1 or bearers[name] > 1
        rows.append(row | {"instrument": f"{name} ({organization})" if alike else name})
    return rows


def _at_the_edges(edges: Edges, start: datetime) -> tuple[float | None, float | None, str]:
    source = "StockPrice"
    if edges.opened_at is None:
        source += ", no price at the opening"
    elif start - edges.opened_at > timedelta(hours=1):
        source += f", opening price of {edges.opened_at:%Y-%m-%dT%H:%M}"
    return _price(edges.opening), _price(edges.closing), source


def _in_the_hour(dealt: Dealt) -> str:
    if dealt.first_at is None:
        return "PerpPosition, none was opened in the hour, present price as of the hour"
    later = "the last price that one shows in the hour" if dealt.last is not None else "no later price in the hour"
    return f"PerpPosition, price of the first opened, {dealt.first_at:%H:%M}, and {later}"


def _frozen_tickers(facts: Facts, window_id: str) -> dict[str, Frozen]:
    """The last written of each ticker."""
    return {row.ticker: row for row in facts.frozen.get(window_id, ()) if row.ticker}


def _frozen_ticker(window_id: str, name: str, frozen: Frozen, start: datetime, over: bool) -> Row:
    written = f"{frozen.written_at:%Y-%m-%dT%H:%M}"
    if frozen.written_at < start + WINDOW_LENGTH:
        last, source = None, f"market_outcomes of the application, written before the hour was over, {written}"
    else:
        last, source = _price(frozen.end), f"market_outcomes of the application, end price as written {written}"
    return _ticker(window_id, name, _price(frozen.start), last, over, source)


def _price(value: float | None) -> float | None:
    """A price in dollars; one that none can be is unknown."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _ticker(window_id: str, name: str, first: float | None, last: float | None, over: bool, source: str) -> Row:
    change = None if first is None or last is None else last / first - 1
    if change is not None and not math.isfinite(change):
        change = None
    return {
        "window_id": window_id,
        "instrument": name,
        "kind": "ticker",
        "question": None,
        "open": first,
        "close": last,
        "change": change,
        "outcome": None if change is None else "up" if change > 0 else "down" if change < 0 else "flat",
        "settled": over,
        "source": source,
    }


# --- questions: PredictionPriceHistory, Market, Position, then the application's market_outcomes ----


def _questions(facts: Facts, window_id: str, over: bool) -> list[Row]:
    frozen = {row.market_id: row for row in facts.frozen.get(window_id, ()) if row.market_id}
    known = {*facts.price_history.get(window_id, ()), *facts.positions.get(window_id, ()), *frozen}
    known |= facts.ended.get(window_id, set())
    return [_question(facts, window_id, market_id, frozen.get(market_id), over) for market_id in sorted(known)]


def _question(facts: Facts, window_id: str, market_id: str, frozen: Frozen | None, over: bool) -> Row:
    market = facts.markets.get(market_id)
    first, last, source = _probabilities(facts, window_id, market_id, frozen)
    outcome = None
    if market is not None:
        if market.resolved and market.resolution is not None:
            outcome = "YES" if market.resolution else "NO"
    elif frozen is not None and (frozen.outcome or "").strip().upper() == "YES":
        # Its NO may stand for a resolution that is not known.
        outcome, source = "YES", f"{source}; outcome by market_outcomes of the application"
    return {
        "window_id": window_id,
        "instrument": market_id,
        "kind": "question",
        "question": market.question if market else frozen.question if frozen else None,
        "open": first,
        "close": last,
        "change": None if first is None or last is None else last - first,
        "outcome": outcome,
        "settled": over and outcome is not None,
        "source": source,
    }


def _probabilities(
    facts: Facts, window_id: str, market_id: str, frozen: Frozen | None
) -> tuple[float | None, float | None, str]:
    """Probability of YES at both edges and where it comes from: the first source that knows the closing one."""
    if edges := facts.price_history.get(window_id, {}).get(market_id):
        return _probability(edges.opening), _probability(edges.closing), "PredictionPriceHistory"
    if (market := facts.markets.get(market_id)) and (made := _by_the_maker(market, window_id)):
        return None, *made
    dealt = facts.positions.get(window_id, {}).get(market_id)
    if dealt and dealt.first is not None and (dealt.last is not None or frozen is None or frozen.no_price is None):
        later = "and the last" if dealt.last is not None else "no later one is known"
        return dealt.first, dealt.last, f"Position, price paid first in the hour, {dealt.first_at:%H:%M}, {later}"
    if frozen is not None:
        # What it calls finalProbability is yes / (yes + no), which is the price of NO.
        no_price = _probability(frozen.no_price)
        yes = None if no_price is None else round(1 - no_price, 4)  # it has four digits
        said = "no price known" if yes is None else f"its NO price turned, written {frozen.written_at:%Y-%m-%dT%H:%M}"
        return None, yes, f"market_outcomes of the application, {said}"
    return None, None, "Market, no price known" if market else "Position, no price known"


def _by_the_maker(market: Market, window_id: str) -> tuple[float, str] | None:
    """Probability by the maker's shares where they are those of the hour's end."""
    end = parse_window_id(window_id).replace(tzinfo=None) + WINDOW_LENGTH
    yes, no = market.yes_shares, market.no_shares
    if not (0 < yes < math.inf and 0 < no < math.inf):
        return None
    if market.ends_at <= end:
        # Nobody trades after the end. What changed it since, such as its resolution, the source cannot tell.
        return Cpmm(yes, no).probability, "Market, its maker's present shares"
    if market.changed_at < end:
        return Cpmm(yes, no).probability, "Market, its maker's shares unchanged since the hour"
    return None


def _probability(value: float | None) -> float | None:
    return value if value is not None and 0 <= value <= 1 else None
