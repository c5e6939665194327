import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.database.tables import metadata
from babylon_rl.errors import RecordingError, SettingsError
from babylon_rl.scoring.scorers import OURS, score_window
from babylon_rl.scoring.values import squash
from babylon_rl_tests.scoring import made


def by_id(frame):
    return frame.set_index("trajectory_id")


def test_alpha_is_pnl_over_capital_less_exposure_times_the_markets_move():
    window = made.recorded(made.trajectory("a", "BUY", 4.8), made.trajectory("b", "SELL", -5.2))
    scored = by_id(score_window(window, made.outcomes()))
    # The other tickers +0.5 %, exposure 10 % of capital: 0.05 % of capital is the market's.
    assert scored.loc["a", "reward"] == pytest.approx(squash(0.0048 - 0.0005))
    assert scored.loc["b", "reward"] == pytest.approx(squash(-0.0052 + 0.0005))
    assert scored.loc["a", "parts"]["market_part"] == pytest.approx(0.0005)
    assert scored.loc["a", "parts"]["squashed_from"] == pytest.approx(0.0043)


def test_a_tickers_own_move_is_not_the_markets():
    window = made.recorded(made.trajectory("a", "BUY", 5.0))
    alone = score_window(window, made.outcomes(ACME=0.05))
    assert alone.loc[0, "reward"] == pytest.approx(squash(0.005))
    for others in ({"BOLT": 0.05}, {"BOLT": 0.02, "CRUX": 0.08}):
        # All moved alike: nothing of it was foreseen.
        assert score_window(window, made.outcomes(ACME=0.05, **others)).loc[0, "reward"] == pytest.approx(0.0)


def test_a_question_is_not_netted_against_the_tickers():
    window = made.recorded(made.trajectory("q", "BUY", 5.0, instrument="MOON"))
    assert score_window(window, made.outcomes()).loc[0, "reward"] == pytest.approx(squash(0.005))


def test_holding_is_exactly_zero_even_where_old_positions_moved():
    window = made.recorded(made.trajectory("h", "HOLD", 3.0), made.trajectory("g", "HOLD", 0.0))
    assert list(score_window(window, made.outcomes())["reward"]) == [0.0, 0.0]


def test_reason_is_one_line_that_a_person_reads():
    window = made.recorded(made.trajectory("a", "BUY", 4.1), made.trajectory("h", "HOLD"))
    reasons = by_id(score_window(window, made.outcomes(ACME=0.003)))["reason"]
    assert reasons["a"] == "earned $4.10 (0.41 % of $1,000) BUY ACME; market +0.3 %"
    assert reasons["h"] == "earned $0.00 (0.00 % of $1,000) HOLD; market +0.3 %"


def test_columns_are_those_of_the_table():
    table = metadata.tables["babylon_rl.scored_trajectories"]
    history = {"row_id", "digest", "created_at", "superseded_at"}
    for window in (made.recorded(), made.recorded(made.trajectory("a"))):
        assert set(score_window(window, made.outcomes()).columns) == set(table.columns.keys()) - history


@given(st.integers(0, 1000), st.sampled_from([scorer.name for scorer in OURS]))
def test_scores_do_not_depend_on_the_order_of_rows(seed, scorer):
    own = [made.trajectory(str(i), "BUY", float(i % 3)) for i in range(5)]
    expected = score_window(made.recorded(*own), made.outcomes(), scorer)
    rows = made.outcomes().sample(frac=1, random_state=seed)
    found = score_window(made.recorded(*made.shuffled(own, seed)), rows, scorer)
    pd.testing.assert_frame_equal(found, expected)
    assert list(found["rank"]) == [1, 2, 3, 4, 5]
    assert list(found["reward"]) == sorted(found["reward"], reverse=True)


def test_outcomes_of_other_windows_change_nothing():
    window = made.recorded(made.trajectory("a", "BUY", 4.8))
    other = made.outcomes("2026-01-05T11:00", ACME=-0.5)
    expected = score_window(window, made.outcomes())
    pd.testing.assert_frame_equal(score_window(window, pd.concat([other, made.outcomes()])), expected)


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(RecordingError, match="trajectory a"):
        score_window(made.recorded(made.trajectory("a", "BUY", math.nan)), made.outcomes())


def test_a_trajectory_without_capital_is_shown_and_not_logged():
    scored = score_window(made.recorded(made.trajectory("a", "HOLD", 2.0, balance=0.0)), made.outcomes())
    assert scored.loc[0, "provenance"] == "no_capital" and scored.loc[0, "reward"] == 0.0


def test_an_unknown_scorer_names_the_known_ones():
    with pytest.raises(SettingsError, match="alpha, blend, heuristic, ruler"):
        score_window(made.recorded(), made.outcomes(), "luck")
