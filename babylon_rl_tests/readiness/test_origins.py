"""Recordings in two databases, and in our own tables: noticed as in one, and compared where our tables are."""

from datetime import timedelta

import psycopg
import pytest

from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.urls import database_name
from babylon_rl.readiness import buckets, changes, requests
from babylon_rl.readiness.changes import Walk, changed_windows, misnamed
from babylon_rl.readiness.requests import tick
from babylon_rl.readiness.sweep import first_recorded_window
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.application import Application, make_application
from babylon_rl_tests.readiness.conftest import START, World
from babylon_rl_tests.recording.runs import WINDOW, add_agents

NEXT, OLD = shift_window(WINDOW, 1), shift_window(WINDOW, -500)


class Beside:
    """A world in the application's database, and our database beside it, which may only read there."""

    def __init__(self, application: Application, ours: Database) -> None:
        self.world, self.walk = World(application.owner), Walk()
        reader = application.reader(f"reader_of_{database_name(application.owner.url)}")
        self.database = Database(ours.url, embedded=False, application_url=reader)
        with application.owner.connect() as connection:
            add_agents(connection, *(f"agent-{n}" for n in range(1, 4)))

    def looked(self) -> list[str]:
        with self.database.connect() as ours, self.database.recordings_beside(ours) as recordings:
            found, walk = changed_windows(recordings, self.walk, self.world.now, 48)
            self.walk = Walk.of(walk.cursor())
        return found

    def ours(self, statement: str, *values) -> list[tuple]:
        with self.database.connect() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def beside(new_database, database) -> Beside:
    return Beside(make_application(new_database), database)


CALL = (
    "INSERT INTO babylon_rl.recorded_calls VALUES ('c', 'a', 0, 'm', 'base', '{1}', '{2}', '{-1}', NULL, 1, 1, 0, NULL,"
    " 'stop')"
)
LOG = (
    '(id, "trajectoryId", "stepId", "callId", timestamp, model, purpose, "systemPrompt", "userPrompt", response, '
    "temperature, \"maxTokens\") VALUES ('1', 'a', 'a-step-0', 'c', now(), 'm', 'action', '', '', '', 1, 1)"
)


@pytest.mark.parametrize("named", [WINDOW, None, "window-3"])
def test_writes_in_either_database_are_noticed_once_in_the_hour_in_which_the_row_ended(beside, named):
    beside.world.row("a", windowId=named)
    beside.world.row("old", window=OLD, windowId=named and OLD)
    assert beside.looked() == [OLD, WINDOW] and beside.looked() == []
    in_look_back = named != "window-3"  # by its name; a label's rows are compared once an hour, without their calls
    beside.ours(CALL)
    assert beside.looked() == [WINDOW] * in_look_back
    beside.world.sql(f"INSERT INTO llm_call_logs {LOG}")
    assert beside.looked() == [WINDOW] * in_look_back
    beside.world.sql("""UPDATE trajectories SET "endTime" = "endTime" + interval '1 hour' WHERE "trajectoryId" = 'a'""")
    assert beside.looked() == [WINDOW, NEXT]
    with beside.database.connect() as ours, beside.database.recordings_beside(ours) as recordings:
        assert misnamed(recordings, [NEXT, WINDOW]) == {NEXT: ["a"], WINDOW: []}
    beside.world.sql("DELETE FROM trajectories")
    assert beside.looked() == [OLD, NEXT] and beside.looked() == []


@pytest.mark.parametrize("named", [WINDOW, None, "window-3"])
def test_rows_in_our_own_tables_are_looked_at_like_the_applications(beside, named):
    beside.world.row("a", windowId=named)
    with beside.world.database.connect() as there:
        (row,) = there.execute("SELECT * FROM trajectories").fetchall()
        there.execute("DELETE FROM trajectories")
    with beside.database.connect() as ours:
        ours.execute(
            psycopg.sql.SQL("INSERT INTO babylon_rl.trajectories VALUES ({})").format(
                psycopg.sql.SQL(",").join(psycopg.sql.Placeholder() * len(row))
            ),
            row,
        )
    assert beside.looked() == [WINDOW] and beside.looked() == []
    with beside.database.connect() as ours, beside.database.recordings_beside(ours) as recordings:
        assert misnamed(recordings, [WINDOW]) == {WINDOW: ["a"] if named != WINDOW else []}
        assert first_recorded_window(recordings, START, NEXT) == WINDOW
        assert buckets.anything_recorded(recordings, OLD, WINDOW)
        assert not buckets.anything_recorded(recordings, NEXT, NEXT)
    if named != "window-3":
        beside.ours(f"INSERT INTO babylon_rl.llm_call_logs {LOG}")
        assert beside.looked() == [WINDOW]
    # The same row in both tables is two rows that change by themselves.
    beside.world.row("a", windowId=named)
    assert beside.looked() == [WINDOW]
    beside.ours("DELETE FROM babylon_rl.trajectories")
    assert beside.looked() == [WINDOW] and beside.looked() == []
    assert beside.ours("SELECT DISTINCT origin FROM babylon_rl.recorded_buckets") == [("application",)]


def test_both_walks_go_on_where_they_were(beside, monkeypatch):
    monkeypatch.setattr(changes, "LEAST_SLICE", 5)
    monkeypatch.setattr(changes, "MOST_SLICE", 5)
    ids = [shift_window(OLD, i) for i in range(20)]
    for number, window_id in enumerate(ids):
        beside.world.row(window_id, window=window_id, windowId=window_id if number % 2 else None)
    with beside.world.database.connect() as there, there.cursor() as cursor:
        rows = cursor.execute("SELECT * FROM trajectories").fetchall()
    with beside.database.connect() as ours, ours.cursor() as cursor:
        cursor.executemany(f"INSERT INTO babylon_rl.trajectories VALUES ({','.join(['%s'] * len(rows[0]))})", rows)
    seen = [beside.looked() for _ in range(8)]
    assert sorted({window_id for found in seen for window_id in found}) == ids and max(map(len, seen)) < 20
    beside.ours("""UPDATE babylon_rl.trajectories SET "finalPnL" = 7 WHERE "trajectoryId" = %s""", ids[11])
    beside.ours("""DELETE FROM babylon_rl.trajectories WHERE "trajectoryId" = %s""", ids[4])
    beside.world.sql("""DELETE FROM trajectories WHERE "trajectoryId" = %s""", ids[2])
    assert sorted(sum((beside.looked() for _ in range(8)), [])) == [ids[2], ids[4], ids[11]]


def test_a_bucket_that_the_other_database_sorts_elsewhere_is_not_gone(world):
    """Names are labels too, and two databases may differ in which of them lie between two others."""
    world.row("a", windowId="label")
    with world.database.connect() as connection:
        application, _ = buckets.origins_of(Recordings.of(connection))
        look = buckets.Look(buckets.WALK.source, buckets.WALK_TO_THE_END.scope, by_range=True)
        everything = {"after": "", "last": "zzz"}
        nothing = {"after": "", "last": ""}
        assert buckets.changed_buckets(connection, application, look, everything, world.now) == {WINDOW}
        assert buckets.changed_buckets(connection, application, look, nothing, world.now) == set()
        connection.execute("DELETE FROM trajectories")
        assert buckets.changed_buckets(connection, application, look, nothing, world.now) == {WINDOW}


def test_a_window_that_the_application_cannot_give_holds_up_no_other(beside, monkeypatch):
    for window in (WINDOW, NEXT):
        beside.world.window(window)
    read, world = requests.read_window, beside.world

    def reading(recordings, window_id, elsewhere):
        if window_id == WINDOW:
            recordings.application.execute("SELECT 1/0")
        return read(recordings, window_id, elsewhere)

    monkeypatch.setattr(requests, "read_window", reading)
    with beside.database.connect() as ours, beside.database.recordings_beside(ours) as recordings:
        now = world.now + timedelta(hours=1)
        found = tick(recordings, Walk(), now, world.waits, 48, START, world.run_states, 0)
    assert [request.window_id for request in found.requests] == [NEXT]
    ((state, reason),) = beside.ours(
        "SELECT state, reason FROM babylon_rl.window_requests WHERE window_id = %s", WINDOW
    )
    assert state == "failed" and "division by zero" in reason


def test_a_row_that_only_names_an_early_hour_does_not_begin_the_sweeps(world):
    world.row("misnamed", windowId=OLD)
    world.row("a", window=NEXT)
    with world.database.connect() as connection:
        assert first_recorded_window(Recordings.of(connection), START, shift_window(WINDOW, 9)) == NEXT
    world.tick()
    with world.database.connect() as connection:
        assert first_recorded_window(Recordings.of(connection), START, shift_window(WINDOW, 9)) == WINDOW
    assert parse_window_id(OLD) < parse_window_id(WINDOW)
