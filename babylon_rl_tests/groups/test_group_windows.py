"""Groups of a range: what a window's group says is the same in whichever range it is made, and rests on the past."""

import pandas as pd
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import art_groups, judge_calibration, metadata, scored_trajectories
from babylon_rl.database.window_rows import write_rows
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.groups.trained_view import decode_group
from babylon_rl.groups.verification import alarming
from babylon_rl.groups.windows import group_windows
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.scoring.windows import score_windows
from babylon_rl.settings import Settings
from babylon_rl.windows import shift_window
from babylon_rl_tests.recording.runs import WINDOW, add_agents, make_run

AGENTS = {"agent-0": 20.0, "agent-1": 2.0, "agent-2": -4.0, "agent-3": -18.0}
IDS = [shift_window(WINDOW, hour) for hour in range(6)]
SETTINGS = Settings(min_agents_per_window=2)


def play(connection, hours, extra=0.0):
    for hour in hours:
        for place, (agent, level) in enumerate(AGENTS.items()):
            pnl = level + (hour * 7 + place * 5) % 4 + extra
            write_runs(connection, [make_run(f"t-{hour}-{agent}", agent, window=IDS[hour], pnl=pnl)])


def score(database, ids):
    """Write windows, outcomes and scores."""
    tables = metadata.tables
    with database.connect() as connection:
        write_rows(connection, tables["babylon_rl.windows"], summarize_windows(database, ids, 2))
        outcomes = outcome_windows(database, ids)
        write_rows(connection, tables["babylon_rl.market_outcomes"], outcomes)
        write_rows(connection, scored_trajectories, score_windows(database, ids, outcomes.frame, "alpha"))


def grouped(database, ids, settings=SETTINGS, calibration=None) -> dict[str, dict]:
    """Make and write the groups; their rows by window."""
    with database.connect() as connection:
        windows = read_frame(connection, current_rows(metadata.tables["babylon_rl.windows"], ids))
        scored = read_frame(connection, current_rows(scored_trajectories, ids))
    rows = group_windows(database, ids, windows, scored, calibration, settings)
    assert not rows.failed
    with database.connect() as connection:
        write_rows(connection, art_groups, rows)
    return {row["window_id"]: row for row in rows.frame.to_dict("records")}


@pytest.fixture
def played(database):
    with database.connect() as connection:
        add_agents(connection, *AGENTS)
        play(connection, range(5))
    score(database, IDS[:5])
    return database


def test_a_window_comes_to_the_same_row_in_any_range_and_later_windows_change_nothing(played):
    whole = grouped(played, IDS[:5])
    assert whole[IDS[4]]["settings"]["history"] == {
        "windows": 4, "last": IDS[3], "shrinkage": whole[IDS[4]]["settings"]["history"]["shrinkage"]
    }  # fmt: skip
    baselines = whole[IDS[4]]["baselines"]
    assert sorted(baselines, key=baselines.get) == ["agent-3", "agent-2", "agent-1", "agent-0"]
    assert baselines["agent-0"] > 0.01 > -0.01 > baselines["agent-3"] and whole[IDS[4]]["agent_share"] > 0.9
    assert set(whole[IDS[0]]["baselines"].values()) == {0.0} and whole[IDS[0]]["agent_share"] is None
    for window_id in IDS[:5]:
        assert grouped(played, [window_id])[window_id] == whole[window_id]
    with played.connect() as connection:
        play(connection, [5], extra=100.0)
    score(played, IDS[5:])
    again = grouped(played, IDS)
    assert {window_id: again[window_id] for window_id in IDS[:5]} == whole
    # Without a single member nothing is asked for, so that a window that trains nothing stays as it is.
    with played.connect() as connection:
        connection.execute('UPDATE trajectories SET "isEvaluation" = true WHERE "trajectoryId" LIKE \'t-5-%\'')
    score(played, IDS[5:])
    assert grouped(played, IDS[5:])[IDS[5]]["settings"].get("history") is None


@pytest.mark.parametrize("split", ["validation", "test", "unseen"])
def test_a_game_of_an_evaluation_is_in_no_group_though_any_text_may_be(played, split):
    last = IDS[4]
    with played.connect() as connection:
        # Texts without tokens, which are admitted whoever wrote them; two of them were played to compare arms.
        connection.execute("DELETE FROM babylon_rl.recorded_calls WHERE trajectory_id LIKE 't-4-%'")
        connection.execute(
            """UPDATE trajectories SET "isEvaluation" = true, "isTrainingData" = false, "batchId" = %s
               WHERE "trajectoryId" IN ('t-4-agent-0', 't-4-agent-1')""",
            (f"{split}:somebody@3",),
        )
    score(played, [last])
    row = grouped(played, [last])[last]
    assert row["status"] == "trainable", row["reason"]
    group = decode_group(row["group"])
    assert [member.trajectory_id for member in group.members] == ["t-4-agent-2", "t-4-agent-3"]
    trained = make_snapshot([group], "run", {}, 0, lineage=Lineage("run", {"run@0": 0}, 0)).groups[0].members
    assert [member.label for member in trained] == ["no_logprobs"] and trained[0].trajectory_id > "t-4-agent-1"


def test_scores_of_the_run_count_before_they_are_written(played):
    stored = grouped(played, IDS[3:5])
    with played.connect() as connection:
        windows = read_frame(connection, current_rows(metadata.tables["babylon_rl.windows"], IDS[3:5]))
        scored = read_frame(connection, current_rows(scored_trajectories, IDS[3:5]))
        connection.execute(
            "UPDATE babylon_rl.scored_trajectories SET superseded_at = now() WHERE window_id = %s", [IDS[3]]
        )
    rows = group_windows(played, IDS[3:5], windows, scored, settings=SETTINGS).frame.to_dict("records")
    assert {row["window_id"]: row["baselines"] for row in rows} == {w: stored[w]["baselines"] for w in stored}


def test_plain_centring_over_enough_windows_is_refused_for_its_agents(played, monkeypatch):
    monkeypatch.setattr("babylon_rl.groups.standing.LEAST_TO_REFUSE", 4)
    rows = grouped(played, IDS[:5], SETTINGS.model_copy(update={"agent_baseline": "none"}))
    statuses = [rows[window_id]["status"] for window_id in IDS[:5]]
    assert statuses == ["trainable"] * 3 + ["agent_bias"] * 2


def test_a_window_whose_judge_is_set_aside_says_so_and_stands_in_the_table(played):
    calibration = pd.DataFrame(
        [{"window_id": IDS[1], "verdict": "set_aside", "reason": "its floor", "judge": "m", "noise": None}]
    )
    assert set(calibration) <= set(judge_calibration.c.keys())
    with played.connect() as connection:
        connection.execute("UPDATE babylon_rl.scored_trajectories SET scorer = 'of-somebody', reward = 0.5")
    rows = grouped(played, IDS[:3], calibration=calibration)
    assert [rows[window_id]["scorer"] for window_id in IDS[:3]] == ["of-somebody", "alpha", "of-somebody"]
    assert [rows[window_id]["judge_verdict"] for window_id in IDS[:3]] == [None, "set_aside", None]
    # The history of alpha's rewards stands beside the other scores.
    assert rows[IDS[1]]["status"] == "trainable" and rows[IDS[1]]["baselines"]["agent-0"] > 0
    assert rows[IDS[0]]["status"] == "no_spread"
    with played.connect() as connection:
        stored = connection.execute(
            "SELECT window_id, scorer, judge_verdict FROM babylon_rl.art_groups WHERE superseded_at IS NULL ORDER BY 1"
        ).fetchall()
    assert stored == [(w, rows[w]["scorer"], rows[w]["judge_verdict"]) for w in IDS[:3]]


def test_alarms_are_found_by_window(played):
    grouped(played, IDS[:2])
    with played.connect() as connection:
        assert alarming(connection, IDS).empty
        connection.execute(
            """UPDATE babylon_rl.art_groups SET alarms = '[{"kind": "all_hold", "detail": "HOLD 100 %%", "value": 1.0,
               "limit": 0.95}]' WHERE window_id = %s""",
            [IDS[1]],
        )
        found = alarming(connection, IDS).to_dict("records")
    assert found == [{"window_id": IDS[1], "kind": "all_hold", "detail": "HOLD 100 %", "value": 1.0, "limit": 0.95}]
