"""The assets on a real Dagster instance with PostgreSQL storage, over windows recorded by the real recorder."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.database.urls import with_driver
from babylon_rl.definitions import build_defs
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.market.agents import make_agents
from babylon_rl.market.policies import choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.actions import parse_action
from babylon_rl.market.trajectories import Label, make_run, market_history
from babylon_rl.market.world import make_window
from babylon_rl.recording.market_history import record_market
from babylon_rl.recording.recorder import write_runs
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
DATA = ["windows", "market_outcomes", "scored_trajectories", "art_groups"]


@pytest.fixture
def instance(server: EmbeddedServer, new_database, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs and events are in PostgreSQL, as in dagster_home/dagster.yaml."""
    storage = new_database()
    url = with_driver(storage.url, "psycopg2")
    (tmp_path / "dagster.yaml").write_text(
        json.dumps({"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}})
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def record(database: Database, windows: int, agents: int = 8) -> list[str]:
    """Windows played for training by agents that choose at random, without a model's tokens."""
    ids = [shift_window(FIRST, i) for i in range(windows)]
    with database.connect() as connection:
        for index, window_id in enumerate(ids):
            window = make_window(0, "train", index)
            state = make_agents(0, "train", index, agents)
            tickers, questions = market_history(window_id, window)
            record_market(connection, [a.agent_id for a in state], tickers, questions)
            actions = [parse_action(choose("random", window, a), window.instrument(a.instrument)) for a in state]
            settled = settle(window, state, actions)
            write_runs(
                connection,
                [make_run(window_id, window, a, s, Label("random"), None) for a, s in zip(state, settled, strict=True)],
            )
    return ids


def materialize(database: Database, instance: dg.DagsterInstance, tags: dict[str, str], assets=DATA):
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance, tags=tags, asset_selection=[dg.AssetKey(a) for a in assets], raise_on_error=False
    )


def span(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def counts(database: Database) -> dict[str, tuple[int, int]]:
    with database.connect() as connection:
        return {
            name: connection.execute(
                f"SELECT count(*) FILTER (WHERE superseded_at IS NULL), count(*) FROM babylon_rl.{name}"
            ).fetchone()
            for name in DATA
        }


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
    metadata = result.asset_materializations_for_node("windows")[0].metadata
    assert "| window_id |" in metadata["windows"].value
    assert "data:image/png;base64," in metadata["P&L"].value
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    assert counts(database) == first


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


def test_a_key_off_the_hour_is_refused(database, instance):
    result = materialize(database, instance, {"dagster/partition": "2025-01-15T00:30"})
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "off the hour" in failure.step_failure_data.error.message or "off the hour" in str(
        failure.step_failure_data.user_failure_data
    )
    assert counts(database)["windows"] == (0, 0)


def test_the_sensor_requests_each_ready_window_once_a_revision(database, instance):
    ids = record(database, 2)
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    sensor = definitions.resolve_sensor_def("window_readiness")
    context = dg.build_sensor_context(instance, resources={"database": DatabaseResource(url=database.url)})
    first = sensor.evaluate_tick(context)
    assert [request.partition_key for request in first.run_requests] == ids
    again = sensor.evaluate_tick(
        dg.build_sensor_context(instance, resources={"database": DatabaseResource(url=database.url)})
    )
    assert [r.run_key for r in again.run_requests] == [r.run_key for r in first.run_requests]


def test_definitions_hang_together():
    definitions = build_defs()
    dg.Definitions.validate_loadable(definitions)
    names = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert names == {*DATA, "recorded_trajectories", "trained_checkpoints", "checkpoint_evaluations"}
