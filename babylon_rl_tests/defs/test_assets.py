"""The assets on a real Dagster instance with PostgreSQL storage, over windows recorded by the real recorder."""

import dagster as dg
import psycopg
import pytest
from dagster._serdes import serialize_value

from babylon_rl.database.connect import Database
from babylon_rl.database.urls import libpq_url
from babylon_rl.defs.jobs import DATA_ASSETS as DATA
from babylon_rl_tests.defs.ranges import FIRST, materialize, record, span


def counts(database: Database) -> dict[str, tuple[int, int]]:
    with database.connect() as connection:
        return {
            name: connection.execute(
                f"SELECT count(*) FILTER (WHERE superseded_at IS NULL), count(*) FROM babylon_rl.{name}"
            ).fetchone()
            for name in DATA
        }


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the first failed step says; a test fails where it is not a message of ours."""
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert data.user_failure_data, data.error
    return data.user_failure_data.description


def test_a_range_is_materialized_and_a_second_run_writes_nothing(database, instance):
    ids = record(database, 4)
    result = materialize(database, instance, span(ids[0], ids[-1]))
    assert result.success
    first = counts(database)
    assert first["windows"] == (4, 4)
    assert first["scored_trajectories"] == (32, 32)
    assert first["market_outcomes"] == (16, 16)
    for name in DATA:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == set(ids)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    assert counts(database) == first


def test_each_window_of_a_range_gets_its_own_agents_and_little_that_is_shared(database, instance):
    ids = record(database, 3)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    with database.connect() as connection:
        ranked = {
            window_id: connection.execute(
                "SELECT agent_id, reason FROM babylon_rl.scored_trajectories WHERE window_id = %s ORDER BY rank",
                (window_id,),
            ).fetchall()
            for window_id in ids
        }
    assert ranked[ids[0]] != ranked[ids[1]]
    for name in DATA:
        stored = instance.fetch_materializations(dg.AssetKey(name), limit=10).records
        assert {record.partition_key for record in stored} == set(ids)
        for event in stored:
            metadata = event.asset_materialization.metadata
            assert metadata["status"].text and metadata["reason"].text
            assert len(serialize_value(event.asset_materialization)) < 10_000
            if name == "scored_trajectories":
                shown = [(r.data["agent_id"], r.data["reason"]) for r in metadata["agents by reward"].records]
                assert shown == ranked[event.partition_key]
                assert metadata["dagster/row_count"].value == 8
                assert "data:image/svg+xml" in metadata["P&L by agent, $"].value


def test_a_late_run_supersedes_exactly_its_own_window(database, instance):
    ids = record(database, 3)
    materialize(database, instance, span(ids[0], ids[-1]))
    with database.connect() as connection:
        connection.execute('DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', (ids[1], "agent-1"))
    materialize(database, instance, span(ids[0], ids[-1]))
    found = counts(database)
    assert found["windows"] == (3, 4)
    assert found["scored_trajectories"] == (23, 31)


def test_runs_without_tokens_are_scored_and_not_trained_on(database, instance):
    ids = record(database, 1)
    materialize(database, instance, {"dagster/partition": ids[0]})
    with database.connect() as connection:
        row = connection.execute("SELECT status, members, left_out FROM babylon_rl.art_groups").fetchone()
    assert row[:2] == ("too_few_members", 0)
    assert len(row[2]) == 8


def test_an_empty_hour_is_a_result_and_not_an_error(database, instance):
    assert materialize(database, instance, {"dagster/partition": FIRST}, [*DATA, "trained_checkpoints"]).success
    with database.connect() as connection:
        status = connection.execute("SELECT status, reason FROM babylon_rl.windows").fetchone()
        trained = connection.execute("SELECT updated, reason FROM babylon_rl.trained_checkpoints").fetchone()
    assert status == ("empty", "nothing was recorded")
    assert trained[0] is False and "no training run" in trained[1]


def test_too_few_agents_is_a_reason(database, instance, monkeypatch):
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "9")
    ids = record(database, 1)
    materialize(database, instance, {"dagster/partition": ids[0]})
    with database.connect() as connection:
        row = connection.execute("SELECT status, reason FROM babylon_rl.windows").fetchone()
    assert row == ("too_few_agents", "8 of at least 9 agents")


@pytest.mark.parametrize(
    "tags", [{"dagster/partition": "2025-01-15T00:30"}, span("2025-01-15T00:30", "2025-01-15T02:00")]
)
def test_a_key_off_the_hour_is_refused(database, instance, tags):
    result = materialize(database, instance, tags)
    assert not result.success
    assert "off the hour" in failure(result) and "Did you mean 2025-01-15T00:00" in failure(result)
    assert counts(database)["windows"] == (0, 0)


def test_a_database_without_our_schema_is_a_failure_that_says_what_to_do(new_database, instance):
    result = materialize(new_database(), instance, {"dagster/partition": FIRST})
    assert not result.success and "babylon-rl db migrate" in failure(result)


def test_every_asset_of_the_graph_succeeds_over_a_range_and_has_metadata_for_a_person(database, instance):
    ids = record(database, 2)
    evaluations = ("checkpoint_evaluations", "market_evaluations", "replay_evaluations", "online_evaluations")
    assets = (*DATA, "trained_checkpoints", *evaluations)
    result = materialize(database, instance, span(ids[0], ids[-1]), assets)
    assert result.success
    for name in assets:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == set(ids)
        metadata = result.asset_materializations_for_node(name)[0].metadata
        assert metadata["dagster/row_count"] is not None
        assert metadata["status"].text and metadata["reason"].text


def test_runs_and_events_are_in_postgresql(database, instance):
    result = materialize(database, instance, {"dagster/partition": FIRST}, ["windows"])
    with psycopg.connect(libpq_url(instance.event_log_storage.postgres_url)) as connection:
        (events,) = connection.execute("SELECT count(*) FROM event_logs WHERE run_id = %s", (result.run_id,)).fetchone()
        (runs,) = connection.execute("SELECT count(*) FROM runs WHERE run_id = %s", (result.run_id,)).fetchone()
    assert events > 5 and runs == 1
