"""The first system's tables as views: its own queries give the right rows, and nothing can be written there."""

from datetime import UTC, datetime

import msgspec
import pandas as pd
import psycopg
import pytest
from psycopg.rows import dict_row

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups, scored_trajectories, windows
from babylon_rl.groups.build import build_group
from babylon_rl.recording.summary import window_summary
from babylon_rl.scoring.scorers import score_window
from babylon_rl.training.runs import promote
from babylon_rl_tests.scoring import made
from babylon_rl_tests.training.rounds import MIXED, OpenRun, window

NOW = datetime(2026, 2, 1, tzinfo=UTC)
COLUMNS = {
    "training_windows": "id window_id status agent_count total_actions avg_pnl created_at ready_at scored_at "
    "trained_at deployed_at",
    "ruler_scores": "id window_id agent_id trajectory_id score reasoning created_at scoring_method metrics",
    "training_datasets": "id dataset_id window_id num_examples avg_reward data_json created_at",
    "training_jobs": "id training_id window_id dataset_id base_model num_agents num_examples status checkpoint_path "
    "metrics created_at started_at completed_at",
    "model_deployments": "id model_version environment endpoint_url deployment_strategy health_status "
    "deployment_time_seconds traffic_percentage metadata deployed_at undeployed_at",
    "training_pipeline_status": "window_id status agent_count avg_pnl scored_agents avg_ruler_score model_version "
    "training_time_seconds endpoint_url deployment_health created_at scored_at trained_at deployed_at",
    "self_hosted_training_status": "window_id agents_scored avg_score dataset_id num_examples training_id "
    "training_status checkpoint_path created_at completed_at",
    "model_performance": "model_version environment endpoint_url health_status metrics training_time_seconds "
    "deployed_at hours_deployed",
}
# The body of the first system's function get_windows_for_stage.
FOR_STAGE = """SELECT tw.window_id FROM babylon_rl.training_windows tw
    WHERE CASE %s WHEN 'scoring' THEN tw.status = 'ready' WHEN 'training' THEN tw.status = 'scored'
                  WHEN 'deployment' THEN tw.status = 'trained' ELSE FALSE END
    ORDER BY tw.created_at ASC, tw.window_id"""
# Of get_agent_training_examples.
OF_AGENT = """SELECT td.window_id, elem->'messages' AS messages, (elem->>'reward')::decimal AS reward,
                     (elem->'metadata'->>'final_pnl')::decimal AS final_pnl
    FROM babylon_rl.training_datasets td, jsonb_array_elements(td.data_json) AS elem
    WHERE elem->'metadata'->>'agent_id' = %s ORDER BY td.window_id LIMIT 100"""


def rows(database, query: str, *parameters) -> list[dict]:
    with database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters or None).fetchall()


@pytest.fixture
def opened(database, tmp_path) -> OpenRun:
    """Windows 0 to 3 are trained on, the first two in what is served; 4 is scored, 5 ready, 6 too few, 7 empty, 8 open.

    Each stands there twice: the rows that were current before must not be seen.
    """
    opened = OpenRun(database, tmp_path)
    opened.play(*range(5), scale=3.0)
    opened.play(*range(5))
    opened.compute(window(0), window(3))
    with database.connect() as connection:
        ids = [window(place) for place in range(8)]
        for agents in (9, 3):
            summaries = [_window(place, agents) for place in range(8)]
            replace_windows(connection, windows, ids, pd.DataFrame(summaries))
        connection.execute(
            "INSERT INTO babylon_rl.window_requests (window_id, revision, agents, state, reason) "
            "VALUES (%s, 'r', 2, 'waiting', 'the hour is not over'), (%s, 'r', 3, 'materialized', '')",
            (window(8), window(0)),
        )
        first = next(iter(opened.checkpoints()))
        for name in (first, "run@0", first):
            promote(connection, "run", name, "an operator", "it earns", {"effect": 1.0}, again=True)
    return opened


def _window(place: int, agents: int) -> dict:
    recorded = made.recorded(
        *(made.trajectory(f"{place}-{n}", pnl=1.005 * n, window_id=window(place)) for n in range(agents)),
        window_id=window(place),
    )
    row = window_summary(recorded, 3, NOW)
    changes = {6: {"status": "too_few_agents"}, 7: {"status": "empty", "recorded": 0}}
    return row | changes.get(place, {})


def test_each_view_has_the_first_systems_columns_and_current_rows_only(opened):
    for view, columns in COLUMNS.items():
        with opened.database.connect() as connection:
            found = connection.execute(f"SELECT * FROM babylon_rl.{view}")
            assert [column.name for column in found.description] == columns.split(), view
    found = rows(opened.database, "SELECT * FROM babylon_rl.training_windows ORDER BY window_id")
    assert [row["status"] for row in found] == ["deployed"] * 2 + ["trained"] * 2 + ["scored", "ready", "pending"] + [
        "pending"
    ]
    assert [row["window_id"] for row in found] == [window(place) for place in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert {row["agent_count"] for row in found[:7]} == {3} and found[7]["agent_count"] == 2
    assert len({row["id"] for row in found}) == 8 and str(found[0]["avg_pnl"]) == "1.01"
    assert [row["total_actions"] for row in found] == [len(MIXED)] * 5 + [None] * 3
    told = [[row[name] is not None for name in ("ready_at", "scored_at", "trained_at", "deployed_at")] for row in found]
    assert told == [[True] * 4] * 2 + [[True] * 3 + [False]] * 2 + [
        [True, True, False, False],
        [True, False, False, False],
        [False] * 4,
        [False] * 4,
    ]


def test_what_a_descendant_serves_its_parents_windows_are_deployed_with(opened):
    with opened.database.connect() as connection:
        promote(connection, "run", list(opened.checkpoints())[1], "an operator", "it earns", {}, again=True)
    found = rows(opened.database, "SELECT status FROM babylon_rl.training_windows ORDER BY window_id LIMIT 4")
    assert {row["status"] for row in found} == {"deployed"}


def test_windows_for_a_stage(opened):
    for stage, places in (("scoring", [5]), ("training", [4]), ("deployment", [2, 3]), ("other", [])):
        assert [r["window_id"] for r in rows(opened.database, FOR_STAGE, stage)] == [window(p) for p in places], stage


def test_examples_hold_the_recorded_text_and_the_windows_pnl(opened):
    agent = f"agent-{window(4)}-0"
    (example,) = rows(opened.database, OF_AGENT, agent)
    assert example["window_id"] == window(4)
    assert [m["role"] for m in example["messages"]] == ["system", "user", "assistant"]
    assert example["messages"][2]["content"] == MIXED[0] and example["messages"][0]["content"] == made.SYSTEM
    (score,) = rows(
        opened.database,
        "SELECT metrics->'reward' AS reward FROM babylon_rl.ruler_scores WHERE window_id = %s AND agent_id = %s",
        window(4),
        agent,
    )
    assert float(example["reward"]) == score["reward"] and float(example["final_pnl"]) == 0.5
    (dataset,) = rows(opened.database, "SELECT * FROM babylon_rl.training_datasets WHERE window_id = %s", window(4))
    assert dataset["num_examples"] == len(dataset["data_json"]) == len(MIXED)


def test_several_decisions_are_one_example_in_their_order(database):
    recorded = made.recorded(
        *(made.trajectory(name, pnl=n, verbs=["BUY", "HOLD", "SELL"]) for n, name in enumerate("ab"))
    )
    scored = score_window(recorded, made.outcomes())
    group = build_group({"status": "ready", "reason": ""}, recorded, scored)
    with database.connect() as connection:
        replace_windows(connection, art_groups, [made.WINDOW], pd.DataFrame([group]))
    (dataset,) = rows(database, "SELECT data_json FROM babylon_rl.training_datasets")
    first = dataset["data_json"][0]
    assert [m["content"] for m in first["messages"] if m["role"] == "assistant"] == ["BUY", "HOLD", "SELL"]
    assert [m["content"] for m in first["messages"] if m["role"] == "user"] == [f"a step {n}" for n in range(3)]
    assert first["metadata"]["final_pnl"] is None  # nothing is scored there


def test_one_score_an_agent_of_its_best_run_and_on_the_first_systems_scale_only_where_it_is(database):
    window_ids = [made.WINDOW]
    runs = [made.trajectory("a", pnl=1.0), made.trajectory("b", pnl=9.0, agent_id="agent-a"), made.trajectory("c")]
    recorded = made.recorded(*runs)
    for scorer in ("alpha", "heuristic"):
        with database.connect() as connection:
            replace_windows(
                connection, scored_trajectories, window_ids, score_window(recorded, made.outcomes(), scorer)
            )
        found = rows(database, "SELECT * FROM babylon_rl.ruler_scores ORDER BY agent_id")
        assert [row["agent_id"] for row in found] == ["agent-a", "agent-c"]
        assert {row["scoring_method"] for row in found} == {scorer}
        scores = [row["score"] for row in found]
        assert scores == [None, None] if scorer == "alpha" else all(0 <= score <= 1 for score in scores)
        if scorer == "alpha":
            assert found[0]["trajectory_id"] == "b" and {"reward", "pnl_over_capital"} <= found[0]["metrics"].keys()


def test_jobs_and_their_status_by_window(opened):
    first, second = opened.checkpoints().values()
    jobs = rows(opened.database, "SELECT * FROM babylon_rl.training_jobs ORDER BY window_id")
    assert [job["window_id"] for job in jobs] == [window(place) for place in range(4)]
    assert {job["status"] for job in jobs} == {"completed"} and len({job["training_id"] for job in jobs}) == 4
    assert [job["checkpoint_path"] for job in jobs] == [first.path] * 2 + [second.path] * 2
    datasets = {d["dataset_id"]: d["window_id"] for d in rows(opened.database, "TABLE babylon_rl.training_datasets")}
    assert [datasets[job["dataset_id"]] for job in jobs] == [job["window_id"] for job in jobs]
    assert all(job["completed_at"] >= job["started_at"] for job in jobs) and jobs[0]["metrics"] == first.metrics
    # What came late is another dataset than the one that was trained on.
    opened.play(1, scale=2.0)
    jobs = rows(opened.database, "SELECT dataset_id FROM babylon_rl.training_jobs ORDER BY window_id")
    assert [job["dataset_id"] is None for job in jobs] == [False, True, False, False]
    status = rows(opened.database, "SELECT * FROM babylon_rl.self_hosted_training_status ORDER BY window_id")
    assert [row["training_status"] for row in status] == ["completed"] * 4 + [None] * 4
    assert [row["agents_scored"] for row in status] == [len(MIXED)] * 5 + [0] * 3


def test_the_pipelines_status_and_what_is_served(opened):
    first, second = opened.checkpoints()
    found = rows(opened.database, "SELECT * FROM babylon_rl.training_pipeline_status ORDER BY window_id")
    assert [row["model_version"] for row in found] == [first, first, second, second, None, None, None, None]
    assert [row["scored_agents"] for row in found] == [len(MIXED)] * 5 + [0] * 3
    assert all((row["training_time_seconds"] is not None) == (row["model_version"] is not None) for row in found)
    deployments = rows(opened.database, "SELECT * FROM babylon_rl.model_deployments ORDER BY id")
    assert [row["model_version"] for row in deployments] == [first, "run@0", first]
    ends = [row["undeployed_at"] for row in deployments]
    assert ends == [row["deployed_at"] for row in deployments[1:]] + [None]
    assert {row["traffic_percentage"] for row in deployments} == {100}
    (served,) = rows(opened.database, "SELECT * FROM babylon_rl.model_performance")
    assert served["model_version"] == first and 0 <= served["hours_deployed"] < 1
    assert msgspec.json.encode(served["metrics"]) == msgspec.json.encode(opened.checkpoints()[first].metrics)


def test_nothing_can_be_written_there(database):
    for view, columns in COLUMNS.items():
        column = columns.split()[0]
        for statement in (
            f"INSERT INTO babylon_rl.{view} DEFAULT VALUES",
            f"UPDATE babylon_rl.{view} SET {column} = {column}",
            f"DELETE FROM babylon_rl.{view}",
        ):
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), database.connect() as connection:
                connection.execute(statement)
