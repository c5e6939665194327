"""The reader: each recorded row is used, counted or rejected with a reason, in the window in which it ended."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.database.connect import Recordings
from babylon_rl.errors import RecordingError, WindowIdError
from babylon_rl.recording import catalog, reader
from babylon_rl.recording.accounting import count_recorded
from babylon_rl.recording.reader import list_windows, read_evaluation, read_window, read_windows, whole_windows
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.rejected import rejected_frame
from babylon_rl.recording.summary import window_summary
from babylon_rl.recording.window import RecordedWindow, UsableTrajectory, provenance_of, window_revision
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row, make_run, make_step, steps_json

LATER = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1", "agent-2", "agent-3", "market-decision-engine")
        yield connection


def test_every_row_is_used_or_rejected_with_its_reason(connection):
    add_row(connection, "good")
    add_row(connection, "cut", stepsJson='[{"stepNumber": 0')
    add_row(connection, "shape", stepsJson='[{"stepNumber": "x"}]')
    add_row(connection, "list", stepsJson='{"a": 1}')
    add_row(connection, "empty", stepsJson="[]")
    add_row(connection, "status", finalStatus="timeout")
    add_row(connection, "pending", stepsJson=steps_json(0.0, action="pending"))
    add_row(connection, "no-pnl", finalPnL=None, stepsJson=steps_json(None))
    add_row(connection, "not-for-training", isTrainingData=False)
    add_row(connection, "engine", "market-decision-engine")
    add_row(connection, "elsewhere", endTime=datetime(2025, 1, 15, 11, 30, tzinfo=UTC))
    add_row(connection, "test:arm", isEvaluation=True, batchId="test:arm")
    window = read_window(Recordings.of(connection), WINDOW)
    assert [t.trajectory_id for t in window.usable] == ["good"]
    assert {r.trajectory_id: r.reason for r in window.rejected} == {
        "cut": "cut_off_json",
        "test:arm": "evaluation",
        "shape": "invalid_steps",
        "list": "not_a_list",
        "empty": "empty_steps",
        "status": "unfinished",
        "pending": "unfinished",
        "no-pnl": "no_pnl",
        "not-for-training": "not_training_data",
        "engine": "pseudo_agent",
    }
    assert all(r.detail for r in window.rejected)
    assert window.recorded == 11
    told = rejected_frame(window).set_index("trajectory_id")
    # What can be scored and not trained on is told beside what is of no use.
    assert tuple(told.loc["good", ["reason", "refused_for"]]) == ("no_llm_call", "training")
    assert set(told.drop("good")["refused_for"]) == {"scoring"}


def test_a_row_belongs_to_the_window_in_which_it_ended_and_to_no_other(connection):
    end = datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    add_row(connection, "null", windowId=None)
    add_row(connection, "odd", windowId="2025-01-15T10:30")
    add_row(connection, "label", windowId="benchmark-1")
    add_row(connection, "spelled", windowId="2025-01-15 10:00:00Z")
    add_row(connection, "foreign", windowId="2025-01-15T09:00")
    add_row(connection, "first-moment", windowId=None, endTime=end.replace(minute=0))
    add_row(connection, "next-hour", windowId=None, endTime=end.replace(hour=11, minute=0))
    window = read_window(Recordings.of(connection), WINDOW)
    assert {t.trajectory_id: t.misnamed for t in window.usable} == {
        "first-moment": False,
        "foreign": True,
        "label": True,
        "null": False,
        "spelled": False,
    }
    assert window.rejected == []
    before = read_window(Recordings.of(connection), "2025-01-15T09:00")
    assert before.usable == [] and before.rejected == []


@pytest.mark.parametrize("chunk", [1, 2, 500])
def test_a_range_is_read_as_its_windows_are_one_by_one(connection, monkeypatch, chunk):
    monkeypatch.setattr(reader, "CHUNK", chunk)
    monkeypatch.setattr(catalog, "BATCH", chunk)
    ids = [shift_window(WINDOW, hours) for hours in range(-2, 3)]
    names = [None, "2025-01-15T10:30", "nonsense", *ids]
    chosen = random.Random(chunk)
    off_the_hour = 0
    for number in range(40):
        end = parse_window_id(chosen.choice(ids)) + timedelta(minutes=chosen.randrange(60))
        changes = {"windowId": chosen.choice(names), "endTime": end, "isEvaluation": chosen.random() < 0.2}
        off_the_hour += changes["windowId"] == "2025-01-15T10:30"
        add_row(connection, f"t{number:02}", f"agent-{chosen.randint(1, 3)}", **changes)
    # In any order, also of windows that are no range.
    for wanted in (ids, ids[::-1], [ids[3], ids[0]]):
        together = list(read_windows(Recordings.of(connection), wanted))
        assert together == [read_window(Recordings.of(connection), window_id) for window_id in wanted]
    windows = list(read_windows(Recordings.of(connection), ids))
    assert count_recorded(Recordings.of(connection), ids) == {w.window_id: w.recorded for w in windows}
    assert sum(w.recorded for w in windows) == 40 - off_the_hour


def test_a_range_takes_one_scan_of_the_recordings(connection, monkeypatch):
    looked = []
    scan = reader.named_elsewhere
    monkeypatch.setattr(reader, "named_elsewhere", lambda *given: looked.append(given) or scan(*given))
    list(read_windows(Recordings.of(connection), [shift_window(WINDOW, hours) for hours in range(20)]))
    assert len(looked) == 1


@pytest.mark.parametrize(
    "told, final, expected",
    [
        ([0.0], 0.0, 0.0),
        ([1000.0], 1010.0, 10.0),
        ([1000.0, 990.0], None, -10.0),
        ([None, 5.0, None], 2.0, -3.0),
        ([1000.0, None, 1004.0], 1003.0, 3.0),
    ],
)
def test_window_pnl_is_the_last_known_less_the_first_known(connection, told, final, expected):
    add_row(connection, "t", stepsJson=steps_json(*told), finalPnL=final)
    assert read_window(Recordings.of(connection), WINDOW).usable[0].window_pnl == expected


def test_pnl_of_an_earlier_hour_does_not_count(connection):
    add_row(connection, "t", stepsJson=steps_json(100.0, 150.0, 160.0, first_minute=-1), finalPnL=170.0)
    assert read_window(Recordings.of(connection), WINDOW).usable[0].first_pnl == 150.0


def test_texts_missing_in_the_steps_are_taken_from_the_call_log(connection):
    add_row(connection, "bare")
    add_row(connection, "told", stepsJson=steps_json(0.0, calls=True))
    assert [t.provenance for t in read_window(Recordings.of(connection), WINDOW).usable] == [
        "no_text",
        "no_logprobs",
    ]
    connection.execute(
        """INSERT INTO llm_call_logs (id, "trajectoryId", "stepId", "callId", timestamp, model, purpose, "systemPrompt",
           "userPrompt", response, temperature, "maxTokens")
           VALUES ('1', 'bare', 'bare-step-0', 'bare-call-0-0', now(), 'q', 'action', 's', 'u', 'r', 0.5, 9)"""
    )
    bare = read_window(Recordings.of(connection), WINDOW).usable[0]
    assert bare.provenance == "no_logprobs"
    assert (bare.steps[0].llm_calls[0].user_prompt, bare.steps[0].llm_calls[0].max_tokens) == ("u", 9)


def test_a_run_is_logged_only_where_every_action_call_has_its_logprobs():
    run = make_run()
    steps, calls = run.trajectory.steps, run.calls
    assert provenance_of(steps, calls) == "logged"
    assert provenance_of([*steps, make_step(1)], calls) == "no_logprobs"
    assert provenance_of([*steps, make_step(1, calls=0)], calls) == "logged"
    assert provenance_of([make_step(0, calls=2)], calls) == "no_logprobs"
    assert provenance_of([make_step(0, calls=0)], calls) == "no_text"
    short = type(calls[0])(**{f: getattr(calls[0], f) for f in calls[0].__struct_fields__} | {"logprobs": [-1.0]})
    assert provenance_of(steps, [short]) == "no_logprobs"


def test_the_revision_changes_with_what_agents_wrote_and_not_with_what_training_writes_back(connection):
    empty = read_window(Recordings.of(connection), WINDOW).revision
    write_runs(connection, [make_run("t1")])
    one = read_window(Recordings.of(connection), WINDOW).revision
    connection.execute(
        """UPDATE trajectories SET "aiJudgeReward" = 0.5, "usedInTraining" = true, "updatedAt" = now(),
           "stepsJson" = replace("stepsJson", '"reward":0.0', '"reward":1.0'), "totalReward" = 9"""
    )
    assert '"reward":1.0' in connection.execute('SELECT "stepsJson" FROM trajectories').fetchone()[0]
    assert read_window(Recordings.of(connection), WINDOW).revision == one != empty
    write_runs(connection, [make_run("t2", "agent-2")])
    two = read_window(Recordings.of(connection), WINDOW).revision
    connection.execute("UPDATE babylon_rl.recorded_calls SET logprobs = '{-9,-9}' WHERE trajectory_id = 't2'")
    assert len({empty, one, two, read_window(Recordings.of(connection), WINDOW).revision}) == 4


@given(st.permutations(["a", "b", "c"]))
def test_the_revision_does_not_depend_on_the_order_of_rows(names):
    rows = [_usable(name, "agent-1", 0, 1) for name in names]
    assert window_revision(rows) == window_revision(sorted(rows, key=lambda t: t.trajectory_id))


def test_a_step_with_half_a_surrogate_pair_is_read(connection):
    add_row(connection, "t", stepsJson=steps_json(0.0, calls=True).replace('"r"', '"half \\ud800 pair \\u0000"'))
    (read,) = read_window(Recordings.of(connection), WINDOW).usable
    assert read.steps[0].llm_calls[0].response == "half \ufffd pair \x00"
    assert read.not_trainable == "not_storable_text"


def test_windows_are_listed_by_the_hour_in_which_rows_ended(connection):
    add_row(connection, "a")
    add_row(connection, "b", windowId=None)
    add_row(connection, "c", "agent-2", endTime=datetime(2025, 1, 15, 12, tzinfo=UTC))
    add_row(connection, "e", "agent-2", isEvaluation=True, batchId="test:x")
    listed = list_windows(connection).to_dict("records")
    assert listed == [
        {"window_id": WINDOW, "recorded": 2, "agents": 1, "evaluation": 1},
        {"window_id": "2025-01-15T12:00", "recorded": 1, "agents": 1, "evaluation": 0},
    ]


def test_evaluation_runs_are_read_by_split_and_arm(connection):
    for arm, pnl in (("base", 1.0), ("ckpt:2", 2.0)):
        write_runs(
            connection,
            [make_run(f"{arm}{a}", a, pnl=pnl, is_evaluation=True, is_training_data=False, batch_id=f"test:{arm}")
             for a in ("agent-1", "agent-2")],
        )  # fmt: skip
    write_runs(connection, [make_run("v", is_evaluation=True, batch_id="validation:base"), make_run("train")])
    frame = read_evaluation(connection, [WINDOW], "test")
    assert list(frame.columns) == ["window_id", "arm", "agent_id", "pnl", "capital", "valid"]
    assert frame[["arm", "agent_id", "pnl", "capital", "valid"]].values.tolist() == [
        ["base", "agent-1", 1.0, 1000.0, True],
        ["base", "agent-2", 1.0, 1000.0, True],
        ["ckpt:2", "agent-1", 2.0, 1000.0, True],
        ["ckpt:2", "agent-2", 2.0, 1000.0, True],
    ]
    assert read_evaluation(connection, [WINDOW], "unseen").empty
    assert whole_windows(connection, [WINDOW], 2, "test:base") == {WINDOW}
    assert whole_windows(connection, [WINDOW], 2) == set()
    assert whole_windows(connection, [WINDOW], 1) == {WINDOW}


def test_an_evaluation_that_cannot_be_read_is_an_error_and_not_a_hole(connection):
    add_row(connection, "e", isEvaluation=True, batchId="test:base", stepsJson="[")
    with pytest.raises(RecordingError, match="play the evaluation again"):
        read_evaluation(connection, [WINDOW], "test")


def test_a_bad_window_id_is_refused(connection):
    with pytest.raises(WindowIdError):
        read_window(Recordings.of(connection), "2025-01-15T10:30")


def _usable(name: str, agent: str, first: float, last: float, minute: int = 0) -> UsableTrajectory:
    start = datetime(2025, 1, 15, 10, minute, tzinfo=UTC)
    return UsableTrajectory(
        name, agent, WINDOW, start, start + timedelta(minutes=1), [make_step()], first, last, last - first, None, [],
        "no_text", name,
    )  # fmt: skip


def test_an_agents_window_pnl_spans_all_its_trajectories_and_counts_none_twice():
    window = RecordedWindow(
        WINDOW, [_usable("b", "x", 110, 105, 30), _usable("a", "x", 100, 108, 10), _usable("c", "y", 0, 0)], []
    )
    assert window.pnl_by_agent() == {"x": 5, "y": 0}


def test_the_summary_says_what_state_a_window_is_in_and_why():
    three = [_usable(a, a, 0, p) for a, p in (("x", 1), ("y", 2), ("z", 6))]
    window = RecordedWindow(WINDOW, three, [], window_revision(three))
    ready = window_summary(window, 3, LATER)
    assert (ready["status"], ready["agents"], ready["recorded"], ready["pnl_mean"], ready["pnl_max"]) == (
        "ready",
        3,
        3,
        3,
        6,
    )
    assert window_summary(window, 4, LATER)["status"] == "too_few_agents"
    assert window_summary(window, 3, datetime(2025, 1, 15, 10, 59, tzinfo=UTC))["status"] == "open"
    assert window_summary(RecordedWindow(WINDOW, [], []), 3, LATER)["pnl_mean"] is None
