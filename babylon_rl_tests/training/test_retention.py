"""Retention: what each rule keeps, that nothing goes without --apply, and that an interruption leaves no half."""

import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest

from babylon_rl.errors import ServingError, TrainingError
from babylon_rl.evaluation.promotion import promote_checkpoint
from babylon_rl.loop import require_files
from babylon_rl.playing import served_checkpoint
from babylon_rl.settings import Settings
from babylon_rl.training import retention
from babylon_rl.training.backends.torch import resume
from babylon_rl.training.retention import prune, standings
from babylon_rl.training.runs import load_run, promote
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.lineages import checkpoint, group, job, snapshot, start

STEPS = 8


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings().model_copy(update={"home": tmp_path, "keep_checkpoints": 2})


@pytest.fixture
def names(database, tmp_path) -> list[str]:
    """A finished run's checkpoints with weights, by step from 1."""
    made = ["run@0"]
    with database.connect() as connection:
        start(connection)
        for step in range(1, STEPS + 1):
            plant(connection, tmp_path, made, f"run@{step}-aa")
    return made


def plant(connection, home, made: list[str], name: str) -> None:
    folder = home / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_text(name)
    made_from = snapshot(connection, [group(f"2025-01-16T{len(made):02}:00", ["ann", "bob"])])
    weights = {"path": str(folder), "weights_sha256": weights_digest(folder)}
    made.append(checkpoint(connection, name, made[-1], made_from, weights))


def kept(database, keep: int = 2) -> dict[str, str]:
    with database.connect() as connection:
        return {one.checkpoint_id: "; ".join(one.why) for one in standings(connection, keep) if one.why}


def change(database, query: str, *parameters) -> None:
    with database.connect() as connection:
        connection.execute(query, parameters)


def evaluate(database, candidate: str, split: str, effect: float, pnl: float = 0.0, baseline: str = "run@0") -> None:
    change(
        database,
        """INSERT INTO babylon_rl.checkpoint_evaluations (window_id, candidate, baseline, split, design, windows,
           effect, low, high, candidate_pnl, baseline_pnl, decision, reason, digest)
           VALUES ('2025-02-01T00:00', %s, %s, %s, 'x', 1, %s, 0, 0, %s, 0, 'info', 'x', 'x')""",
        candidate, baseline, split, effect, pnl,
    )  # fmt: skip


def test_the_latest_of_a_run_stay_and_zero_keeps_none_of_them(database, names):
    assert set(kept(database)) == set(names[-2:])
    assert kept(database, keep=0) == {}
    assert set(kept(database, keep=100)) == set(names[1:])


def test_whatever_was_ever_promoted_stays_and_the_served_one_is_told_apart(database, names):
    with database.connect() as connection:
        for name in names[1:3]:
            promote(connection, "run", name, "x", "y", {}, again=True)
    found = kept(database)
    assert found[names[1]] == "was promoted" and "is what is served" in found[names[2]]


def test_the_best_is_that_of_test_windows_and_of_validation_windows_before_there_are_any(database, names):
    evaluate(database, names[1], "validation", 0.0, pnl=3.0)
    evaluate(database, names[2], "validation", 9.0, pnl=2.0)
    evaluate(database, names[3], "validation", 0.0, pnl=99.0, baseline="a fixed policy")
    assert "best of its run by P&L on validation" in kept(database)[names[1]] and names[2] not in kept(database)
    evaluate(database, names[2], "test", 1.0)
    evaluate(database, names[3], "test", -1.0)
    found = kept(database)
    assert "best of its run by effect on test" in found[names[2]] and not {names[1], names[3]} & set(found)


@pytest.mark.parametrize("state", ["written", "running", "in_doubt"])
def test_parent_and_result_of_a_job_that_has_not_ended_stay(database, names, state):
    with database.connect() as connection:
        made_from = snapshot(connection, [group("2025-01-20T00:00", ["ann", "bob"])])
        job(connection, made_from, names[2], state)
        checkpoint(connection, "run@3-zz", names[2], None, {"snapshot_id": made_from, "path": None})
    found = kept(database, keep=0)
    assert f"trains on it ({state})" in found[names[2]] and "makes it" in found["run@3-zz"]


def test_a_running_run_keeps_its_next_parent_where_an_alarm_would_lead_and_what_it_still_evaluates(database, names):
    change(database, "UPDATE babylon_rl.training_runs SET state = 'running', last_window = NULL")
    change(
        database,
        """INSERT INTO babylon_rl.training_alarms (training_run, window_id, checkpoint_id, kind, value, limit_value,
           response, back_to, exploration, detail) VALUES ('run', '2025-01-14T00:00', %s, 'all_hold', 1, 1, 'explore',
           NULL, 0, 'x')""",
        names[7],
    )
    found = kept(database, keep=0)
    assert set(found) == {names[8], names[6]}
    assert "next update" in found[names[8]] and "alarm would lead" in found[names[6]]
    change(database, """UPDATE babylon_rl.training_runs SET schedule = '{"test": []}'""")
    assert set(kept(database, keep=0)) == set(names[4:])


def test_nothing_changes_without_apply_and_with_it_rows_stay_and_weights_go(database, settings, names):
    told = prune(database, settings, apply=False)
    assert [one.checkpoint_id for one in told.gone] == names[1:-2]
    assert told.freed == sum(len(name) for name in names[1:-2])
    assert all((settings.home / "checkpoints" / name).is_dir() for name in names[1:])
    done = prune(database, settings, apply=True)
    assert done.gone == told.gone and not done.failed
    assert sorted(one.name for one in (settings.home / "checkpoints").iterdir()) == [".trash", *names[-2:]]
    with database.connect() as connection:
        states = dict(connection.execute("SELECT checkpoint_id, state FROM babylon_rl.checkpoints").fetchall())
        (told_when,) = connection.execute("SELECT count(deleted_at) FROM babylon_rl.checkpoints").fetchone()
    assert {name for name, state in states.items() if state == "deleted"} == set(names[1:-2])
    assert told_when == len(names[1:-2]) and set(states) == set(names)
    again = prune(database, settings, apply=True)
    assert (again.gone, again.left, again.freed) == ([], [], 0)


def test_a_deletion_that_broke_off_is_finished_by_the_next_call(database, settings, names, monkeypatch):
    def break_off(place):
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(retention, "delete", break_off)
        done = prune(database, settings, apply=True)
    assert set(done.failed) == set(names[1:-2]) and done.freed == 0
    again = prune(database, settings, apply=True)
    assert [one.checkpoint_id for one in again.left] == names[1:-2] and again.freed > 0
    assert not (settings.home / "checkpoints" / names[1]).exists()


def test_what_came_to_be_needed_after_it_was_listed_is_not_deleted(database, settings, names, monkeypatch):
    book = retention._book_deleted

    def promote_first(*arguments):
        with database.connect() as connection:
            promote(connection, "run", names[1], "x", "y", {})
        return book(*arguments)

    monkeypatch.setattr(retention, "_book_deleted", promote_first)
    done = prune(database, settings, apply=True)
    assert names[1] not in [one.checkpoint_id for one in done.gone]
    assert (settings.home / "checkpoints" / names[1]).is_dir()


def left_work(settings: Settings, checkpoint: str, hours: float) -> Path:
    """What a killed update left so long ago."""
    folder = settings.home / "checkpoints" / resume.work_name(checkpoint)
    folder.mkdir(parents=True)
    for name in (resume.STATE_FILE, resume.LOCK_FILE):
        (folder / name).write_text("state" if name == resume.STATE_FILE else "")
    then = time.time() - 3600 * hours
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    return folder


def test_what_abandoned_updates_left_goes_and_what_may_still_be_resumed_stays(database, settings, names):
    with database.connect() as connection:
        other = snapshot(connection, [group("2025-01-20T00:00", ["ann", "bob"])])
        waiting = job(connection, other, names[-1], "running")
    abandoned = left_work(settings, "run@3-gone", 25)
    others = [left_work(settings, f"run@9-{waiting[:8]}", 25), left_work(settings, "run@9-recent", 23)]
    held = left_work(settings, "run@9-held", 25)
    lock = os.open(held / resume.LOCK_FILE, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    told = prune(database, settings, apply=False)
    assert told.work == {str(abandoned): 5} and abandoned.is_dir()
    assert prune(database, settings, apply=True).work == told.work
    assert not abandoned.exists() and all(path.is_dir() for path in (*others, held))
    os.close(lock)
    assert prune(database, settings, apply=False).work == {str(held): 5}


def test_what_a_service_keeps_is_left_there_unless_it_is_asked_for(database, settings, names):
    with database.connect() as connection:
        made_from = snapshot(connection, [group("2025-01-20T00:00", ["ann", "bob"])])
        hosted = checkpoint(connection, "other@1-aa", "run@0", made_from, {"path": None, "inference_name": "x:step3"})
        connection.execute(
            "UPDATE babylon_rl.training_attempts SET remote_model_id = 'model-1', step_after = 3 "
            "WHERE snapshot_id = %s",
            (made_from,),
        )
    settings = settings.model_copy(update={"keep_checkpoints": 0})
    assert [one.checkpoint_id for one in prune(database, settings, apply=True).hosted] == [hosted]
    asked = []
    refused = prune(database, settings, True, lambda model, steps: asked.append((model, steps)) or 1 / 0)
    assert asked == [("model-1", [3])] and hosted in refused.failed
    done = prune(database, settings, True, lambda model, steps: None)
    assert [one.checkpoint_id for one in done.gone] == [hosted] and not done.failed


def test_a_deleted_checkpoint_is_neither_served_nor_promoted_and_is_not_missed(database, settings, names, monkeypatch):
    with database.connect() as connection:
        run = load_run(connection, "run")
    for name in names[1:]:
        (settings.home / "checkpoints" / name / "adapter_config.json").write_text("{}")
    prune(database, settings, apply=True)
    require_files(database, run)
    monkeypatch.setattr("babylon_rl.playing.prepare", lambda settings: database)
    with pytest.raises(TrainingError, match="deleted.* train again from its snapshot"):
        served_checkpoint(settings, names[1])
    with database.connect() as connection:
        with pytest.raises(ServingError, match="was deleted"):
            promote_checkpoint(connection, names[1], "x", "y", True)
        with pytest.raises(TrainingError, match="were deleted"):
            promote(connection, "run", names[1], "x", "y", {})
    shutil.rmtree(settings.home / "checkpoints" / names[-1])
    with pytest.raises(TrainingError, match="knows 2 checkpoints .* 1 of them are gone"):
        require_files(database, run)
