"""`babylon-rl evaluate`: runs the evaluations' jobs, says how a checkpoint stands, and refuses what it cannot ask."""

import json

import dagster as dg
import pytest

from babylon_rl import materializing
from babylon_rl.database.tables import market_outcomes, scored_trajectories, windows
from babylon_rl.database.urls import with_driver
from babylon_rl.database.window_rows import write_rows
from babylon_rl.defs import market_evaluations
from babylon_rl.evaluation.market_evaluation import MarketPlan
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.materializing import environment
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import REPOSITORY
from babylon_rl.staleness import stale_rows
from babylon_rl.windows import shift_window
from babylon_rl_tests.commands.conftest import run  # noqa: F401
from babylon_rl_tests.evaluation.asked import COPY, OTHER, RUN, TRAINED
from babylon_rl_tests.market.scripted import completion, endpoint

FIRST = "2025-01-15T06:00"


@pytest.fixture(scope="module")
def dagster(server) -> dict[str, str]:
    """Environment of Dagster with a storage of these tests."""
    server.create_database("dagster_of_evaluate")
    url = with_driver(server.url("dagster_of_evaluate"), "psycopg2")
    return {"DAGSTER_HOME": str(REPOSITORY / "dagster_home"), "DAGSTER_PG_URL": url}


@pytest.fixture
def evaluate(database, booked, dagster, run, monkeypatch):  # noqa: F811
    """Function that runs the command; the simulated market is four hours of four agents."""
    monkeypatch.setattr(materializing, "dagster_environment", lambda settings: dagster)
    monkeypatch.setattr(market_evaluations, "MarketPlan", lambda seed, windows: MarketPlan(seed, 4, 4))

    def evaluate(*arguments: str):
        home = {"BABYLON_RL_HOME": str(booked.home), "BABYLON_RL_THREADS": "1"}
        return run("evaluate", *arguments, "--database", database.url, **home)

    return evaluate


def record(database, folder, count=2) -> list[str]:
    """Materialized windows in which checkpoints COPY and OTHER answered."""
    ids = [shift_window(FIRST, n) for n in range(count)]

    def reply(body):
        first, second, _ = body["structured_outputs"]["choice"]
        return 200, completion(first, checkpoint=COPY) if "ACME" in first else completion(second, checkpoint=OTHER)

    with endpoint(reply) as script, Recorder(database, folder / "spool.jsonl") as recorder:
        pairs = [(window_id, make_window(3, "train", n)) for n, window_id in enumerate(ids)]
        where = Endpoint(script.base_url, "babylon")
        play_windows(database, recorder, where, pairs, agents=4, label=Label("x"), sampling=Sampling())
        recorder.close()
    outcomes = outcome_windows(database, ids)
    rows = {windows: summarize_windows(database, ids, 3), market_outcomes: outcomes}
    rows[scored_trajectories] = score_windows(database, ids, outcomes.frame, "alpha")
    with database.connect() as connection:
        for table, own in rows.items():
            write_rows(connection, table, own)
    return ids


def test_a_checkpoint_is_evaluated_three_ways_and_stands_where_the_rows_say(database, evaluate, dagster, tmp_path):
    ids = record(database, tmp_path)
    done = evaluate(COPY, "--market", "--replay", f"{ids[0]}..{ids[-1]}", "--online")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "4 of 4 hours played" in done.stderr and "replayed on 2 windows" in done.stderr
    for said in ("follow_news", "recorded", "market", "replay", "online", f"{COPY} is clearly better than"):
        assert said in done.stdout
    told = json.loads(evaluate(COPY, "--json").stdout)["standing"]
    found = {(one["source"], one["baseline"]): one for one in told}
    assert found["market", f"{RUN}@0"]["effect"] == 0.0 and found["market", f"{RUN}@0"]["windows"] == 4
    assert found["replay", "recorded"]["windows"] == found["online", OTHER]["windows"] == 2
    with environment(dagster), dg.DagsterInstance.get() as instance:
        runs = {run.job_name: run.status.value for run in instance.get_runs(limit=3)}
        assert runs == dict.fromkeys(("evaluate_in_market", "evaluate_by_replay", "evaluate_online"), "SUCCESS")
        event = instance.get_latest_materialization_event(dg.AssetKey("replay_evaluations"))
        assert event.asset_materialization.metadata["status"].text == "replayed"
        key = dg.AssetCheckKey(dg.AssetKey("replay_evaluations"), "windows_are_later")
        (record_of,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record_of.event.asset_check_evaluation.passed
    evaluations = ("market_evaluations", "replay_evaluations", "online_evaluations")
    with database.connect() as connection:
        assert stale_rows(connection, evaluations).empty
        connection.execute("UPDATE babylon_rl.windows SET revision = 'late' WHERE window_id = %s", (ids[1],))
        stale = stale_rows(connection, evaluations)
    assert set(zip(stale["asset"], stale["window_id"], strict=True)) == {(name, ids[1]) for name in evaluations[1:]}


def test_without_an_option_nothing_runs(evaluate):
    done = evaluate(COPY)
    assert done.returncode == 0 and f"Nothing is stored of {COPY}" in done.stdout and "--market" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody@9", "--market"), "There is no checkpoint 'nobody@9'"),
        ((f"{RUN}@0", "--market"), "it is a base model"),
        ((OTHER, "--replay", f"{TRAINED[OTHER]}..{FIRST}"), f"was trained on windows up to {TRAINED[OTHER]}"),
        ((OTHER, "--replay", f"{FIRST}..2025-01-15T05:00"), "the first must not be later than the last"),
        ((OTHER, "--replay", "yesterday"), "yesterday"),
        ((OTHER, "--replay", FIRST), "No materialized window"),
        ((OTHER, "--online"), f"No scored window has a run that {OTHER} answered"),
    ],
)
def test_what_cannot_be_evaluated_says_why_before_anything_is_started(evaluate, arguments, said):
    done = evaluate(*arguments)
    assert done.returncode in (1, 2) and said in " ".join((done.stderr + done.stdout).split())
