"""Recorded trajectories from JSONL files: checking whole files, and importing them into our tables.

A file is streamed line by line and written in batches, each in a transaction of its own, so that an interrupted import
is repeated without harm: what is there already is known and left. What does not fit goes to `FILE.rejected` with what
is wrong. In which window a trajectory counts, the reader says; agents of imported ones need not be in the table User.
"""

import base64
import codecs
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg import sql

from babylon_rl.database import tables
from babylon_rl.database.bulk import copy_rows
from babylon_rl.database.connect import Database
from babylon_rl.errors import RecordingError
from babylon_rl.recording.checking import Checked, check_line
from babylon_rl.recording.imported_rows import Rows, imported_rows
from babylon_rl.recording.problems import Problem, moment
from babylon_rl.windows import window_of

STDIN = "-"
BATCH_LINES, BATCH_BYTES = 1000, 16_000_000
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"PK\x03\x04")  # gzip, zstd, xz, zip
MOST_TOLD = 1000  # wrong lines that a report names


class NumberedLine(NamedTuple):
    """A line of a file, counted from 1; `cut_off`: the file ends before the line does."""

    number: int
    text: bytes
    cut_off: bool


class WrongLine(NamedTuple):
    """A line that does not fit the contract."""

    line: int
    trajectory_id: str | None
    problems: list[Problem]


@dataclass
class FileReport:
    """What one file holds. `cautions`: by name, how many trajectories, and the first line numbers."""

    file: str
    trajectories: int = 0
    wrong: int = 0
    told: list[WrongLine] = field(default_factory=list)
    cautions: Counter[str] = field(default_factory=Counter)
    caution_lines: dict[str, list[int]] = field(default_factory=dict)
    written: int = 0
    known: int = 0
    rejected_path: str | None = None
    windows: set[str] = field(default_factory=set)

    def add(self, line: NumberedLine, checked: Checked) -> None:
        """Count a line that was checked."""
        self.trajectories += 1
        if checked.problems:
            self.wrong += 1
            if len(self.told) < MOST_TOLD:
                self.told.append(WrongLine(line.number, checked.trajectory_id, checked.problems))
        for caution in checked.cautions:
            self.cautions[caution] += 1
            if len(lines := self.caution_lines.setdefault(caution, [])) < 3:
                lines.append(line.number)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "file": self.file,
            "trajectories": self.trajectories,
            "wrong": self.wrong,
            "problems": [
                {"line": line, "trajectory_id": name, **problem._asdict()}
                for line, name, problems in self.told
                for problem in problems
            ],
            "cautions": {name: {"count": self.cautions[name], "lines": self.caution_lines[name]}
                         for name in sorted(self.cautions)},
        }  # fmt: skip

    def import_as_json(self) -> dict[str, Any]:
        """The report of an import as plain values."""
        return {
            **self.as_json(),
            "written": self.written,
            "known": self.known,
            "rejected": self.wrong,
            "rejected_file": self.rejected_path,
            "windows": sorted(self.windows),
        }


Advance = Callable[[int], None]


def lines_of(file: IO[bytes]) -> Iterator[NumberedLine]:
    """The lines that hold something. RecordingError where the file is no text in UTF-8 from its first bytes on."""
    for number, text in enumerate(file, start=1):
        if number == 1:
            _require_text(text)
            text = text.removeprefix(codecs.BOM_UTF8)
        if stripped := text.strip():
            yield NumberedLine(number, stripped, not text.endswith(b"\n"))


def _require_text(beginning: bytes) -> None:
    """Said once, as each of its lines would be refused for something else."""
    if beginning.startswith(COMPRESSED):
        raise RecordingError(
            "The file is compressed. Unpack it on the way: gzip -dc FILE | babylon-rl recording check - (or import)."
        )
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RecordingError("The file is in UTF-16. Write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE.")


def require_readable(names: Iterable[str]) -> None:
    """RecordingError where one of the files cannot be read; a pipe is left alone, as it is read only once."""
    for name in names:
        if name != STDIN and not Path(name).is_fifo():
            with opened(name):
                pass


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The file, or standard input for `-`. RecordingError where it cannot be read."""
    if name == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")
    except OSError as error:
        raise RecordingError(f"{name} cannot be read ({error.strerror}). Name a JSONL file, or - for input.") from None
    with file:
        yield file


def check_file(name: str, advance: Advance = lambda size: None) -> FileReport:
    """What is wrong in a file of recordings; `advance` is told the bytes of each line."""
    report = FileReport(name)
    with opened(name) as file:
        for line in lines_of(file):
            report.add(line, check_line(line.text, cut_off=line.cut_off))
            advance(len(line.text) + 1)
    return report


def import_file(
    database: Database, name: str, *, dry_run: bool = False, advance: Advance = lambda size: None
) -> FileReport:
    """Write a file's trajectories that are not recorded yet to our tables.

    Those that the application's table holds are known too. A dry run counts and writes nothing.
    """
    report = FileReport(name)
    with opened(name) as file, _Rejected(name, dry_run) as rejected:
        for batch in _batches(file):
            good: dict[str, tuple[NumberedLine, Checked]] = {}
            for line in batch:
                checked = check_line(line.text, cut_off=line.cut_off)
                report.add(line, checked)
                if checked.problems:
                    rejected.add(line, checked)
                elif checked.trajectory_id in good:
                    report.known += 1
                else:
                    good[checked.trajectory_id or ""] = (line, checked)
            _import_batch(database, good, report, rejected, dry_run)
            advance(sum(len(line.text) + 1 for line in batch))
    report.rejected_path = rejected.written_to
    return report


def _batches(file: IO[bytes]) -> Iterator[list[NumberedLine]]:
    batch, size = [], 0
    for line in lines_of(file):
        batch.append(line)
        size += len(line.text)
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _import_batch(
    database: Database,
    good: dict[str, tuple[NumberedLine, Checked]],
    report: FileReport,
    rejected: "_Rejected",
    dry_run: bool,
) -> None:
    if not good:
        return
    with database.connect() as ours:
        with database.recordings_beside(ours) as recordings:
            known = _recorded(recordings.application, "trajectories", good)
        known |= _recorded(ours, "babylon_rl.trajectories", good)
        new = {name: checked for name, (_, checked) in good.items() if name not in known}
        rows, refused = _rows(new)
        written = new.keys() - refused.keys()
        if rows and not dry_run:
            written = write_rows(ours, rows)
            missing = new.keys() - written - refused.keys()
            known |= _recorded(ours, "babylon_rl.trajectories", missing)  # by another import meanwhile
            taken = Problem("id", "the key of another recorded row", "a key of its own")
            refused |= {name: taken for name in missing - known}
    report.known += len(known)
    report.written += len(written)
    ended = (recorded.end_time for name in written if (recorded := new[name].recorded) is not None)
    report.windows |= {window_of(moment(time)) for time in ended}
    for name, problem in sorted(refused.items()):
        line, checked = good[name]
        report.wrong += 1
        report.told.append(WrongLine(line.number, name, [problem]))
        rejected.add(line, checked._replace(problems=[problem]))


def _rows(new: Mapping[str, Checked]) -> tuple[list[Rows], dict[str, Problem]]:
    """Rows of the trajectories, and why there are none of some."""
    now = datetime.now(UTC)
    rows, refused = [], {}
    for name, checked in new.items():
        try:
            rows.append(imported_rows(checked, now))
        except (ValueError, RecursionError) as error:
            refused[name] = Problem("", f"what has no JSON form ({error})", "a recording")
    return rows, refused


def _recorded(connection: psycopg.Connection, table: str, trajectory_ids: Iterable[str]) -> set[str]:
    """Which of the ids the table holds; none where there is no such table."""
    found = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
    if found is None or found[0] is None:
        return set()
    query = sql.SQL('SELECT "trajectoryId" FROM {} WHERE "trajectoryId" = ANY(%s)').format(
        sql.Identifier(*table.split("."))
    )
    return {name for (name,) in connection.execute(query, (list(trajectory_ids),))}


def write_rows(connection: psycopg.Connection, imported: Sequence[Rows]) -> set[str]:
    """Write rows by table in the caller's transaction, calls of new trajectories only; ids of these."""
    rows = {table.name: [row for one in imported for row in one[table.name]] for table in _TABLES}
    written = _insert(connection, tables.trajectories, rows["trajectories"], "trajectoryId")
    of_written = {
        "llm_call_logs": [row for row in rows["llm_call_logs"] if row["trajectoryId"] in written],
        "recorded_calls": [row for row in rows["recorded_calls"] if row["trajectory_id"] in written],
    }
    _insert(connection, tables.llm_call_logs, of_written["llm_call_logs"], "callId")
    _insert(connection, tables.recorded_calls, of_written["recorded_calls"], "call_id")
    return written


_TABLES = (tables.trajectories, tables.llm_call_logs, tables.recorded_calls)


def _insert(connection: psycopg.Connection, table: sa.Table, rows: list[dict[str, Any]], key: str) -> set[str]:
    """COPY the rows beside the table and insert those that it takes; the keys of these."""
    if not rows:
        return set()
    names = list(rows[0])
    beside = table.to_metadata(sa.MetaData(), schema=None, name=f"imported_{table.name}")
    target, source = sql.Identifier(table.schema or "", table.name), sql.Identifier(beside.name)
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    connection.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(source))
    connection.execute(
        sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(source, columns, target)
    )
    copy_rows(connection, beside, names, ([row[name] for name in names] for row in rows))
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING RETURNING {}").format(
        target, columns, columns, source, sql.Identifier(key)
    )
    return {found for (found,) in connection.execute(statement)}


class _Rejected:
    """`FILE.rejected`: a JSON line for each rejected one, with its number, its problems and its text as it was."""

    def __init__(self, name: str, dry_run: bool) -> None:
        self.path = Path("stdin.rejected" if name == STDIN else f"{name}.rejected")
        self.dry_run = dry_run
        self.file: IO[bytes] | None = None
        self.written_to: str | None = None

    def __enter__(self) -> "_Rejected":
        if not self.dry_run:
            self.path.unlink(missing_ok=True)  # of an earlier import, whose lines are looked at again
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, line: NumberedLine, checked: Checked) -> None:
        """Keep a line. RecordingError where it cannot be written."""
        if self.dry_run:
            return
        try:
            kept: dict[str, Any] = {"text": line.text.decode()}
        except UnicodeDecodeError:
            kept = {"base64": base64.b64encode(line.text).decode()}
        told = {"line": line.number, "problems": [problem._asdict() for problem in checked.problems], **kept}
        try:
            if self.file is None:
                self.file = self.path.open("wb")
            self.file.write(json.dumps(told).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise RecordingError(
                f"{self.path}, where rejected lines go, cannot be written ({error.strerror}). Copy the file to a "
                "folder of your own and import it from there."
            ) from None
        self.written_to = str(self.path)
