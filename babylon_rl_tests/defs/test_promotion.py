"""The jobs `promote_checkpoint` and `roll_back`: on evidence, against it with a reason, booked once, and back."""

import dagster as dg
import pandas as pd
import pytest

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import checkpoint_evaluations
from babylon_rl.definitions import build_defs
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.compare import COLUMNS
from babylon_rl.reporting import status
from babylon_rl.training.runs import Checkpoint, save_checkpoint
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.rounds import OpenRun, window


@pytest.fixture
def opened(database, tmp_path) -> OpenRun:
    """A run with two checkpoints whose weights are there."""
    opened = OpenRun(database, tmp_path)
    for step in (1, 2):
        folder = tmp_path / f"run@{step}"
        folder.mkdir()
        (folder / WEIGHTS_FILE).write_text(f"weights {step}")
        made = Checkpoint(
            checkpoint_id=f"run@{step}", training_run="run", parent_id=f"run@{step - 1}", snapshot_id=None,
            base_model="tiny", step=step, path=str(folder), weights_sha256=weights_digest(folder),
            last_window=window(step), metrics={}, state="ready",
        )  # fmt: skip
        with database.connect() as connection:
            save_checkpoint(connection, made)
    return opened


def evaluate(database, candidate: str, decision: str, place: int = 9) -> None:
    """Store an evaluation of the candidate on test windows."""
    rows = [
        (
            window(place),
            candidate,
            baseline,
            "test",
            "paired-by-window",
            9,
            1.0,
            0.5,
            1.5,
            2.0,
            1.0,
            decision,
            "It earned.",
        )
        for baseline in ("run@0", "hold")
    ]
    with database.connect() as connection:
        replace_windows(connection, checkpoint_evaluations, [window(place)], pd.DataFrame(rows, columns=list(COLUMNS)))


def promote(database, instance, checkpoint: str, **config) -> dg.ExecuteInProcessResult:
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    asked = {"checkpoint": checkpoint, "who": "an operator", "why": "it trades better", **config}
    return definitions.resolve_job_def("promote_checkpoint").execute_in_process(
        instance=instance, run_config={"ops": {"promote": {"config": asked}}}, raise_on_error=False
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def booked(database) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(
            "SELECT from_checkpoint, to_checkpoint, who FROM babylon_rl.promotions ORDER BY promotion_id"
        ).fetchall()


def test_what_the_evaluation_promotes_is_booked_once_with_what_it_rests_on(database, instance, opened):
    evaluate(database, "run@1", "promote")
    result = promote(database, instance, "run@1")
    assert result.success and result.output_for_node("promote") == "nothing -> run@1"
    assert promote(database, instance, "run@1").success
    assert booked(database) == [(None, "run@1", "an operator")]
    assert status(database)["promoted"]["interval"] == [0.5, 1.5]


@pytest.mark.parametrize("decision", [None, "keep"])
def test_without_evidence_it_takes_a_word_and_a_reason(database, instance, opened, decision):
    evaluate(database, "run@1", "promote", place=8)
    if decision:
        evaluate(database, "run@1", decision)  # the latest counts
    name = "run@1" if decision else "run@2"
    refused = promote(database, instance, name)
    assert not refused.success and failure(refused).startswith("Not promoted.") and booked(database) == []
    assert "why" in failure(promote(database, instance, name, despite_evidence=True, why=" "))
    assert promote(database, instance, name, despite_evidence=True).success
    assert booked(database) == [(None, name, "an operator")]
    assert status(database)["promoted"]["why"] == "it trades better"


def test_going_back_is_one_more_row(database, instance, opened):
    for name in ("run@1", "run@2", "run@1", "run@0"):
        assert promote(database, instance, name, despite_evidence=True).success
    assert [row[:2] for row in booked(database)] == [
        (None, "run@1"), ("run@1", "run@2"), ("run@2", "run@1"), ("run@1", "run@0")
    ]  # fmt: skip


def test_weights_that_are_gone_or_others_are_not_served(database, instance, opened, tmp_path):
    (tmp_path / "run@1" / WEIGHTS_FILE).write_text("others")
    (tmp_path / "run@2" / WEIGHTS_FILE).unlink()
    for name, said in (("run@1", "hash differs"), ("run@2", "has no"), ("run@9", "no checkpoint")):
        assert said in failure(promote(database, instance, name, despite_evidence=True))
    assert booked(database) == []


def test_the_way_back_is_a_job_that_names_where_it_went(database, instance, opened, tmp_path):
    for name in ("run@1", "run@2"):
        assert promote(database, instance, name, despite_evidence=True).success

    def back(**config) -> dg.ExecuteInProcessResult:
        definitions = build_defs({"database": DatabaseResource(url=database.url)})
        return definitions.resolve_job_def("roll_back").execute_in_process(
            instance=instance,
            run_config={"ops": {"go_back": {"config": {"who": "an operator", "why": "it loses", **config}}}},
            raise_on_error=False,
        )

    made = back()
    assert made.success and made.output_for_node("go_back") == "run@2 -> run@1"
    assert "was taken back itself" in failure(back(to="run@2"))
    (tmp_path / "run@1" / WEIGHTS_FILE).unlink()
    assert back(to="run@0").output_for_node("go_back") == "run@1 -> run@0"
    assert "Nothing was served before" in failure(back())
