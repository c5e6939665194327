"""The readiness sensor: each ready window once a revision, late data again, and nothing that would fail a tick."""

import dagster as dg
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.definitions import build_defs
from babylon_rl.defs import window_readiness
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl_tests.defs.ranges import materialize, record, span


def tick(database: Database, instance: dg.DagsterInstance, cursor: str | None = None):
    resource = DatabaseResource(url=database.url)
    definitions = build_defs({"database": resource})
    context = dg.build_sensor_context(
        instance, cursor, repository_def=definitions.get_repository_def(), resources={"database": resource}
    )
    return definitions.resolve_sensor_def("window_readiness").evaluate_tick(context)


def requested(data) -> list[str]:
    return [request.partition_key for request in data.run_requests]


def test_each_ready_window_is_requested_under_its_revision_and_observed(database, instance):
    ids = record(database, 2)
    data = tick(database, instance)
    assert requested(data) == ids
    assert [event.partition for event in data.asset_events] == ids
    keys = {request.partition_key: request.run_key for request in data.run_requests}
    assert all(keys[event.partition].endswith(event.metadata["revision"].value) for event in data.asset_events)
    # Nothing has run yet: the same keys again, so that Dagster starts no second run.
    assert [r.run_key for r in tick(database, instance).run_requests] == list(keys.values())


def test_what_is_materialized_is_left_alone_until_late_data_come_and_then_only_that_window(database, instance):
    ids = record(database, 3)
    before = {r.partition_key: r.run_key for r in tick(database, instance).run_requests}
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    quiet = tick(database, instance)
    assert not quiet.run_requests and not quiet.asset_events
    with database.connect() as connection:
        connection.execute('DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', (ids[1], "agent-1"))
    (late,) = tick(database, instance).run_requests
    assert late.partition_key == ids[1] and late.run_key != before[ids[1]]


def test_windows_outside_the_partitions_and_those_with_too_few_agents_are_passed_over(database, instance, monkeypatch):
    (ready,) = record(database, 1)
    record(database, 1, first="2020-01-15T10:00")
    record(database, 1, first="2099-01-15T10:00")
    assert requested(tick(database, instance)) == [ready]
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "9")
    window_readiness.get_settings.cache_clear()
    assert requested(tick(database, instance)) == []


def test_a_tick_takes_so_many_windows_and_the_next_goes_on_and_round(
    database, instance, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(window_readiness, "MOST_REQUESTS", 2)
    ids = record(database, 3)
    first = tick(database, instance)
    second = tick(database, instance, first.cursor)
    third = tick(database, instance, second.cursor)
    assert [requested(t) for t in (first, second, third)] == [ids[:2], ids[2:], ids[:2]]
