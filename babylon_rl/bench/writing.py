"""`babylon-rl bench writing`: the write of an asset's rows against psql's `\\copy` of the same rows.

`\\copy` reads a file of the rows' text as the server wrote it; ours begins with the DataFrame that an asset returns.
"""

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg

from babylon_rl.bench.made_rows import empty, scored_frame
from babylon_rl.bench.pairs import Compared, Limit, take_turns
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.binaries import installation
from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.defs.io_manager import PostgresIOManager
from babylon_rl.defs.partitions import HOURS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
MOST = 1.3
COPY, REPLACE, MANAGER = "psql \\copy", "replace_windows", "PostgresIOManager"


def measure_writing(rows: int, windows: int, pairs: int, say: Callable[[str], None]) -> Compared:
    """Seconds of `\\copy`, of `replace_windows` and of the IO manager, for the same rows into an empty table."""
    window_ids = [shift_window(FIRST, number) for number in range(windows)]
    frame = scored_frame(window_ids, rows)
    with scratch_server() as (server, database), tempfile.TemporaryDirectory() as folder:
        manager = PostgresIOManager(database=DatabaseResource(url=database.url))
        copied = _psql(server, database, Path(folder) / "rows.txt")

        def replace() -> None:
            with database.connect() as connection:
                replace_windows(connection, scored_trajectories, window_ids, frame)

        def manage() -> Callable[[], None]:
            output = _output(window_ids)  # Dagster takes long to make one outside of a run
            return lambda: manager.handle_output(output, frame)

        replace()
        copied("to")
        ways = {COPY: lambda: lambda: copied("from"), REPLACE: lambda: replace, MANAGER: manage}
        seconds = take_turns({name: _into_empty(database, way, rows) for name, way in ways.items()}, pairs, say)
    limits = [Limit(of=way, against=COPY, most=MOST) for way in (REPLACE, MANAGER)]
    return Compared(title=f"{rows:,} scored rows of {windows} windows", rows=rows, seconds=seconds, limits=limits)


def _output(window_ids: Sequence[str]) -> dg.OutputContext:
    return dg.build_output_context(
        asset_key=dg.AssetKey(scored_trajectories.name),
        asset_partitions_def=HOURS,
        asset_partition_key_range=dg.PartitionKeyRange(window_ids[0], window_ids[-1]),
    )


def _psql(server: EmbeddedServer, database: Database, file: Path) -> Callable[[str], None]:
    """Function that copies the table to or from the file."""
    psql = installation(server.home, pwd.getpwuid(os.geteuid())) / "bin" / "psql"
    names = ", ".join(column.name for column in scored_trajectories.columns if column.name != "row_id")

    def run(direction: str) -> None:
        command = f"\\copy {scored_trajectories.fullname} ({names}) {direction} '{file}'"
        subprocess.run([str(psql), database.url, "-qXc", command, "-v", "ON_ERROR_STOP=1"], check=True)

    return run


def _into_empty(database: Database, way: Callable[[], Callable[[], None]], rows: int) -> Callable[[], float]:
    """Seconds of the write alone, into a table without rows; that it wrote them all is looked up."""

    def timed() -> float:
        with database.connect() as connection:
            empty(connection, scored_trajectories)
        write = way()
        begun = time.monotonic()
        write()
        took = time.monotonic() - begun
        with database.connect() as connection:
            (found,) = connection.execute("SELECT count(*) FROM babylon_rl.scored_trajectories").fetchone() or (0,)
        if found != rows:
            raise AssertionError(f"{found} rows stand in the table instead of {rows}")
        return took

    return timed
