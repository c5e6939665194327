"""The whole loop on the tiny model: real endpoint, PostgreSQL, Dagster instance and trainer process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from babylon_rl.bench.results import read_evidence
from babylon_rl.cli import _tell, app
from babylon_rl.database.urls import with_driver
from babylon_rl.evaluation.schedule import schedule_of
from babylon_rl.loop import run_demo
from babylon_rl.market.policies import FIXED_POLICIES
from babylon_rl.materializing import ASSETS, environment
from babylon_rl.plans import PLANS, plan_behind
from babylon_rl.reporting.progress import draw_curve, rounds, runs_alike, status
from babylon_rl.settings import REPOSITORY, Settings
from babylon_rl.training.runs import load_run
from babylon_rl.windows import window_range


def interrupted_after(steps: int) -> Callable[[str, int], Callable[[], None]]:
    """A stage callback that presses Ctrl-C after so many windows."""
    left = [steps]

    def stage(title: str, count: int) -> Callable[[], None]:
        def advance() -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        return advance

    return stage


def silent(title: str, count: int) -> Callable[[], None]:
    return lambda: None


@pytest.fixture
def home(tmp_path: Path, new_database) -> dict[str, str]:
    """Environment of a Dagster instance of this test: its own home and its own storage."""
    folder = tmp_path / "dagster_home"
    folder.mkdir()
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", folder)
    return {
        "DAGSTER_HOME": str(folder),
        "DAGSTER_PG_URL": with_driver(new_database().url, "psycopg2"),
        "DAGSTER_EVENT_BATCH_SIZE": "500",
    }


def test_agents_play_a_model_learns_and_is_promoted_on_evidence(database, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BASE_MODEL", "tiny")
    monkeypatch.setenv("BABYLON_RL_THREADS", "1")
    settings, plan = Settings(), PLANS["tiny"]
    with environment(home):
        with pytest.raises(KeyboardInterrupt):
            run_demo(settings, database, plan.seed, plan, interrupted_after(20))
        outcome = run_demo(settings, database, plan.seed, plan, silent)
        with dg.DagsterInstance.get() as instance:
            run = one_run(database, outcome.training_run)
            schedule = schedule_of(run)
            wanted = set(window_range(schedule.train[0], schedule.last))
            for name in ASSETS:
                assert wanted <= instance.get_materialized_partitions(dg.AssetKey(name))
            observed = instance.get_event_records(
                dg.EventRecordsFilter(dg.DagsterEventType.ASSET_OBSERVATION, dg.AssetKey("recorded_trajectories"))
            )
            assert len(observed) == plan.rounds + 1
        before = everything(database)
        again = run_demo(settings, database, plan.seed, plan, silent)
    assert again == outcome
    assert everything(database) == before  # a finished demo that is run again changes nothing

    found = status(database)
    assert outcome.promoted, outcome.reason
    assert found["promoted"]["interval"][0] > 0
    assert found["promoted"]["over_best_fixed"]["interval"][0] > 0
    assert found["checkpoints"] == plan.rounds
    assert found["windows"]["trained"] == plan.rounds * plan.recipe.windows_per_update
    with database.connect() as connection:
        played = rounds(connection, run)
        assert played[-1].pnl > played[0].pnl
        png = draw_curve(connection, run, tmp_path / "curve.png")
        doubled = connection.execute(
            """SELECT count(*) FROM (
                 SELECT 1 FROM trajectories GROUP BY "windowId", "agentId", "batchId" HAVING count(*) > 1) doubled"""
        ).fetchone()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert doubled == (0,)

    assert plan_behind(run) == plan
    with database.connect() as connection:
        assert runs_alike(connection, run) == (1, 1)
        measured = read_evidence(connection, run)
    assert measured.promoted and measured.candidate == found["promoted"]["checkpoint"]
    assert [measured.over_start.low, measured.over_start.high] == found["promoted"]["interval"]
    assert measured.pnl.low < measured.pnl.mean < measured.pnl.high and 0 < (measured.share or 0) < 1
    assert set(measured.fixed) == set(FIXED_POLICIES) and measured.informed > max(measured.fixed.values())
    assert measured.updates == len(measured.training) == plan.rounds and measured.validation[0].updates == 0
    capsys.readouterr()
    _tell(database, settings, outcome.training_run)
    assert "In this database: 1 seed, 1 improved." in capsys.readouterr().out

    shown = CliRunner().invoke(app, ["status", "--json", "--database", database.url])
    assert json.loads(shown.stdout)["promoted"] == found["promoted"]


def one_run(database, name):
    with database.connect() as connection:
        run = load_run(connection, name)
    assert run is not None
    return run


def everything(database) -> list[tuple]:
    """How many rows each table holds."""
    with database.connect() as connection:
        return connection.execute(
            """SELECT 'trajectories', count(*) FROM trajectories UNION ALL
               SELECT 'calls', count(*) FROM babylon_rl.recorded_calls UNION ALL
               SELECT 'windows', count(*) FROM babylon_rl.windows UNION ALL
               SELECT 'scores', count(*) FROM babylon_rl.scored_trajectories UNION ALL
               SELECT 'checkpoints', count(*) FROM babylon_rl.checkpoints UNION ALL
               SELECT 'evaluations', count(*) FROM babylon_rl.checkpoint_evaluations UNION ALL
               SELECT 'promotions', count(*) FROM babylon_rl.promotions ORDER BY 1"""
        ).fetchall()
