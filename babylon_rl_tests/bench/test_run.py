import subprocess
import sys

import msgspec
import pytest

from babylon_rl.bench import run
from babylon_rl.bench.results import load_results
from babylon_rl.bench.run import DemoProcesses, bench_learning, failure_in, last_line, only_bench, watch
from babylon_rl.database.connect import Database
from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.loop import run_for
from babylon_rl.plans import PLANS, demo_name, plan_behind, plan_digest
from babylon_rl_tests.bench.made import evidence


class MadeDemos:
    """Demos that take ten seconds and do what the test says: evidence, or an error to raise."""

    def __init__(self, outcomes):
        self.outcomes, self.ran = outcomes, []

    def untouched(self, seed):
        return True

    def run(self, seed, spend):
        self.ran.append(seed)
        spend(10.0, 100)
        outcome = self.outcomes[seed]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def bench(path, outcomes, seeds=(1, 2, 3), told=None):
    """The seeds whose demos ran; those that were told go to `told`."""
    demos, told = MadeDemos(outcomes), [] if told is None else told
    bench_learning(path, "tiny", "digest", seeds, demos, lambda results, one: told.append(one.seed))
    return demos.ran


def test_a_seed_that_is_measured_is_told_and_not_run_again(tmp_path):
    path = tmp_path / "r.json"
    assert bench(path, {1: evidence(), 2: evidence()}, (1, 2)) == [1, 2]
    assert bench(path, {3: evidence()}) == [3]


def test_each_seed_is_told_whether_it_ran_or_was_kept(tmp_path):
    told = []
    for _ in range(2):
        bench(tmp_path / "r.json", {1: evidence(), 2: TrainingError("no")}, (1, 2), told)
    assert told == [1, 2, 1, 2]


def test_an_interruption_keeps_what_is_finished_and_the_time_of_what_is_not(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(path, {1: evidence(), 2: KeyboardInterrupt()})
    kept = load_results(path, "tiny", "digest")
    assert list(kept.finished) == [1] and kept.begun[2].seconds == 10
    assert bench(path, {2: evidence(), 3: evidence()}) == [2, 3]
    kept = load_results(path, "tiny", "digest")
    assert {seed: r.spent.seconds for seed, r in kept.finished.items()} == {1: 10, 2: 20, 3: 10} and not kept.begun


def test_a_seed_that_fails_is_a_result_and_is_run_again_by_the_next_call(tmp_path):
    path = tmp_path / "r.json"
    assert bench(path, {1: evidence(), 2: TrainingError("no advantage"), 3: evidence()}) == [1, 2, 3]
    kept = load_results(path, "tiny", "digest").finished[2]
    assert kept.error == "no advantage" and not kept.improved
    assert bench(path, {2: evidence()}) == [2]
    kept = load_results(path, "tiny", "digest").finished[2]
    assert kept.error is None and kept.spent.seconds == 20


def test_a_folder_has_one_bench_at_a_time(tmp_path):
    with only_bench(tmp_path), pytest.raises(SettingsError, match="--out"), only_bench(tmp_path):
        pass
    with only_bench(tmp_path):
        pass


def python(code):
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)


def test_a_process_is_watched_to_its_end_with_its_code_and_memory(monkeypatch):
    monkeypatch.setattr(run, "SAMPLE_SECONDS", 0.05)
    booked, looked = [], []
    process = python("import time; time.sleep(0.4); raise SystemExit(3)")
    code = watch(process, lambda *s: booked.append(s), lambda: looked.append(1))
    assert code == 3 and looked
    assert sum(seconds for seconds, _ in booked) > 0 and max(peak for _, peak in booked) > 1_000_000


def test_an_interrupted_bench_ends_its_demo_and_books_its_time(monkeypatch):
    monkeypatch.setattr(run, "SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 5.0)
    booked, process = [], python("import time; time.sleep(600)")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(process, lambda *s: booked.append(s), interrupted)
    assert process.poll() is not None and booked


def test_the_log_tells_the_stage_and_the_failure_of_this_attempt_only(tmp_path):
    log = tmp_path / "log"
    log.write_text("babylon-rl: of an earlier attempt\n")
    begin = log.stat().st_size
    assert last_line(log, begin) == "starting"
    with open(log, "a") as file:
        file.write("round 1: play: 16 done in 3 s\n\n")
    assert last_line(log, begin) == "round 1: play: 16 done in 3 s"
    assert failure_in(log, begin, 1) == "round 1: play: 16 done in 3 s"
    with open(log, "a") as file:
        file.write("babylon-rl: The disk is full.\nFree some space.\n")
    assert failure_in(log, begin, 1) == "The disk is full. Free some space."
    assert "SIGKILL" in failure_in(log, begin, -9)


def demos_in(database, tmp_path, digest):
    return DemoProcesses(database, "tiny", digest, tmp_path, 0, lambda seed, last: None)


def test_a_run_of_another_plan_is_not_taken_for_this_one(database, tmp_path):
    plan = PLANS["tiny"]
    demos = demos_in(database, tmp_path, plan_digest(plan))
    assert demos.untouched(7)
    run_for(database, "tiny", 7, plan)
    assert not demos.untouched(7)
    with pytest.raises(SettingsError, match=demo_name("tiny", 7)):
        demos_in(database, tmp_path, "another").run(7, lambda *spent: None)


def test_a_password_is_not_on_the_demos_command_line(tmp_path):
    demos = demos_in(Database("postgresql://me:secret-word@host/db", embedded=False), tmp_path, "d")
    assert "postgresql://me@host/db" in demos._command(1) and "secret-word" not in " ".join(demos._command(1))
    assert demos._environment()["PGPASSWORD"] == "secret-word"


def test_the_plan_behind_a_run_is_the_one_it_was_started_with_but_for_its_seed(database):
    plan = PLANS["smollm2-135m"]
    behind = plan_behind(run_for(database, "tiny", 7, plan))
    assert behind and behind.seed == 7 and plan_digest(behind) == plan_digest(plan)
    assert plan_digest(msgspec.structs.replace(plan, rounds=plan.rounds + 1)) != plan_digest(plan)
