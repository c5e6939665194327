"""The recorder: writes runs from a thread of its own, so that no agent waits for the database or fails by it.

Runs handed over together are written together or not at all. What cannot be written goes to the spool, one JSON line
for each hand-over, and is counted; `replay_spool` writes it later.
"""

import atexit
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from babylon_rl.database.application_tables import llm_call_logs, trajectories
from babylon_rl.database.bulk import DIALECT
from babylon_rl.database.connect import Database
from babylon_rl.database.tables import recorded_calls
from babylon_rl.errors import RecordingError
from babylon_rl.recording.records import RecordedCall, Run, Trajectory
from babylon_rl.recording.rows import llm_call_rows, recorded_call_row, trajectory_row
from babylon_rl.recording.verbatim import verbatim_json

log = logging.getLogger(__name__)

# After a connection failed, hand-overs are spooled at once for this long instead of waiting for another failure.
PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class RecorderReport:
    """What became of the trajectories handed over.

    `known`: recorded before, so nothing was written. `lost`: neither written nor spooled. `errors`: each one once.
    """

    written: int
    known: int
    spooled: int
    lost: int
    spool_path: Path
    errors: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every trajectory is in the database."""
        return not self.spooled and not self.lost


class SpoolLine(msgspec.Struct, frozen=True):
    """One hand-over that could not be written, and why."""

    error: str
    runs: list[Run]


class Recorder:
    """Records runs in the background; usable as a context manager, which closes it."""

    def __init__(self, database: Database, spool: Path) -> None:
        """`spool`: file for what cannot be written; made, with its folder, when first needed."""
        self._database = database
        self._spool = Path(spool)
        self._queue: queue.Queue[list[Run] | None] = queue.Queue()
        self._counts = {"written": 0, "known": 0, "spooled": 0, "lost": 0}
        self._errors: list[str] = []
        self._down_until = 0.0
        self._closed = threading.Lock()
        self._report: RecorderReport | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, trajectory: Trajectory, calls: Sequence[RecordedCall]) -> None:
        """Hand over one run and return at once."""
        self.record_together([Run(trajectory, list(calls))])

    def record_together(self, runs: Sequence[Run]) -> None:
        """Hand over runs of which either all or none shall be recorded, and return at once."""
        if self._report is not None:
            raise RecordingError("This recorder is closed; make a new one to record more.")
        self._queue.put(list(runs))

    def flush(self) -> None:
        """Wait until everything handed over so far is written or spooled."""
        self._queue.join()

    def close(self) -> RecorderReport:
        """Write what is left, end the thread, and report. May be called again."""
        with self._closed:
            if self._report is None:
                self._queue.put(None)
                self._thread.join()
                self._report = RecorderReport(
                    **self._counts, spool_path=self._spool, errors=tuple(dict.fromkeys(self._errors))
                )
                atexit.unregister(self.close)
            return self._report

    def _work(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            self._write([runs for runs in batch if runs is not None])
            for _ in batch:
                self._queue.task_done()

    def _write(self, batch: list[list[Run]]) -> None:
        if not batch:
            return
        if time.monotonic() < self._down_until:
            self._put_aside(batch, "the database could not be reached a moment ago")
            return
        refused: list[tuple[list[Run], str]] = []
        written = known = 0
        try:
            with self._database.connect() as connection:
                for runs in batch:
                    try:
                        with connection.transaction():
                            new = write_runs(connection, runs)
                    except Exception as error:  # whatever one run holds, the agent and the other runs go on
                        if connection.broken:
                            raise
                        refused.append((runs, _said(error)))
                    else:
                        written += new
                        known += len(runs) - new
        except Exception as error:  # the agent goes on; the report and the spool say what happened
            self._down_until = time.monotonic() + PAUSE_SECONDS
            self._put_aside(batch, _said(error))
            return
        self._counts["written"] += written
        self._counts["known"] += known
        for runs, error in refused:
            self._put_aside([runs], error)

    def _put_aside(self, batch: list[list[Run]], error: str) -> None:
        count = sum(map(len, batch))
        self._errors.append(error)
        try:
            append_to_spool(self._spool, [SpoolLine(error, runs) for runs in batch])
        except (OSError, ValueError, msgspec.MsgspecError) as failure:
            self._counts["lost"] += count
            self._errors.append(_said(failure))
            log.error(
                "%d trajectories are lost: neither the database (%s) nor %s took them (%s)",
                count,
                error,
                self._spool,
                failure,
            )
        else:
            self._counts["spooled"] += count
            log.warning("%d trajectories went to %s instead of the database: %s", count, self._spool, error)


def write_runs(connection: psycopg.Connection, runs: Sequence[Run]) -> int:
    """INSERT runs with their calls in the caller's transaction; the number that was not there before.

    A trajectory that is there already stays as it is, and so do its calls.
    """
    now = datetime.now(UTC)
    new = [
        run for run in runs if _insert(connection, trajectories, "trajectoryId", [trajectory_row(run.trajectory, now)])
    ]
    _insert(connection, llm_call_logs, "callId", [row for run in new for row in llm_call_rows(run)])
    _insert(connection, recorded_calls, "call_id", [recorded_call_row(call) for run in new for call in run.calls])
    return len(new)


def _insert(connection: psycopg.Connection, table: sa.Table, key: str, rows: list[dict]) -> int:
    """Rows inserted; those whose `key` is there already are left out."""
    if not rows:
        return 0
    statement = insert(table).on_conflict_do_nothing(index_elements=[key])
    text = str(statement.compile(dialect=DIALECT, column_keys=list(rows[0])))
    with connection.cursor() as cursor:
        cursor.executemany(text, rows)
        return cursor.rowcount


def append_to_spool(spool: Path, lines: Sequence[SpoolLine]) -> None:
    """Add lines to the spool and make sure that they are on the disk."""
    spool.parent.mkdir(parents=True, exist_ok=True)
    with spool.open("ab") as file:
        for line in lines:
            file.write(_spool_text(line) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _spool_text(line: SpoolLine) -> bytes:
    try:
        return msgspec.json.encode(line)
    except UnicodeEncodeError:  # a model can write half a surrogate pair, which is no UTF-8
        return verbatim_json(msgspec.to_builtins(line)).encode()


def _spooled(text: bytes) -> SpoolLine:
    try:
        return msgspec.json.decode(text, type=SpoolLine)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        try:
            return msgspec.convert(json.loads(text), SpoolLine)  # half a surrogate pair, as an escape
        except ValueError:
            raise error from None


def replay_spool(database: Database, spool: Path) -> RecorderReport:
    """Write what the spool holds to the database; lines that still cannot be written stay in it.

    RecordingError where a line cannot be read; nothing is written then.
    """
    if not spool.exists():
        return RecorderReport(0, 0, 0, 0, spool, ())
    lines = []
    for number, text in enumerate(spool.read_bytes().splitlines(), start=1):
        try:
            lines.append(_spooled(text))
        except msgspec.DecodeError as error:
            raise RecordingError(
                f"Line {number} of {spool} cannot be read ({error}); mend or remove it, and replay again."
            ) from None
    written = known = 0
    left: list[SpoolLine] = []
    with database.connect() as connection:
        for line in lines:
            try:
                with connection.transaction():
                    new = write_runs(connection, line.runs)
            except psycopg.Error as error:
                left.append(SpoolLine(_said(error), line.runs))
            else:
                written += new
                known += len(line.runs) - new
    rest = spool.with_suffix(spool.suffix + ".rest")
    rest.unlink(missing_ok=True)
    if left:
        append_to_spool(rest, left)
        rest.replace(spool)
    else:
        spool.unlink()
    spooled = sum(len(line.runs) for line in left)
    return RecorderReport(written, known, spooled, 0, spool, tuple(dict.fromkeys(line.error for line in left)))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no detail'])[0]}"
