"""`babylon-rl windows`: the same numbers from what was materialized and from the recordings, with readiness."""

import json

import pytest
from pydantic import SecretStr

from babylon_rl.commands.windows import _next, _table
from babylon_rl.database.connect import Database, open_application, open_materialized
from babylon_rl.database.tables import windows as windows_table
from babylon_rl.database.window_rows import write_rows
from babylon_rl.errors import DatabaseError
from babylon_rl.recording.listing import first_window, live_windows, materialized_windows, readiness
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.recording.survey import survey
from babylon_rl.settings import Settings
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, shift_window, window_of, window_range
from babylon_rl_tests.commands.strangers import (
    NOW,
    PASSWORD,
    WINDOW,
    add_live_tick,
    add_live_ticks,
    add_played,
    reader,
    with_tables,
)
from babylon_rl_tests.recording.runs import add_row

KEYS = ["window_id", "agents", "recorded", "scorable", "trainable", "rejected", "not_trainable", "ready", "reason"]
SECOND = shift_window(WINDOW, 1)


def record(database) -> None:
    """Three windows: one ready, one with rows of no use beside, one too thin."""
    with database.connect() as connection:
        add_played(connection, windows=2)
        add_live_tick(connection, "empty", "agent-0", 1, stepsJson="[]")
        add_live_tick(connection, "flagged", "agent-1", 1, isEvaluation=True)
        add_live_tick(connection, "tick", "agent-2", 2)


def materialize(database, min_agents: int = 3) -> None:
    rows = summarize_windows(database, list(window_range(WINDOW, shift_window(WINDOW, 2))), min_agents)
    with database.connect() as connection:
        write_rows(connection, windows_table, rows)


def live(database, min_agents: int = 3, now=NOW, first: str | None = None):
    with database.recordings() as recordings:
        return live_windows(survey(recordings, first=first), min_agents, now)


def stored(database, min_agents: int = 3, now=NOW, lookback_hours: float | None = None):
    with database.connect() as connection:
        return materialized_windows(connection, min_agents, now, lookback_hours)


def test_the_live_listing_tells_what_materializing_then_stores(database):
    record(database)
    seen = live(database)
    materialize(database)
    assert stored(database) == seen
    assert [(one.window_id, one.recorded, one.scorable, one.ready) for one in seen] == [
        (WINDOW, 4, 4, True), (SECOND, 6, 4, True), (shift_window(WINDOW, 2), 1, 1, False),
    ]  # fmt: skip
    assert seen[1].rejected == {"empty_steps": 1, "evaluation": 1}
    for one in seen:
        assert one.recorded == one.scorable + sum(one.rejected.values())
        assert one.scorable == one.trainable + sum(one.not_trainable.values())


def test_rows_without_a_window_stand_in_one_entry_at_the_end(database):
    record(database)
    with database.connect() as connection:
        add_row(connection, "off", "agent-0", windowId="2025-01-15T10:30")
        connection.execute(
            """INSERT INTO babylon_rl.rejected_trajectories
                   (trajectory_id, reason, detail, digest, refused_for, ended_in, superseded_at)
               VALUES ('off', 'off_hour_window', '', 'd', 'scoring', '2025-01-15T10:00', NULL),
                      ('older', 'off_hour_window', '', 'd', 'scoring', '2025-01-14T10:00', now())"""
        )
    last = live(database)[-1]
    assert (last.window_id, last.recorded, last.rejected, last.ready) == (None, 1, {"off_hour_window": 1}, False)
    materialize(database)
    assert stored(database)[-1] == last
    assert [one.window_id for one in stored(database, lookback_hours=10)] == []


def test_superseded_rows_are_not_listed(database):
    record(database)
    materialize(database)
    before = stored(database)
    with database.connect() as connection:
        connection.execute('DELETE FROM trajectories WHERE "isEvaluation"')
    materialize(database)
    assert [one.recorded for one in before] == [4, 6, 1]
    assert [one.recorded for one in stored(database)] == [4, 5, 1]


@pytest.mark.parametrize(("min_agents", "ready"), [(1, 3), (4, 2), (5, 0)])
def test_ready_is_for_so_many_agents_whatever_was_asked_when_it_was_materialized(database, min_agents, ready):
    record(database)
    materialize(database, min_agents=3)
    assert sum(one.ready for one in stored(database, min_agents)) == ready
    assert sum(one.ready for one in live(database, min_agents)) == ready


def test_a_window_is_ready_from_the_end_of_its_hour_on():
    end = parse_window_id(WINDOW) + WINDOW_LENGTH
    over, still = window_of(end), window_of(end - WINDOW_LENGTH / 3600)
    assert readiness(WINDOW, 5, 5, 5, 3, over) == (True, "5 agents")
    assert readiness(WINDOW, 5, 5, 5, 3, still) == (False, "the hour is not over")
    assert readiness(WINDOW, 2, 5, 5, 3, over) == (False, "2 of at least 3 agents")
    assert readiness(WINDOW, 0, 5, 0, 3, over) == (False, "none of 5 recorded trajectories can be used")
    assert readiness(None, 9, 9, 0, 1, over)[0] is False


def test_looking_back_counts_from_now(database):
    record(database)
    materialize(database)
    now = parse_window_id(shift_window(WINDOW, 2)) + 1.5 * WINDOW_LENGTH
    assert first_window(now, 2) == SECOND and first_window(now, None) is None and first_window(now, 10**9) is None
    assert [one.window_id for one in stored(database, now=now, lookback_hours=2)][0] == SECOND
    assert stored(database, now=now, lookback_hours=2) == live(database, now=now, first=first_window(now, 2))


def test_without_our_schema_both_ways_on_are_named(new_database, tmp_path):
    url = with_tables(new_database())
    with reader(url, "game") as readers:
        settings = Settings(application_url=SecretStr(readers), home=tmp_path, database_home=tmp_path / "none")
        with pytest.raises(DatabaseError, match="--live.*db migrate"):
            open_materialized(settings)
        assert not (tmp_path / "none").exists()
        with (
            pytest.raises(DatabaseError, match="--live.*db migrate"),
            open_materialized(Settings(database_url=SecretStr(url), home=tmp_path)).connect() as connection,
        ):
            materialized_windows(connection, 3, NOW)


def test_a_stranger_sees_windows_live_with_the_right_to_read_alone(new_database, tmp_path, run):
    url = with_tables(new_database())
    with Database(url, embedded=False).connect() as connection:
        add_live_ticks(connection)
    with reader(url, "game") as readers:
        settings = Settings(application_url=SecretStr(readers), home=tmp_path, database_home=tmp_path / "none")
        with open_application(settings).recordings_found() as recordings:
            assert recordings.ours is None
            found = live_windows(survey(recordings), 3, NOW)
        done = run("windows", "--live", "--json", "--ready", DATABASE_URL=readers)
        refused = run("windows", DATABASE_URL=readers)
    assert [(one.agents, one.scorable, one.trainable, one.ready) for one in found] == [(4, 4, 0, True)] * 2
    listed = json.loads(done.stdout)
    assert [list(one) for one in listed] == [KEYS] * 2
    assert [one["window_id"] for one in listed] == [WINDOW, SECOND]
    assert listed[0]["not_trainable"] == {"no_llm_call": 4}
    assert refused.returncode == 2 and "--live" in refused.stderr and "Traceback" not in refused.stderr
    assert PASSWORD not in done.stdout + done.stderr + refused.stdout + refused.stderr
    assert not (tmp_path / "none").exists()


def test_the_command_lists_what_is_materialized_for_people_and_programs(database, run):
    record(database)
    materialize(database)
    listed = run("windows", "--json", "--database", database.url)
    assert [list(one) for one in json.loads(listed.stdout)] == [KEYS] * 3
    ready = run("windows", "--ready", "--json", "--min-agents", "1", "--database", database.url)
    assert len(json.loads(ready.stdout)) == 3
    table = run("windows", "--database", database.url)
    for part in (WINDOW, "4 agents", "1 of at least 3 agents", "evaluation 1", "3 windows, 2 ready", "train --from"):
        assert part in table.stdout, table.stdout


def test_what_comes_next_depends_on_what_is_there(database):
    record(database)
    found = live(database)
    assert _next(found, live=True) == f"babylon-rl train --from {WINDOW} --to {SECOND}"
    assert "--live" in _next([], live=False) and "verify" in _next([], live=True)
    assert "--lookback-hours" in _next([], live=False, looked_back=1) and "verify" not in _next([], True, 1)
    assert _table(found).row_count == 3
