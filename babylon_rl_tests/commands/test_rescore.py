"""`babylon-rl rescore`: a range under another scorer, its groups with it, and the rows before that kept as history."""

import json
import os
import signal
import time

import pytest

from babylon_rl import materializing
from babylon_rl.database.urls import with_driver
from babylon_rl.scoring import seam
from babylon_rl.scoring.scorers import ALPHA
from babylon_rl.scoring.seam import Scorer
from babylon_rl.settings import REPOSITORY
from babylon_rl.windows import shift_window
from babylon_rl_tests.commands.played import FIRST, play


@pytest.fixture(scope="module")
def dagster(server) -> dict[str, str]:
    """Environment of Dagster with a storage of these tests: to make one takes seconds."""
    server.create_database("dagster_of_rescore")
    url = with_driver(server.url("dagster_of_rescore"), "psycopg2")
    return {"DAGSTER_HOME": str(REPOSITORY / "dagster_home"), "DAGSTER_PG_URL": url}


@pytest.fixture
def rescore(database, dagster, run, monkeypatch):
    """Function that scores the played windows anew."""
    monkeypatch.setattr(materializing, "dagster_environment", lambda settings: dagster)

    def rescore(*arguments: str, last: str = FIRST, first: str = FIRST):
        return run("rescore", "--from", first, "--to", last, *arguments, "--database", database.url)

    return rescore


def history(database, window_id: str = FIRST) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(
            """SELECT scorer, scorer_version, superseded_at IS NULL, count(*) FROM babylon_rl.scored_trajectories
               WHERE window_id = %s GROUP BY 1, 2, 3 ORDER BY min(row_id)""",
            (window_id,),
        ).fetchall()


def test_a_range_is_scored_anew_and_what_was_there_stays_with_its_scorer(database, rescore, tmp_path, monkeypatch):
    ids = play(database, tmp_path, windows=2)
    turned = Scorer("turned", "7", lambda runs: [seam.Score(-s.reward, {}, s.reason) for s in ALPHA.score(runs)])
    monkeypatch.setitem(seam._REGISTERED, "turned", turned)
    first = rescore("--scorer", "alpha", last=ids[-1])
    assert first.returncode == 0, first.stderr
    assert "2 of them materialized for the first time" in first.stdout and "16 rows written" in first.stdout

    done = rescore("--scorer", "turned", "--json", last=ids[-1])
    told = json.loads(done.stdout)["windows"]
    assert [one["window_id"] for one in told] == ids
    for one in told:
        assert (one["written"], one["unchanged"], one["failed"]) == (8, 0, None)
        assert (one["scorer_before"], one["scorer_after"]) == (f"alpha {ALPHA.version}", "turned 7")
        assert one["rank_correlation"] == pytest.approx(-1) and one["mean_after"] == pytest.approx(-one["mean_before"])
        assert one["best"]["reward"] > one["worst"]["reward"] and one["best"]["reason"]
    assert history(database) == [("alpha", ALPHA.version, False, 8), ("turned", "7", True, 8)]
    with database.connect() as connection:
        groups = connection.execute(
            "SELECT scorer FROM babylon_rl.art_groups WHERE superseded_at IS NULL ORDER BY window_id"
        ).fetchall()
    assert groups == [("turned",)] * 2

    again = rescore("--scorer", "turned", last=ids[-1])
    assert "0 rows written, 16 unchanged in 2 windows" in again.stdout
    assert "later is scored by alpha; BABYLON_RL_SCORER=turned" in again.stdout
    assert history(database) == [("alpha", ALPHA.version, False, 8), ("turned", "7", True, 8)]


def test_a_window_that_fails_is_told_with_its_reason_and_holds_up_no_other(database, rescore, tmp_path, monkeypatch):
    ids = play(database, tmp_path, windows=2, agents=3)

    def picky(runs):
        return ALPHA.score(runs) if runs.window_id == FIRST else []

    monkeypatch.setitem(seam._REGISTERED, "picky", Scorer("picky", "1", picky))
    done = rescore("--scorer", "picky", last=ids[-1])
    assert done.returncode == 1, done.stderr
    assert "3 rows written" in done.stdout and "1 window failed" in done.stdout
    assert f"{ids[1]}  not computed: scored_trajectories: Scorer picky 1" in done.stdout
    assert history(database) == [("picky", "1", True, 3)] and history(database, ids[1]) == []
    alone = rescore("--scorer", "picky", first=ids[1], last=ids[1])
    assert alone.returncode == 1 and "gives 0 scores for 3 runs" in alone.stdout and "Traceback" not in alone.stderr


@pytest.mark.parametrize(
    ("first", "last", "scorer", "code", "said"),
    [
        (FIRST, "2025-01-15T09:00", "alpha", 2, "--to must not be before --from"),
        (FIRST, "2999-01-15T09:00", "alpha", 2, "not over yet"),
        (FIRST, "tomorrow", "alpha", 1, "is not a window id"),
        (FIRST, FIRST, "luck", 2, "no scorer 'luck'"),
        (FIRST, shift_window(FIRST, 3), "alpha", 1, "Nothing is recorded"),
    ],
)
def test_a_mistake_is_told_with_what_mends_it(rescore, first, last, scorer, code, said):
    done = rescore("--scorer", scorer, first=first, last=last)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


def test_windows_before_dagsters_first_are_refused_by_the_settings_name(database, rescore, tmp_path):
    play(database, tmp_path, agents=3, first="2023-01-15T10:00")
    done = rescore(first="2023-01-15T10:00")
    assert done.returncode == 2 and "BABYLON_RL_PARTITIONS_START" in done.stderr


def test_ctrl_c_keeps_the_rows_that_were_there(database, rescore, tmp_path, monkeypatch):
    play(database, tmp_path, agents=3)
    assert rescore("--scorer", "alpha").returncode == 0

    def interrupted(runs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setitem(seam._REGISTERED, "slow", Scorer("slow", "1", interrupted))
    done = rescore("--scorer", "slow")
    assert done.returncode == 130 and "Interrupted" in done.stderr
    assert history(database) == [("alpha", ALPHA.version, True, 3)]
