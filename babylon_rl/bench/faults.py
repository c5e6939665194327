"""`babylon-rl bench faults`: a partition's write, killed at random points, and what is found after it.

The work is what a run of asset `windows` does: the rows of `windows` and of `rejected_trajectories` are read from the
recordings and written as the IO manager writes them. It is killed in a process of its own, before or after any
statement, piece of a COPY or commit. Whatever the point, the tables hold the rows from before or those after, and a run
that is not killed ends in the same rows as if nothing had happened.
"""

import contextlib
import itertools
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import psycopg

from babylon_rl.bench.made_rows import fill_recorded
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.database.tables import windows
from babylon_rl.database.window_rows import encode_rows, write_rows
from babylon_rl.recording.accounting import unaccounted
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T10:00"
COUNT = 3
IDS = [shift_window(FIRST, hours) for hours in range(COUNT)]
ROWS = 24
MIN_AGENTS = 2

State = tuple[tuple[Any, ...], ...]

_STATE = """
    SELECT 'windows', window_id, digest, (to_jsonb(t) - '{row_id,created_at,superseded_at}'::text[])::text
    FROM babylon_rl.windows t WHERE superseded_at IS NULL
    UNION ALL
    SELECT 'rejected_trajectories', window_id, digest, (to_jsonb(t) - '{row_id,created_at,superseded_at}'::text[])::text
    FROM babylon_rl.rejected_trajectories t WHERE superseded_at IS NULL
    UNION ALL SELECT 'all windows', '', '', count(*)::text FROM babylon_rl.windows
    UNION ALL SELECT 'all rejected', '', '', count(*)::text FROM babylon_rl.rejected_trajectories
"""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What the kills came to: how often the tables held the old and the new rows, and what was wrong, by point."""

    points: int
    killed: int
    before: int
    after: int
    wrong: list[str]

    @property
    def reached(self) -> bool:
        """Whether no kill left anything else than the rows from before or after, and every rerun mended it."""
        return not self.wrong and self.killed > 0

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        lines = [
            f"{self.points} writes, {self.killed} of them killed: {self.before} left the old rows, {self.after} the "
            "new ones; a rerun ended as an undisturbed run does",
            *self.wrong[:10],
            f"{'reached' if self.reached else 'MISSED'}: {len(self.wrong)} ended otherwise, at most 0",
        ]
        return "\n".join(lines)


def measure_faults(points: int, seed: int, say: Callable[[str], None]) -> Faults:
    """Kill the write at so many random points, on a server of its own."""
    with scratch_server() as (_, database):
        return FaultedWrite(database).kill_at_random(points, random.Random(seed), say)


class FaultedWrite:
    """The write of three windows whose recordings changed, on a migrated database without rows."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.engine().dispose()  # children must not share its connections
        with database.connect() as connection:
            fill_recorded(connection, IDS, ROWS)
        self._cut(2, 9)
        self.old_rows = encode_rows(windows, summarize_windows(database, IDS, MIN_AGENTS))
        self._cut(3, 17)
        self.restore()
        self.old = self.state()
        self.run()
        self.new = self.state()
        self.points = self._count_points()

    def kill_at_random(self, points: int, chance: random.Random, say: Callable[[str], None]) -> Faults:
        """Kill at that many points, look what stands, run again and look again."""
        killed = before = after = 0
        wrong: list[str] = []
        for number in range(points):
            point = chance.randint(1, self.points)
            self.restore()
            killed += not in_child(self.run, at=point)
            found = self.state()
            before, after = before + (found == self.old), after + (found == self.new)
            if found not in (self.old, self.new) or not self.adds_up():
                wrong.append(f"killed at point {point}: neither the old nor the new rows stand")
            self.run()
            if self.state() != self.new or not self.adds_up():
                wrong.append(f"killed at point {point}: the rerun did not end in the new rows")
            if (number + 1) % 100 == 0:
                say(f"{number + 1} of {points}, {len(wrong)} wrong")
        return Faults(points=points, killed=killed, before=before, after=after, wrong=wrong)

    def run(self) -> None:
        """What a run of the asset `windows` does over the windows."""
        rows = encode_rows(windows, summarize_windows(self.database, IDS, MIN_AGENTS))
        with self.database.connect() as connection:
            write_rows(connection, windows, rows)

    def restore(self) -> None:
        """The tables as they were before the recordings changed."""
        with self.database.connect() as connection:
            connection.execute("TRUNCATE babylon_rl.windows, babylon_rl.rejected_trajectories")
            write_rows(connection, windows, self.old_rows)

    def state(self) -> State:
        """All current rows with their digests, and how many there ever were; when no killed session is left."""
        with self.database.connect() as connection:
            _await_lone(connection)
            found = connection.execute(_STATE).fetchall()
        return tuple(sorted(found))

    def adds_up(self) -> bool:
        """Whether every recorded row is accounted for in the windows that stand."""
        with self.database.connect() as connection:
            return unaccounted(connection, IDS).empty

    def _cut(self, *numbers: int) -> None:
        """Cut the JSON of some rows off, as a full disk does."""
        with self.database.connect() as connection:
            ids = [f"bench-{number}" for number in numbers]
            connection.execute("UPDATE trajectories SET \"stepsJson\" = '[{' WHERE id = ANY(%s)", (ids,))

    def _count_points(self) -> int:
        self.restore()
        passed = itertools.count()
        with each_point(lambda: next(passed)):
            self.run()
        return next(passed)


@contextlib.contextmanager
def each_point(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` before and after every statement, piece of a COPY and commit of this process."""
    places = ((psycopg.Cursor, "execute"), (psycopg.Copy, "write"), (psycopg.Connection, "commit"))
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            act()
            result = original(*arguments, **named)
            act()
            return result

        return wrapped

    for owner, name, original in originals:
        setattr(owner, name, around(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def in_child(work: Callable[[], object], at: int | None = None) -> bool:
    """Do the work in a child process, which is killed at its point number `at`. Whether it came to its end."""
    return join_children([start_child(work, at)])[0]


def start_child(work: Callable[[], object], at: int | None = None) -> int:
    """Begin the work in a child process of this process's memory; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        passed = itertools.count(1)
        with each_point(lambda: next(passed) == at and os.kill(os.getpid(), signal.SIGKILL)):
            work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def join_children(children: Sequence[int]) -> list[bool]:
    """Wait for the children; whether each came to its end. RuntimeError where one failed and was not killed."""
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(code > 0 for code in ended):
        raise RuntimeError("the write itself failed, see above")
    return [code == 0 for code in ended]


def _await_lone(connection: psycopg.Connection) -> None:
    """Wait until the server has ended the sessions of killed processes: it may still be at their last statement."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    deadline = time.monotonic() + 60
    while connection.execute(query).fetchone() != (0,):
        connection.commit()  # a transaction sees one picture of the sessions
        if time.monotonic() > deadline:
            raise RuntimeError("sessions of killed processes do not end")
        time.sleep(0.002)
