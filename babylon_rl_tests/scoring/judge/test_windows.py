"""Judging from recorded windows to rows: one that cannot be judged fails by itself, and a model of ours can judge."""

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette

from babylon_rl.database import tables
from babylon_rl.database.window_rows import write_rows
from babylon_rl.errors import SettingsError
from babylon_rl.market.play import play_fixed
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.scoring.windows import score_windows
from babylon_rl.serving.application import build_application
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl.windows import shift_window


@contextlib.contextmanager
def served(application: Starlette) -> Iterator[str]:
    """The application on a free loopback port, in a thread of this process; its base URL."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


HOURS = [shift_window("2025-01-15T10:00", hour) for hour in range(3)]


@pytest.fixture
def played(database, tmp_path):
    """A database with three windows of four agents, and the outcomes."""
    with Recorder(database, tmp_path / "spool.jsonl") as recorder:
        windows = [(window_id, make_window(1, "train", index)) for index, window_id in enumerate(HOURS)]
        play_fixed(database, recorder, "random", windows, split=None, agents=4)
    return database, outcome_windows(database, HOURS).frame


def test_a_window_whose_judge_misbehaves_for_good_fails_by_name_and_the_others_are_scored(played, judge, settings):
    database, outcomes = played
    (bad,) = outcomes[(outcomes["window_id"] == HOURS[1]) & (outcomes["kind"] == "question")]["question"].head(1)
    judge.whenever(bad, "doubled")
    rows = score_windows(database, HOURS, outcomes, "ruler", settings=settings())
    assert rows.failed.keys() == {HOURS[1]} and rows.failed[HOURS[1]].error == "AnswerError"
    assert "doubled_id" in rows.failed[HOURS[1]].detail
    assert list(rows.frame.groupby("window_id").size()) == [4, 4] and set(rows.computed) == {HOURS[0], HOURS[2]}
    with database.connect() as connection:
        write_rows(connection, tables.scored_trajectories, rows)
    asked = len(judge.bodies)
    again = score_windows(database, HOURS, outcomes, "ruler", settings=settings())
    assert len(judge.bodies) == asked + 4  # the bad window's hindsight twice in both repeats; its process is kept
    assert again.frame["reward"].tolist() == rows.frame["reward"].tolist()


def test_a_budget_stops_at_the_window_that_it_does_not_cover(played, judge, settings):
    database, outcomes = played
    rows = score_windows(database, HOURS, outcomes, "ruler", settings=settings(judge_budget_tokens=16_000))
    assert rows.failed and {failed.error for failed in rows.failed.values()} == {"BudgetError"}
    assert rows.computed and judge.used <= 16_000
    more = score_windows(database, HOURS, outcomes, "ruler", settings=settings())
    assert not more.failed and len(judge.bodies) == 12


def test_a_refused_key_ends_the_run(played, judge, settings):
    database, outcomes = played
    judge.whenever("You judge", "401")
    with pytest.raises(SettingsError, match="JUDGE_API_KEY"):
        score_windows(database, HOURS, outcomes, "ruler", settings=settings())


def test_a_model_of_ours_judges_by_choices(played, settings, tiny, tmp_path):
    database, outcomes = played
    summaries = summarize_windows(database, HOURS, 3)
    assert set(summaries.frame["status"]) == {"ready"}
    # The tiny model's context is too short for a rubric; its positions go further, for they are rotations.
    longer = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    use_threads(1)
    with served(build_application(Policy(longer), "ours")) as base_url:
        named = settings(judge_model="ours", judge_base_url=base_url, judge_form="choices", judge_repeats=1)
        rows = score_windows(database, HOURS[:1], outcomes, "ruler", settings=named)
    frame = rows.frame
    assert not rows.failed and len(frame) == 4
    for name in ("reward", "process_score", "hindsight_score"):
        assert frame[name].between(0, 1).all()
    assert frame["outcome_score"].notna().all()
    for asked in frame["judge"]:
        assert asked["form"] == "choices" and {len(each) for each in asked["asked"].values()} == {1}
    with database.connect() as connection:
        write_rows(connection, tables.scored_trajectories, rows)
        kept = connection.execute("SELECT count(*), max(prompt_tokens) FROM babylon_rl.judge_answers").fetchone()
    assert kept[0] == 8 and kept[1] > 300
