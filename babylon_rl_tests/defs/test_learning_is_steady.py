"""The check on `trained_checkpoints`: one result a run, a warning where the last update's batch raised an alarm."""

import dagster as dg

from babylon_rl.defs.checks.learning_is_steady import learning_is_steady
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl_tests.defs.ranges import FIRST, materialize, span
from babylon_rl_tests.training.rounds import MIXED, ONE_SIDED, Rounds


def checked(database) -> dg.AssetCheckResult:
    return learning_is_steady(database=DatabaseResource(url=database.url))


def test_the_last_update_decides_and_a_warning_says_what_was_done(database, tmp_path):
    assert checked(database).passed
    rounds = Rounds(database, tmp_path)
    for number, verbs in enumerate((MIXED, ONE_SIDED), start=1):
        rounds.play(number, verbs, "run@0" if number == 1 else rounds.trained[0].checkpoint_id)
        rounds.update(number)
    result = checked(database)
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
    assert result.description == "one_sided (SELL 100 %): step_back"
    assert result.metadata["update"].value == rounds.windows(2)[-1]
    rounds.play(3, MIXED, "run@0")
    rounds.update(3)
    assert checked(database).passed


def test_a_run_over_a_range_has_one_result(database, instance):
    result = materialize(database, instance, span(FIRST, "2025-01-15T05:00"), ["trained_checkpoints"])
    assert result.success
    found = [e for e in result.get_asset_check_evaluations() if e.check_name == "learning_is_steady"]
    assert [evaluation.passed for evaluation in found] == [True]
