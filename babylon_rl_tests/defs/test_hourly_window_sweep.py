"""The hourly sweep on a real instance: its requests materialize whole ranges, each in one run."""

from datetime import timedelta

import dagster as dg

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.definitions import build_defs
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.windows import parse_window_id, shift_window, window_range
from babylon_rl_tests.defs.ranges import FIRST, materialize, record

LAST = shift_window(FIRST, 7)
# The waits of the settings are over for LAST and for no later hour.
NOW = parse_window_id(LAST) + timedelta(hours=7, minutes=20)


def sweep(database, instance, minutes: int = 0):
    resource = DatabaseResource(url=database.url)
    definitions = build_defs({"database": resource})
    # Left open, the context keeps its instance for whatever definitions are loaded next.
    with dg.build_schedule_context(
        instance,
        scheduled_execution_time=NOW + timedelta(minutes=minutes),
        repository_def=definitions.get_repository_def(),
        resources={"database": resource},
    ) as context:
        return definitions.resolve_schedule_def("hourly_window_sweep").evaluate_tick(context)


def execute(database, instance, request: dg.RunRequest):
    job = build_defs({"database": DatabaseResource(url=database.url)}).resolve_job_def("materialize_windows")
    where = {"partition_key": request.partition_key} if request.partition_key else {}
    tags = {**request.tags, "dagster/run_key": request.run_key}
    return job.execute_in_process(instance=instance, tags=tags, **where)


def statuses(database) -> dict[str, str]:
    with database.connect() as connection:
        return dict(connection.execute("SELECT window_id, status FROM babylon_rl.windows WHERE superseded_at IS NULL"))


def test_a_range_and_a_single_window_are_each_one_run_and_the_next_sweep_is_quiet(database, instance):
    record(database, 1)
    record(database, 1, first=shift_window(FIRST, 6))
    materialize(database, instance, {"dagster/partition": shift_window(FIRST, 6)})
    # Each hour but the one materialized: six in a row, and one.
    wide, single = sweep(database, instance).run_requests
    assert wide.tags["dagster/asset_partition_range_start"] == FIRST
    assert wide.tags["dagster/asset_partition_range_end"] == shift_window(FIRST, 5)
    assert single.partition_key == LAST
    # What a person or the sensor asks for goes first.
    assert wide.tags["dagster/priority"] == single.tags["dagster/priority"] == "-1"
    for request in (wide, single):
        assert execute(database, instance, request).success
    assert instance.get_runs_count(dg.RunsFilter(job_name="materialize_windows")) == 2
    for name in DATA_ASSETS:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == set(window_range(FIRST, LAST))
    found = statuses(database)
    assert found == {w: "ready" if w in (FIRST, shift_window(FIRST, 6)) else "empty" for w in window_range(FIRST, LAST)}
    quiet = sweep(database, instance, minutes=5)
    assert not quiet.run_requests and "Every closed window" in quiet.skip_message


def test_a_sweep_that_is_evaluated_twice_asks_once(database, instance):
    record(database, 1)
    (first,) = sweep(database, instance).run_requests
    assert not sweep(database, instance).run_requests
    assert first.run_key.startswith(f"sweep:{FIRST}:{LAST}:")


def test_a_window_whose_question_resolves_late_is_asked_for_again(database, instance):
    record(database, 1)
    with database.connect() as connection:
        connection.execute('UPDATE "Market" SET resolved = false, resolution = NULL')
    rows = outcome_windows(database, [FIRST])
    with database.connect() as connection:
        replace_windows(connection, market_outcomes, rows.computed, rows.frame)
    sweep(database, instance)
    assert not sweep(database, instance, minutes=1).run_requests
    with database.connect() as connection:
        connection.execute('UPDATE "Market" SET resolved = true, resolution = true')
    (late,) = sweep(database, instance, minutes=2).run_requests
    assert late.partition_key == FIRST and late.run_key.startswith(f"sweep:late:{FIRST}:{FIRST}:")
