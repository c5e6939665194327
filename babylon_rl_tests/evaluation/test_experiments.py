"""The life of an experiment over recorded hours of the simulated market: what starts, what ends it, what is promoted."""

import pytest

from babylon_rl.evaluation.looks import looks
from babylon_rl.training.runs import promoted
from babylon_rl.windows import shift_window
from babylon_rl_tests.evaluation.two_arms import BASELINE, CANDIDATE, TwoArms


@pytest.fixture
def arms(database, tmp_path) -> TwoArms:
    made = TwoArms(database, tmp_path)
    made.play_past()
    return made


def test_a_better_candidate_is_promoted_by_looks_hour_by_hour(arms):
    experiment = arms.start()
    found = arms.follow(experiment)
    ended = arms.load(experiment)
    assert ended.state == "promote" and found[-1].decision == "promote" and found[-1].low > 0
    assert {one.decision for one in found[:-1]} == {"go on"} and len(found) < experiment.horizon
    before, after = arms.booked()
    assert after[:3] == (BASELINE, CANDIDATE, f"experiment {experiment.experiment_id}")
    with arms.database.connect() as connection:
        evidence = promoted(connection)["evidence"]
        assert len(looks(connection, experiment.experiment_id)) == len(found)
    assert evidence["look"] == found[-1].digest and evidence["interval"] == [found[-1].low, found[-1].high]
    # Agents keep their arm until the hour of the look is over.
    assert evidence["from_window"] == shift_window(experiment.first_window, len(found) + 1) == ended.end_window
