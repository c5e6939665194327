"""What the daemon does on a started instance: a backfill, a killed run, a rerun, a check that stops, a sensor.

The tests share one instance and stand in the order in which waiting overlaps; each can also be run alone.
"""

import os
import re
import signal
from datetime import UTC, datetime

import dagster as dg
import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.database.urls import libpq_url
from babylon_rl.definitions import build_defs
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.windows import shift_window, window_of
from babylon_rl_tests.defs.ranges import record
from babylon_rl_tests.desk.conftest import AGENTS, WEEK
from babylon_rl_tests.desk.started import Desk, wait_for


def rows(database: Database, window_id: str | None = None) -> dict[str, tuple[int, int]]:
    """Rows of each data asset that are current and that are superseded, of one window or of all others' too."""
    with database.connect() as connection:
        return {
            name: connection.execute(
                f"SELECT count(*) FILTER (WHERE superseded_at IS NULL), count(superseded_at) FROM babylon_rl.{name}"
                " WHERE %(window_id)s::text IS NULL OR window_id = %(window_id)s",
                {"window_id": window_id},
            ).fetchone()
            for name in DATA_ASSETS
        }


def seen_by_the_sensor(database: Database) -> None:
    """Let the sensor look at what is recorded: one that is always on has, and reads only so much a tick."""
    resource, cursor = DatabaseResource(url=database.url), None
    definitions = build_defs({"database": resource})
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(WEEK // 40):
            context = dg.build_sensor_context(
                instance, cursor, repository_def=definitions.get_repository_def(), resources={"database": resource}
            )
            cursor = definitions.resolve_sensor_def("window_readiness").evaluate_tick(context).cursor


def test_a_killed_run_frees_its_pool_and_is_tried_again(desk: Desk, week_database: Database, week, backfill):
    with psycopg.connect(libpq_url(week_database.url)) as held:
        # The real asset waits here, in its step, with the pool's slot.
        held.execute("LOCK TABLE babylon_rl.training_runs IN ACCESS EXCLUSIVE MODE")
        run = desk.launch(week[0], ("trained_checkpoints",))
        wait_for(lambda: [slot["runId"] for slot in desk.pool("trainer")["claimedSlots"]] == [run], "the slot is taken")
        (pid,) = {
            int(found[1])
            for event in desk.events(run)
            if (found := re.search(r"Started process for run \(pid: (\d+)\)", event.get("message", "")))
        }
        os.kill(pid, signal.SIGKILL)
        assert desk.finished(run) == "FAILURE"
        held.rollback()
    retried = wait_for(lambda: [r for r in desk.runs(dagster__parent_run_id=run)], "the daemon tries the run again")
    assert desk.finished(retried[0]["runId"]) == "SUCCESS"
    pool = wait_for(lambda: (p := desk.pool("trainer"))["activeSlotCount"] == 0 and p, "the pool is free")
    assert pool["slotCount"] == 1 and pool["pendingStepCount"] == 0


def test_a_weeks_backfill_is_one_run_that_materializes_every_window(
    desk: Desk, week_database: Database, week, backfilled
):
    assert desk.backfill_status(backfilled) == "COMPLETED_SUCCESS"
    (run,) = desk.runs(dagster__backfill=backfilled)
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert run["status"] == "SUCCESS"
    assert tags["dagster/asset_partition_range_start"] == week[0]
    assert tags["dagster/asset_partition_range_end"] == week[-1]
    assert all(desk.materialized(name) >= WEEK for name in DATA_ASSETS)
    with week_database.connect() as connection:
        windows = connection.execute("SELECT window_id, recorded FROM babylon_rl.windows ORDER BY 1").fetchall()
    assert set(windows) >= {(window_id, AGENTS) for window_id in week}


def test_a_rerun_after_a_late_row_supersedes_exactly_its_window(desk: Desk, week_database: Database, week, backfilled):
    middle = week[WEEK // 2]
    before, others = rows(week_database, middle), rows(week_database)
    with week_database.connect() as connection:
        # An agent that finishes late: another's run of this window, under an id and an agent of its own.
        connection.execute(
            """INSERT INTO trajectories SELECT (jsonb_populate_record(t, '{"id": "late", "trajectoryId": "late"}')).*
               FROM trajectories t WHERE "windowId" = %s AND "agentId" = 'agent-1'""",
            (middle,),
        )
    assert desk.finished(desk.launch(middle)) == "SUCCESS"
    after = rows(week_database, middle)
    assert after["windows"] == (1, before["windows"][1] + 1)
    total = rows(week_database)
    for name in DATA_ASSETS:
        changed = (after[name][0] - before[name][0], after[name][1] - before[name][1])
        assert (total[name][0] - others[name][0], total[name][1] - others[name][1]) == changed


def test_a_failing_blocking_check_stops_the_next_stage(desk: Desk, week_database: Database, week):
    window_id = shift_window(week[-1], 1)
    record(week_database, 1, AGENTS, first=window_id)
    with week_database.connect() as connection:
        connection.execute(
            """CREATE FUNCTION lose_one() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN NEW.usable := NEW.usable - 1; RETURN NEW; END $$"""
        )
        connection.execute(
            f"""CREATE TRIGGER lose_one BEFORE INSERT ON babylon_rl.windows FOR EACH ROW
                WHEN (NEW.window_id = '{window_id}') EXECUTE FUNCTION lose_one()"""
        )
    try:
        run = desk.launch(window_id)
        assert desk.finished(run) == "FAILURE"
    finally:
        with week_database.connect() as connection:
            connection.execute("DROP FUNCTION lose_one CASCADE")
    failed = [e["evaluation"] for e in desk.events(run) if e.get("evaluation") and not e["evaluation"]["success"]]
    assert [evaluation["checkName"] for evaluation in failed] == ["trajectories_accounted_for"]
    started = {e["stepKey"] for e in desk.events(run) if e["__typename"] == "ExecutionStepStartEvent"}
    assert "windows" in started and "scored_trajectories" not in started
    assert rows(week_database, window_id)["scored_trajectories"][0] == 0


def test_the_sensor_makes_a_recorded_window_green_by_itself(desk: Desk, week_database: Database, backfilled):
    # Closed, settled, and its wait for outcomes over, by the daemon's own clock.
    window_id = shift_window(window_of(datetime.now(UTC)), -8)
    seen_by_the_sensor(week_database)
    record(week_database, 1, AGENTS, first=window_id)
    sensor = desk.start_sensor("window_readiness")

    def grouped() -> int:
        assert not (failed := desk.failed_ticks("window_readiness")), failed
        return rows(week_database, window_id)["art_groups"][0]

    try:
        wait_for(grouped, "the window's group is there")
    finally:
        desk.stop_sensor(sensor)
    with week_database.connect() as connection:
        (status,) = connection.execute(
            "SELECT status FROM babylon_rl.windows WHERE window_id = %s AND superseded_at IS NULL", (window_id,)
        ).fetchone()
    assert status == "ready"
    runs = wait_for(lambda: desk.runs(dagster__partition=window_id, dagster__sensor_name="window_readiness"), "its run")
    assert desk.finished(runs[0]["runId"]) == "SUCCESS"
