"""Asset `judge_calibration` on a real instance: judged windows become a verdict that is shown, and go stale."""

import dagster as dg
import pandas as pd
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows, replace_windows
from babylon_rl.database.tables import art_groups, judge_calibration, scored_trajectories
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.metadata.calibration import calibration_metadata
from babylon_rl.defs.metadata.plots import INLINE
from babylon_rl.staleness import stale_rows
from babylon_rl_tests.defs.ranges import materialize, record, span
from babylon_rl_tests.scoring.judged import judge_json

LATER = DATA_ASSETS[3:]


def judge(database: Database, window_ids: list[str], slope: float, digest: str) -> None:
    """Judgments in the stored scores: alpha times the slope, two repeats alike."""
    with database.connect() as connection:
        frame = read_frame(connection, current_rows(scored_trajectories, window_ids)).drop(columns="digest")
        frame["hindsight_score"] = frame["process_score"] = (0.5 + slope * frame["outcome_score"]).clip(0, 1)
        frame["judge"] = [
            judge_json([score, score], [n % 8, 7 - n % 8], 8, 100 + 7 * n, digest)
            for n, score in enumerate(frame["hindsight_score"])
        ]
        replace_windows(connection, scored_trajectories, window_ids, frame)


def rows(database: Database, table) -> pd.DataFrame:
    with database.connect() as connection:
        return read_frame(connection, current_rows(table)).set_index("window_id")


def stale(database: Database) -> dict[tuple[str, str], str]:
    with database.connect() as connection:
        return {(asset, window_id): why for asset, window_id, why in stale_rows(connection).values.tolist()}


def check(result) -> dg.AssetCheckEvaluation:
    (found,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "judge_holds_its_floors"]
    return found


def test_judged_windows_get_a_verdict_that_their_groups_carry_until_it_changes(database, instance, monkeypatch):
    monkeypatch.setenv("BABYLON_RL_JUDGE_LEAST_WINDOWS", "3")
    ids = record(database, 4)
    assert materialize(database, instance, span(ids[0], ids[-1])).success and not stale(database)
    assert set(rows(database, judge_calibration)["verdict"]) == set(rows(database, art_groups)["judge_verdict"]) == {
        "no_judge"
    }  # fmt: skip

    judge(database, ids, 10.0, "asked-1")
    told = stale(database)
    assert {asset for asset, _ in told} == set(LATER) and {w for _, w in told} == set(ids)
    assert told["judge_calibration", ids[0]] == "the scores changed since their judge was calibrated"
    result = materialize(database, instance, span(ids[0], ids[-1]), LATER)
    assert result.success and not stale(database) and check(result).passed
    found = rows(database, judge_calibration)
    assert found["verdict"].tolist() == ["unproven", "unproven", "trusted", "trusted"]
    assert found["agreement"].tolist() == [1.0] * 4 and found["windows"].tolist() == [1, 2, 3, 4]
    assert rows(database, art_groups)["judge_verdict"].tolist() == found["verdict"].tolist()

    judge(database, ids, -10.0, "asked-2")
    result = materialize(database, instance, span(ids[0], ids[-1]), LATER[:1])
    assert result.success and rows(database, judge_calibration)["verdict"].iloc[-1] == "set_aside"
    failed = check(result)
    assert not failed.passed and failed.severity == dg.AssetCheckSeverity.WARN
    assert failed.metadata["window_ids"].value == ids[2:]
    shown = {m.partition: m.metadata for m in result.asset_materializations_for_node("judge_calibration")}[ids[-1]]
    assert shown["status"].value == "set_aside" and "floor +0.00" in shown["reason"].value
    assert shown["agreement with alpha"].value == -1.0 and shown["windows pooled"].value == 4
    assert "data:image/svg+xml" in shown["rank correlation, 95 % interval"].value
    assert "data:image/svg+xml" in shown["agreement with alpha by window"].value
    assert all(("art_groups", w) in stale(database) for w in ids)


def test_a_group_whose_verdict_is_another_is_stale_and_one_that_carries_none_is_not(database, instance):
    ids = record(database, 2)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    with database.connect() as connection:
        connection.execute("UPDATE babylon_rl.judge_calibration SET verdict = 'set_aside'")
        connection.execute("UPDATE babylon_rl.art_groups SET judge_verdict = NULL WHERE window_id = %s", (ids[1],))
    assert stale(database) == {("art_groups", ids[0]): "the judge's verdict was no_judge when the group was built"}


def test_what_is_computed_from_stale_scores_is_stale(database, instance):
    ids = record(database, 2)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    with database.connect() as connection:
        connection.execute("UPDATE babylon_rl.windows SET revision = 'other' WHERE window_id = %s", (ids[1],))
    told = stale(database)
    assert told["judge_calibration", ids[1]] == "its scores are stale: the window changed since it was scored"
    assert {w for _, w in told} == {ids[1]}


@pytest.mark.parametrize("verdict", ["unproven", "set_aside"])
def test_the_plots_of_a_judge_stand_inline_and_unknown_figures_are_left_out(verdict):
    names = ("agreement", "repeat", "order", "length")
    ends = {f"{name}_{end}": -0.12345 if end == "low" else 0.98765 for name in names for end in ("low", "high")}
    own = {"runs": 8, "agreement": 0.5, "repeat": None, "order": 0.1, "length": None}
    row = {"verdict": verdict, "reason": "said", "judge": "model digest", "runs": 8, "windows": 200, "noise": 0.1,
           "agreement": 0.43210, "repeat": 0.5, "order_bias": -0.1, "length_bias": None, **ends,
           "statistics": {"reward": "hindsight", "hindsight": own, "process": own}}  # fmt: skip
    row["length_low"] = row["length_high"] = None
    found = calibration_metadata({}, "2025-01-15T10:00", [row])
    assert (found["status"], found["reason"]) == (verdict, "said")
    assert len(found["rank correlation, 95 % interval"].value) < INLINE
    assert "with length of text" not in found and found["with itself"] == 0.5
    assert calibration_metadata({}, "2025-01-15T10:00", [])["status"] == "no row"
