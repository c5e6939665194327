"""Outcomes of a range of windows, each by itself, and which of them may still change."""

from collections.abc import Sequence
from datetime import datetime

import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.database.window_rows import WindowRows, each_window
from babylon_rl.outcomes.outcomes import COLUMNS, window_outcomes


def outcome_windows(database: Database, window_ids: Sequence[str], now: datetime | None = None) -> WindowRows:
    """Rows of `market_outcomes`; `now` as in `outcomes_of`."""
    with database.connect_application() as connection:
        made, failed = each_window(window_ids, lambda window_id: window_outcomes(connection, window_id, now))
    frame = pd.DataFrame([row for rows in made for row in rows], columns=COLUMNS)
    return WindowRows(frame, tuple(window_ids), failed)


def provisional(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Outcomes that are not settled: window_id, instrument, kind, close, source."""
    statement = current_rows(market_outcomes, window_ids).where(market_outcomes.c.settled.is_(False))
    return read_frame(connection, statement)[["window_id", "instrument", "kind", "close", "source"]]
