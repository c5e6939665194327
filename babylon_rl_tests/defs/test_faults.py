"""A run that is killed, cut off from its server, or not alone: what it leaves is whole, and a rerun mends it."""

import os
import random
import signal
import time
from pathlib import Path

import psycopg
import pytest

from babylon_rl.bench.faults import IDS, ROWS, FaultedWrite, each_point, join_children, start_child
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database import history
from babylon_rl.database.connect import Database
from babylon_rl.errors import DatabaseError


@pytest.fixture
def written(database, monkeypatch) -> FaultedWrite:
    """A write whose every window is a part of its own, so that there are many statements to be killed between."""
    monkeypatch.setattr(history, "BATCH_ROWS", 1)
    return FaultedWrite(database)


def test_killed_between_any_two_statements_it_leaves_the_old_rows_or_the_new_and_a_rerun_the_new(written):
    assert written.points > 60 and written.old != written.new
    faults = written.kill_at_random(25, random.Random(5), print)
    assert faults.killed == 25 and not faults.wrong
    # And with all its statements done, before and after the commit; closing the connection commits once more.
    for point, left in ((written.points - 3, written.old), (written.points - 2, written.new)):
        written.restore()
        assert join_children([start_child(written.run, at=point)]) == [False]
        assert written.state() == left


def test_two_runs_of_the_same_windows_at_once_end_as_one_does(written):
    for _ in range(4):
        written.restore()
        assert join_children([start_child(written.run) for _ in range(2)]) == [True, True]
        assert written.state() == written.new


def test_a_server_that_stops_in_the_middle_is_told_and_the_rerun_ends_as_an_undisturbed_run():
    with scratch_server() as (server, database):
        written = FaultedWrite(database)
        written.restore()
        left = written.points - 8  # all of the one table is written, and some of the other

        def stop() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(int(Path(server.data, "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
                while server.running():
                    time.sleep(0.01)

        with pytest.raises(DatabaseError, match="Start it|See that the server runs"), each_point(stop):
            written.run()
        server.up()
        assert written.state() == written.old
        written.run()
        assert written.state() == written.new


def test_a_session_that_the_server_ends_is_told_and_nothing_is_changed(written):
    written.restore()
    left = written.points - 3

    def end() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            with psycopg.connect(written.database.url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )

    with pytest.raises(DatabaseError, match="Start it|See that the server runs"), each_point(end):
        written.run()
    assert written.state() == written.old
    written.run()
    assert written.state() == written.new


def test_out_of_connections_is_told_with_the_remedy_and_a_rerun_mends_it(written):
    written.restore()
    with written.database.connect() as connection:
        connection.execute("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1")
        connection.execute("GRANT pg_read_all_data, pg_write_all_data TO narrow")
    whole = written.database
    written.database = Database(whole.url.replace("postgres@", "narrow@"), embedded=False)
    with psycopg.connect(written.database.url), pytest.raises(DatabaseError, match="CONNECTION LIMIT"):
        written.run()
    narrow, written.database = written.database, whole
    assert written.state() == written.old
    written.database = narrow
    written.run()
    written.database = whole
    assert written.state() == written.new
    with whole.connect() as connection:
        connection.execute("DROP OWNED BY narrow")
        connection.execute("DROP ROLE narrow")


def lines(connection: psycopg.Connection, query: str) -> list[bytes]:
    """Lines of the query's result as COPY writes it: what `pg_dump` writes of a table."""
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        return b"".join(copy).splitlines()


def test_nothing_that_was_recorded_is_lost_or_doubled(written):
    """The books against lines of COPY, which know nothing of our reader."""
    with written.database.connect() as connection:
        dumped = lines(connection, "COPY trajectories TO STDOUT")
        kept = lines(connection, "COPY babylon_rl.windows (window_id, recorded, usable, rejected) TO STDOUT")
        ended = 'COPY (SELECT "windowId" FROM trajectories) TO STDOUT'
        by_window = lines(connection, ended)
        cut = lines(connection, 'COPY (SELECT "trajectoryId" FROM trajectories WHERE "stepsJson" = \'[{\') TO STDOUT')
        current = (
            "COPY (SELECT trajectory_id FROM babylon_rl.rejected_trajectories WHERE superseded_at IS NULL) TO STDOUT"
        )
        rejected = lines(connection, current)
        standing = "COPY (SELECT recorded, usable FROM babylon_rl.windows WHERE superseded_at IS NULL) TO STDOUT"
        books = [tuple(map(int, line.split())) for line in lines(connection, standing)]
    assert len(dumped) == ROWS and len(kept) > len(IDS) == len(books)
    assert sorted(recorded for recorded, _ in books) == sorted(by_window.count(w.encode()) for w in IDS)
    assert sorted(rejected) == sorted(cut) and len(cut) == 4
    assert sum(usable for _, usable in books) == len(dumped) - len(cut)
