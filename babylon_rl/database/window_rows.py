"""Rows of several windows, each computed by itself: one that fails leaves the others' work alone and is told.

The open failures of an asset are rows of `window_failures`; a later asset waits for the windows that stand there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pandas as pd
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import (
    EncodedWindows,
    Replaced,
    UnfitWindow,
    encode_windows,
    replace_encoded,
    replace_windows,
)
from babylon_rl.database.kept import KeptFrames, one_frame
from babylon_rl.database.tables import SCHEMA, metadata, window_failures
from babylon_rl.errors import DatabaseError, SettingsError
from babylon_rl.windows import parse_window_id

# What ails the whole run and not one window: the next window would fail the same way.
OF_THE_WHOLE = (DatabaseError, SettingsError, psycopg.Error, sa.exc.SQLAlchemyError, MemoryError, OSError)

# Type of the error of a window that was left out because an earlier asset failed there.
WAITS = "Waits"

Made = TypeVar("Made")


@dataclass(frozen=True)
class WindowError:
    """Why a window was not computed: the error's type and its message."""

    error: str
    detail: str

    @classmethod
    def of(cls, error: Exception) -> "WindowError":
        """The error as a person reads it; an error without a message is told by its type."""
        return cls(type(error).__name__, str(error) or type(error).__name__)


@dataclass(frozen=True)
class WindowRows:
    """Rows of the windows that were computed, and why the others of `window_ids` were not.

    `made`: the rows, and perhaps some of windows that failed later. `beside`: rows of the same windows for other
    tables, by the table's name; they are written in the same transaction. `also`: what else is written in that
    transaction. `encoded`: what `encode_rows` made of all rows.
    """

    made: pd.DataFrame | KeptFrames
    window_ids: tuple[str, ...]
    failed: Mapping[str, WindowError] = field(default_factory=dict)
    beside: Mapping[str, pd.DataFrame | KeptFrames] = field(default_factory=dict)
    also: Sequence[Callable[[psycopg.Connection], object]] = ()
    encoded: tuple[EncodedWindows, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def computed(self) -> list[str]:
        """Windows whose rows are in the frame, or that have none."""
        return [window_id for window_id in self.window_ids if window_id not in self.failed]

    @property
    def frames(self) -> Iterator[pd.DataFrame]:
        """The rows of the computed windows, each window's in one frame; few frames are in memory at a time."""
        return _without(self.made, self.failed)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows of the computed windows at once."""
        return one_frame(list(self.frames), list(self.made.columns))

    @property
    def count(self) -> int:
        """Number of rows of the computed windows."""
        if isinstance(self.made, KeptFrames):
            return sum(rows for window_id, rows in self.made.rows.items() if window_id not in self.failed)
        return sum(map(len, self.frames))


def each_window(
    window_ids: Sequence[str], compute: Callable[[str], Made], waiting: Mapping[str, WindowError] | None = None
) -> tuple[list[Made], dict[str, WindowError]]:
    """What `compute` makes of each window, in order, and the windows for which it raised; `waiting` are left out.

    WindowIdError for a text that is no window id; errors that concern the whole run are raised.
    """
    made: list[Made] = []
    failed = {window_id: error for window_id, error in (waiting or {}).items() if window_id in set(window_ids)}
    for window_id in window_ids:
        parse_window_id(window_id)
        if window_id in failed:
            continue
        try:
            made.append(compute(window_id))
        except OF_THE_WHOLE:
            raise
        except Exception as error:
            failed[window_id] = WindowError.of(error)
    return made, failed


def encode_rows(table: sa.Table, rows: WindowRows) -> WindowRows:
    """The rows with what is written of them; a window with a value that does not fit its column fails by itself."""
    encoded = [encode_windows(one, rows.computed, frames) for one, frames in _tables(table, rows)]
    unfit = {w: WindowError(UnfitWindow.__name__, why) for one in encoded for w, why in one.unfit.items()}
    if not unfit:
        return dataclasses.replace(rows, encoded=tuple(encoded))
    return dataclasses.replace(
        rows,
        failed={**rows.failed, **unfit},
        encoded=tuple(one.without(unfit) for one in encoded),
    )


def write_rows(connection: psycopg.Connection, table: sa.Table, rows: WindowRows) -> Replaced:
    """Make the rows the current ones of `table` and of the tables beside it, and keep which windows failed.

    All within the caller's transaction: whoever reads sees all of it or nothing. What was done to `table` is returned.
    """
    if rows.encoded is not None:
        done = {one.table.name: replace_encoded(connection, one) for one in rows.encoded}
    else:
        done = {one.name: replace_windows(connection, one, rows.computed, f) for one, f in _tables(table, rows)}
    for write in rows.also:
        write(connection)
    book_windows(connection, table.name, rows.computed, rows.failed)
    return done[table.name]


def _tables(table: sa.Table, rows: WindowRows) -> list[tuple[sa.Table, Iterator[pd.DataFrame]]]:
    """The tables and their rows, in one order for all writers, so that none waits in a circle."""
    made = {table.name: rows.made, **rows.beside}
    return [(metadata.tables[f"{SCHEMA}.{name}"], _without(made[name], rows.failed)) for name in sorted(made)]


def _without(made: pd.DataFrame | KeptFrames, failed: Mapping[str, WindowError]) -> Iterator[pd.DataFrame]:
    """Frames of the rows of other windows than the failed ones."""
    for frame in [made] if isinstance(made, pd.DataFrame) else made:
        gone = frame["window_id"].isin(failed) if failed and "window_id" in frame else None
        yield frame if gone is None or not gone.any() else frame[~gone].reset_index(drop=True)


def book_windows(
    connection: psycopg.Connection, asset: str, computed: Sequence[str], failed: Mapping[str, WindowError]
) -> None:
    """Keep the failures, one open a window, and close those of computed windows, within the caller's transaction."""
    connection.execute(
        "UPDATE babylon_rl.window_failures SET resolved_at = clock_timestamp() "
        "WHERE asset = %s AND window_id = ANY(%s) AND resolved_at IS NULL",
        (asset, list(computed)),
    )
    if failed:
        ids = sorted(failed)
        connection.execute(
            """INSERT INTO babylon_rl.window_failures (asset, window_id, error, detail)
               SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[])
               ON CONFLICT (asset, window_id) WHERE resolved_at IS NULL
               DO UPDATE SET error = EXCLUDED.error, detail = EXCLUDED.detail, failed_at = clock_timestamp()""",
            (asset, ids, [failed[w].error for w in ids], [_storable(failed[w].detail) for w in ids]),
        )


def _storable(text: str) -> str:
    """A message may quote a recording: PostgreSQL takes neither NUL nor half a surrogate pair."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def open_failures(
    connection: psycopg.Connection, assets: Sequence[str], window_ids: Sequence[str] | None = None
) -> pd.DataFrame:
    """Failures that are not mended: asset, window_id, error, detail, failed_at, by window; of all windows or these."""
    columns = window_failures.c
    statement = (
        sa.select(columns.asset, columns.window_id, columns.error, columns.detail, columns.failed_at)
        .where(columns.resolved_at.is_(None), columns.asset == sa.any_(sa.literal(list(assets), ARRAY(sa.Text))))
        .order_by(columns.window_id, columns.failure_id)
    )
    if window_ids is not None:
        statement = statement.where(columns.window_id == sa.any_(sa.literal(list(window_ids), ARRAY(sa.Text))))
    return read_frame(connection, statement)


def waiting_for(
    connection: psycopg.Connection, assets: Sequence[str], window_ids: Sequence[str]
) -> dict[str, WindowError]:
    """Windows in which one of the assets failed and is not mended: what is stored there is not what it should be."""
    waiting: dict[str, WindowError] = {}
    for row in open_failures(connection, assets, window_ids).itertuples():
        waiting.setdefault(
            row.window_id,
            WindowError(
                WAITS,
                f"waits for {row.asset} of {row.window_id} ({row.error}: {row.detail}). Mend that and materialize "
                f"{row.asset} and what comes after it for the window.",
            ),
        )
    return waiting
