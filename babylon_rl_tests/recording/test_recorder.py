"""The recorder: what goes in comes out, once; and nothing it meets reaches the agent."""

import json
import time

import msgspec
import pytest

from babylon_rl.database.connect import Database, Recordings
from babylon_rl.errors import RecordingError
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.recorder import Recorder, replay_spool
from babylon_rl_tests.recording.runs import WINDOW, add_agents, make_run, make_step


@pytest.fixture
def agents(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1", "agent-2")
    return database


def count(database: Database, table: str) -> int:
    with database.connect() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def gone(tmp_path) -> Database:
    return Database(f"postgresql://nobody@/none?host={tmp_path}", embedded=False)


def test_a_run_is_read_as_it_was_recorded(agents, tmp_path):
    run = make_run()
    with Recorder(agents, tmp_path / "spool.jsonl") as recorder:
        recorder.record(run.trajectory, run.calls)
    with agents.connect() as connection:
        window = read_window(Recordings.of(connection), WINDOW)
        row = connection.execute(
            'SELECT "scenarioId", "windowHours", "finalStatus", "tradesExecuted", "durationMs" FROM trajectories'
        ).fetchone()
        log = connection.execute(
            'SELECT "userPrompt", "callId", "stepId", "promptTokens" FROM llm_call_logs'
        ).fetchone()
    (read,) = window.usable
    assert read.calls == run.calls
    assert [(s.step_number, s.timestamp, s.llm_calls, s.action) for s in read.steps] == [
        (s.step_number, s.timestamp, s.llm_calls, s.action) for s in run.trajectory.steps
    ]
    assert (read.start_time, read.end_time) == (run.trajectory.start_time, run.trajectory.end_time)
    assert (read.window_pnl, read.final_balance, read.provenance) == (3.5, 1003.5, "logged")
    assert row == (WINDOW, 1, "completed", 1, 55 * 60 * 1000)
    assert log == (run.trajectory.steps[0].llm_calls[0].user_prompt, "t1-call-0-0", "t1-step-0", 3)


def test_recording_again_doubles_nothing(agents, tmp_path):
    run = make_run()
    for _ in range(2):
        recorder = Recorder(agents, tmp_path / "spool.jsonl")
        recorder.record(run.trajectory, run.calls)
        recorder.record(run.trajectory, run.calls)
        report = recorder.close()
    assert (report.written, report.known, report.spooled) == (0, 2, 0)
    assert [count(agents, t) for t in ("trajectories", "llm_call_logs", "babylon_rl.recorded_calls")] == [1, 1, 1]


def test_a_recorder_without_database_spools_reports_and_never_waits(tmp_path):
    spool = tmp_path / "deep" / "spool.jsonl"
    recorder = Recorder(gone(tmp_path), spool)
    before = time.perf_counter()
    for n in range(50):
        recorder.record(make_run(f"t{n}").trajectory, make_run(f"t{n}").calls)
    assert time.perf_counter() - before < 1
    report = recorder.close()
    assert (report.written, report.spooled, report.lost, report.spool_path) == (0, 50, 0, spool)
    assert not report.complete and "cannot be reached" in report.errors[0]
    assert len(spool.read_bytes().splitlines()) == 50


def test_what_was_spooled_can_be_written_later_and_the_spool_is_gone(agents, tmp_path):
    spool = tmp_path / "spool.jsonl"
    recorder = Recorder(gone(tmp_path), spool)
    recorder.record_together([make_run("t1"), make_run("t2", "agent-2")])
    recorder.record_together([make_run("t3", "nobody")])
    recorder.close()
    report = replay_spool(agents, spool)
    assert (report.written, report.spooled) == (2, 1) and "ForeignKeyViolation" in report.errors[0]
    assert len(spool.read_bytes().splitlines()) == 1
    with agents.connect() as connection:
        assert [t.calls for t in read_window(Recordings.of(connection), WINDOW).usable] == [
            make_run("t1").calls,
            make_run("t2").calls,
        ]
        add_agents(connection, "nobody")
    assert replay_spool(agents, spool).written == 1 and not spool.exists()
    assert replay_spool(agents, spool).written == 0


def test_runs_handed_over_together_are_recorded_all_or_none_and_others_are_not_harmed(agents, tmp_path):
    recorder = Recorder(agents, tmp_path / "spool.jsonl")
    recorder.record_together([make_run("t1"), make_run("t2", "nobody")])
    recorder.record_together([make_run("t3")])
    report = recorder.close()
    assert (report.written, report.spooled) == (1, 2)
    with agents.connect() as connection:
        assert [t.trajectory_id for t in read_window(Recordings.of(connection), WINDOW).usable] == ["t3"]


ODD = {"a\x00b": "ab", "half \ud800 pair": "half \ufffd pair", "\ude00\ud83d": "\ufffd\ufffd"}


def odd_run(name: str, answer: str):
    step = make_step()
    call = msgspec.structs.replace(step.llm_calls[0], response=answer)
    return make_run(name, steps=[msgspec.structs.replace(step, llm_calls=[call])])


def test_texts_that_postgresql_refuses_are_kept_as_escapes_in_the_steps(agents, tmp_path):
    for n, answer in enumerate(ODD):
        with Recorder(agents, tmp_path / "spool.jsonl") as recorder:
            recorder.record(odd_run(f"t{n}", answer).trajectory, [])
        assert recorder.close().complete
    with agents.connect() as connection:
        stored = connection.execute('SELECT "stepsJson" FROM trajectories ORDER BY "trajectoryId"').fetchall()
        logged = connection.execute('SELECT response FROM llm_call_logs ORDER BY "trajectoryId"').fetchall()
    assert [json.loads(steps)[0]["llmCalls"][0]["response"] for (steps,) in stored] == list(ODD)
    assert "\\u0000" in stored[0][0] and "\\ud800" in stored[1][0]
    assert [response for (response,) in logged] == list(ODD.values())


def test_texts_that_postgresql_refuses_survive_the_spool(agents, tmp_path):
    spool = tmp_path / "spool.jsonl"
    with Recorder(gone(tmp_path), spool) as recorder:
        for n, answer in enumerate(ODD):
            recorder.record(odd_run(f"t{n}", answer).trajectory, [])
    assert replay_spool(agents, spool).written == len(ODD)
    with agents.connect() as connection:
        stored = connection.execute('SELECT "stepsJson" FROM trajectories ORDER BY "trajectoryId"').fetchall()
    assert [json.loads(steps)[0]["llmCalls"][0]["response"] for (steps,) in stored] == list(ODD)


def test_a_value_that_json_cannot_hold_is_reported_and_spooled(agents, tmp_path):
    recorder = Recorder(agents, tmp_path / "spool.jsonl")
    run = make_run(steps=[make_step(pnl=float("nan"))])
    recorder.record(run.trajectory, run.calls)
    report = recorder.close()
    assert (report.written, report.spooled) == (0, 1) and "JSON" in report.errors[0]


def test_a_spool_that_cannot_be_written_is_reported_as_lost(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder(gone(tmp_path), tmp_path / "file" / "spool.jsonl")
    recorder.record(make_run().trajectory, [])
    report = recorder.close()
    assert (report.lost, report.spooled) == (1, 0) and len(report.errors) == 2


def test_a_damaged_spool_is_refused_with_its_line(agents, tmp_path):
    spool = tmp_path / "spool.jsonl"
    spool.write_text('{"error": "x", "runs": []}\nhalf a li')
    with pytest.raises(RecordingError, match="Line 2"):
        replay_spool(agents, spool)


def test_a_closed_recorder_refuses_more(agents, tmp_path):
    recorder = Recorder(agents, tmp_path / "spool.jsonl")
    assert recorder.close() is recorder.close()
    with pytest.raises(RecordingError, match="closed"):
        recorder.record(make_run().trajectory, [])


def test_flush_waits_until_all_is_written(agents, tmp_path):
    with Recorder(agents, tmp_path / "spool.jsonl") as recorder:
        for n in range(20):
            recorder.record(make_run(f"t{n}").trajectory, [])
        recorder.flush()
        assert count(agents, "trajectories") == 20
