"""The bench of scoring: what it measures is scored, traded and quoted, and a missed rate is said."""

import msgspec
import pytest

from babylon_rl.bench.scoring import LEAST, Case, Scored, measure_scoring, quoted_runs, recorded_runs
from babylon_rl.scoring.features import features
from babylon_rl.scoring.scorers import WindowScoring, scorer_of


def test_every_kind_scorer_and_size_is_measured():
    found = measure_scoring(16, 1, 0, lambda line: None)
    assert len(found.cases) == 4 * (1 + 2 * 2)
    assert all(case.rate > 0 and (case.scorer is None) == (case.frame is None) for case in found.cases)
    assert [case.limited for case in found.cases if case.name == "20 steps"] == [False] * 5
    assert "windows of 1,000" in found.table() and len(found.as_json()["cases"]) == len(found.cases)


def test_the_measured_runs_trade_and_the_quoted_ones_have_values():
    runs, outcomes = quoted_runs(40, 0)
    ranked = WindowScoring("2025-01-15T00:00", outcomes, scorer_of("alpha")).ranked(runs)
    assert all(one.seen.action_values for one in ranked)
    assert any(one.score.reward for one in ranked)
    assert [features(run, outcomes).trades_succeeded for run in recorded_runs(2, 20, 0)] == [7, 7]


@pytest.mark.parametrize(("limited", "reached"), [(True, False), (False, True)])
def test_a_rate_that_is_missed_is_said_where_there_is_one(limited, reached):
    slow = Case(
        name="3 steps", scorer="alpha", window=8, trajectories=LEAST, limited=limited, seconds=[2.0], frame=[3.0]
    )
    fast = msgspec.structs.replace(slow, seconds=[0.5])
    assert Scored(cases=[fast, slow]).reached is reached and Scored(cases=[fast]).reached
    assert ("MISSED" in Scored(cases=[fast, slow]).table()) is not reached
