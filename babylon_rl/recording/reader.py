"""The reader: the recorded rows of a window, decoded; each row is used or rejected with a reason.

The database is taken as it is: JSON in TEXT is decoded here and never in SQL, where one bad escape would fail a query.
What is small is read first (`catalog`); texts come in pieces bounded by bytes, and each row's are let go before the
next piece is read unless the caller keeps them.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import psycopg
import sqlalchemy as sa

from babylon_rl.database.application_tables import trajectories
from babylon_rl.database.bulk import compiled, read_frame, stream_rows
from babylon_rl.database.connect import Recordings
from babylon_rl.errors import RecordingError
from babylon_rl.recording.calls import read_calls
from babylon_rl.recording.catalog import Elsewhere, named_elsewhere, window_entries
from babylon_rl.recording.decoding import Refusal, decode_steps
from babylon_rl.recording.row_reader import RowReader, finite
from babylon_rl.recording.window import RecordedWindow, Rejected, UsableTrajectory, window_revision
from babylon_rl.windows import parse_window_id

__all__ = [
    "RangeReader",
    "list_windows",
    "read_calls",
    "read_evaluation",
    "read_window",
    "read_windows",
    "whole_windows",
]

CHUNK = 500  # windows that one scan looks for
HOUR = 'YYYY-MM-DD"T"HH24:00'  # window id of a time, in PostgreSQL


class RangeReader:
    """Reads windows of a range one by one; rows that do not name their window are looked for once a chunk of them.

    The application has no index on its times, so each look is a scan of its table. `used`: rows that training used are
    read as they were before.
    """

    def __init__(self, recordings: Recordings, window_ids: Sequence[str], *, used: bool = False) -> None:
        self.recordings = recordings
        wanted = sorted(set(window_ids))
        for window_id in wanted:
            parse_window_id(window_id)
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        self._chunks = {window_id: chunk for chunk in chunks for window_id in chunk}
        self._misnamed: dict[str, list[str]] = {}
        self._rows = RowReader(recordings, used=used)
        self.without_window: dict[str, Elsewhere] = {}

    def read(self, window_id: str) -> RecordedWindow:
        """As `read_window`, for a window of the range."""
        return _whole(window_id, list(self.stream(window_id)))

    def brief(self, window_id: str) -> RecordedWindow:
        """The window with trajectories that have left their steps and calls behind."""
        return _whole(window_id, [row.brief() if _usable(row) else row for row in self.stream(window_id)])

    def trainable(self, window_id: str) -> RecordedWindow:
        """The window with the steps and calls of those trajectories alone that may be trained on."""
        rows = self.stream(window_id)
        return _whole(window_id, [row.brief() if _usable(row) and not _member(row) else row for row in rows])

    def stream(self, window_id: str, *, texts: bool = True) -> Iterator[UsableTrajectory | Rejected]:
        """Each row of the window, in any order; a piece of them is in memory at a time.

        `texts` False: for who looks neither at what calls say nor at whether a run may be trained on.
        """
        entries = window_entries(self.recordings, window_id, self.misnamed(window_id))
        yield from self._rows.read(window_id, entries, texts=texts)

    def misnamed(self, window_id: str) -> list[str]:
        """Trajectories that ended in the window and name another or none."""
        if window_id not in self._misnamed:
            chunk = self._chunks[window_id]
            # What an earlier chunk found is done with; a range may be years long.
            self._misnamed = {one: [] for one in chunk}
            for row in named_elsewhere(self.recordings, chunk):
                own = row.attribution.window_id
                if own is None:
                    self.without_window[row.trajectory_id] = row
                elif own in self._misnamed:
                    self._misnamed[own].append(row.trajectory_id)
        return self._misnamed[window_id]


def read_window(
    recordings: Recordings, window_id: str, misnamed: Sequence[str] | None = None, *, texts: bool = True
) -> RecordedWindow:
    """Everything recorded in a window, ordered by trajectory id. WindowIdError for a text that is no window id.

    `misnamed`: ids of the trajectories that ended in it and name another window or none, from a caller who knows them;
    otherwise the whole table is searched for them. `texts` False: trajectories leave their steps and calls behind.
    """
    reader = RangeReader(recordings, [window_id])
    if misnamed is not None:
        reader._misnamed = {window_id: list(misnamed)}
    return reader.read(window_id) if texts else reader.brief(window_id)


def read_windows(recordings: Recordings, window_ids: Sequence[str]) -> Iterator[RecordedWindow]:
    """The windows, one after the other in the order given; one window's recordings are in memory at a time."""
    return map(RangeReader(recordings, window_ids).read, window_ids)


def _whole(window_id: str, rows: list[UsableTrajectory | Rejected]) -> RecordedWindow:
    rows.sort(key=lambda row: row.trajectory_id)
    usable = [row for row in rows if isinstance(row, UsableTrajectory)]
    rejected = [row for row in rows if isinstance(row, Rejected)]
    return RecordedWindow(window_id, usable, rejected, window_revision(rows))


def _usable(row: UsableTrajectory | Rejected) -> bool:
    return isinstance(row, UsableTrajectory)


def _member(row: UsableTrajectory) -> bool:
    return row.not_trainable is None and row.provenance != "no_text"


def list_windows(connection: psycopg.Connection) -> pd.DataFrame:
    """Windows with recordings: window_id, recorded (rows for training), agents, evaluation (rows), by window id."""
    hour = sa.func.to_char(trajectories.c.endTime, HOUR).label("window_id")
    training = trajectories.c.isEvaluation.is_(False)
    statement = (
        sa.select(
            hour,
            sa.func.count().filter(training).label("recorded"),
            sa.func.count(trajectories.c.agentId.distinct()).filter(training).label("agents"),
            sa.func.count().filter(~training).label("evaluation"),
        )
        .where(sa.func.isfinite(trajectories.c.endTime))
        .group_by(hour)
        .order_by(hour)
    )
    return read_frame(connection, statement)


def read_evaluation(connection: psycopg.Connection, window_ids: Sequence[str], split: str) -> pd.DataFrame:
    """Runs recorded for an evaluation: window_id, arm, agent_id, pnl and capital (dollars), valid, by those three.

    `valid`: every action of the run was one. RecordingError where a run cannot be read: a comparison with a hole in
    it would not be paired.
    """
    columns = ("window_id", "arm", "agent_id", "pnl", "capital", "valid")
    statement = (
        sa.select(*(trajectories.c[name] for name in ("windowId", "batchId", "agentId", "finalPnL", "stepsJson")))
        .where(
            trajectories.c.windowId == sa.any_(sa.literal(list(window_ids), sa.ARRAY(sa.Text))),
            trajectories.c.isEvaluation,
            sa.func.split_part(trajectories.c.batchId, ":", 1) == split,
        )
        .order_by(trajectories.c.windowId, trajectories.c.batchId, trajectories.c.agentId)
    )
    rows = []
    for window_id, batch_id, agent_id, pnl, text in stream_rows(connection, statement):
        try:
            steps = decode_steps(text).steps
        except Refusal as refusal:
            raise RecordingError(
                f"{agent_id}'s run of {batch_id} in {window_id} cannot be read ({refusal.detail}). "
                "Delete that row from trajectories and play the evaluation again."
            ) from None
        capital = finite(steps[0].environment_state.get("agentBalance"))
        valid = all(step.action.success for step in steps)
        rows.append((window_id, batch_id.split(":", 1)[1], agent_id, pnl, capital, valid))
    return pd.DataFrame(rows, columns=columns)


def whole_windows(
    connection: psycopg.Connection, window_ids: Sequence[str], agents: int, batch_id: str | None = None
) -> set[str]:
    """Windows that hold runs of at least `agents` agents: of the evaluation `batch_id`, or else for training."""
    mine = (
        trajectories.c.isEvaluation.is_(False)
        if batch_id is None
        else sa.and_(trajectories.c.isEvaluation, trajectories.c.batchId == batch_id)
    )
    statement = (
        sa.select(trajectories.c.windowId)
        .where(trajectories.c.windowId == sa.any_(sa.literal(list(window_ids), sa.ARRAY(sa.Text))), mine)
        .group_by(trajectories.c.windowId)
        .having(sa.func.count(trajectories.c.agentId.distinct()) >= agents)
    )
    return {window_id for (window_id,) in connection.execute(*compiled(statement))}
