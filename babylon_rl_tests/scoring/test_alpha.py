"""Scorer `alpha`: what its squash keeps, what a decision's own reward is, and what was not done would have earned."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import ScoringError
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.scorers import score_window
from babylon_rl.scoring.seam import Score, Scorer
from babylon_rl.scoring.values import LIMIT, squash
from babylon_rl_tests.scoring import made

figures = st.floats(-1e150, 1e150)
cents = st.integers(-20_000, 20_000).map(lambda number: number / 100)


def traded(pnls, *, window_pnl=None, moved=(0.05, -0.02, 0.03), **own):
    """The score of a run with a step for each P&L, which its trade says of itself; None is a step that holds."""
    steps = [
        made.step(number, made.action("HOLD"), "HOLD")
        if pnl is None
        else made.step(number, made.action("SELL" if number % 3 else "BUY", pnl=pnl), "BUY")
        for number, pnl in enumerate(pnls)
    ]
    earned = math.fsum(pnl or 0.0 for pnl in pnls) if window_pnl is None else window_pnl
    window = made.recorded(made.trajectory("t", steps=steps, pnl=earned, **own))
    return score_window(window, made.outcomes(**dict(zip(("ACME", "BOLT", "CRUX"), moved, strict=True)))).iloc[0]


@given(figures)
def test_the_squash_is_odd_bounded_and_hardly_touches_a_usual_hour(raw):
    assert squash(-raw) == -squash(raw)
    assert abs(squash(raw)) <= LIMIT
    assert abs(squash(raw)) <= abs(raw) * (1 + 1e-12)
    if abs(raw) <= 0.005:
        assert squash(raw) == pytest.approx(raw, rel=1.3e-3)


@given(st.floats(0, 1e5), st.floats(1.001, 10))
def test_the_squash_keeps_the_order_where_a_clamp_or_tanh_no_longer_would(raw, factor):
    assert squash(raw) < squash(raw * factor) if raw > 1e-300 else squash(raw) >= 0
    assert math.tanh(20) == math.tanh(40) and squash(20 * LIMIT) < squash(40 * LIMIT)


def test_positions_larger_than_the_capital_count_as_capital_at_risk():
    large = made.action("BUY", notional=5000.0, fees=0.0)
    run = made.trajectory("l", steps=[made.step(0, large, "BUY")], pnl=250.0)
    score = score_window(made.recorded(run), made.outcomes(ACME=0.05, BOLT=0.05)).iloc[0]
    assert score["parts"]["capital_at_risk"] == 5000.0 and score["parts"]["pnl_over_capital"] == 0.05
    assert score["reward"] == 0.0  # all of it was the market's


def test_trading_to_and_fro_does_not_dilute_what_it_costs():
    to_and_fro = [made.action("BUY" if number % 2 == 0 else "SELL", notional=900.0) for number in range(10)]
    steps = [made.step(number, one, "BUY") for number, one in enumerate(to_and_fro)]
    score = score_window(made.recorded(made.trajectory("t", steps=steps, pnl=-20.0)), made.outcomes()).iloc[0]
    assert score["parts"]["capital_at_risk"] == 1000.0
    assert score["reward"] == pytest.approx(squash(-0.02))


@given(st.lists(st.none() | cents, min_size=1, max_size=8))
def test_the_rewards_of_decisions_sum_to_the_runs_and_holding_has_exactly_none(pnls):
    score = traded(pnls)
    assert list(score["decision_rewards"]) == [str(number) for number in range(len(pnls))]
    rewards = list(score["decision_rewards"].values())
    assert math.fsum(rewards) == pytest.approx(score["reward"], abs=1e-15 * (1 + len(rewards)), rel=1e-12)
    assert all(reward == 0.0 for reward, pnl in zip(rewards, pnls, strict=True) if pnl is None)
    own = [pnl / 1000 - (-0.1 if number % 3 else 0.1) * 0.005 for number, pnl in enumerate(pnls) if pnl is not None]
    factor = score["reward"] / math.fsum(own) if own and abs(math.fsum(own)) > 1e-9 else None
    if factor is not None:
        kept = [reward for reward, pnl in zip(rewards, pnls, strict=True) if pnl is not None]
        assert kept == pytest.approx([factor * one for one in own], rel=1e-6, abs=1e-12)


def test_what_rounding_leaves_between_trades_and_window_is_spread_over_the_trades():
    score = traded([10.0, 20.0, None], window_pnl=30.008)
    assert math.fsum(score["decision_rewards"].values()) == pytest.approx(score["reward"], rel=1e-14)


@pytest.mark.parametrize("pnls", [[10.0, 20.0], [10.0, None, 5.0]])
def test_a_run_whose_trades_do_not_make_up_its_pnl_has_one_reward(pnls):
    assert traded(pnls)["decision_rewards"] is not None
    assert traded(pnls, window_pnl=math.fsum(pnl or 0 for pnl in pnls) + 0.5)["decision_rewards"] is None
    assert traded([*pnls, math.nan], window_pnl=30.0)["decision_rewards"] is None
    assert traded([*pnls, "lost"], window_pnl=30.0)["decision_rewards"] is None


def test_a_run_of_one_decision_has_its_reward_and_two_steps_of_one_number_have_none():
    only = traded([10.0], window_pnl=25.0)
    assert only["decision_rewards"] == {"0": only["reward"]}
    steps = [made.step(7, made.action("BUY", pnl=1.0), "BUY") for _ in range(2)]
    twice = score_window(made.recorded(made.trajectory("t", steps=steps, pnl=2.0)), made.outcomes()).iloc[0]
    assert twice["decision_rewards"] is None


def test_who_only_held_has_what_older_positions_gave_as_a_counterfactual_and_no_reward():
    score = traded([None, None], window_pnl=12.0)
    assert score["reward"] == 0.0 and score["decision_rewards"] == {"0": 0.0, "1": 0.0}
    assert score["counterfactuals"] == {"flat": 0.0, "hold": squash(0.012), "best": None}
    assert traded([3.0, 4.0])["counterfactuals"]["hold"] == 0.0
    assert traded([3.0, 4.0], window_pnl=9.0)["counterfactuals"]["hold"] is None


@given(st.lists(cents, min_size=1, max_size=4), st.tuples(*[st.floats(-0.5, 0.5)] * 3))
def test_the_best_in_hindsight_is_never_below_doing_nothing_or_what_was_earned(pnls, moved):
    score = traded(pnls, moved=moved)
    best = score["counterfactuals"]["best"]
    assert best >= 0 and best >= score["reward"]
    assert score["parts"]["regret"] == best - score["reward"]


def test_the_best_in_hindsight_is_the_same_dollars_where_they_would_have_earned_most():
    # $200 of orders at 0.2 % in all; BOLT fell 10 %, and the others rose by 2 % in the mean.
    best = traded([0.0, 0.0], moved=(0.05, -0.10, -0.01))["counterfactuals"]["best"]
    assert best == pytest.approx(squash((200 * 0.12 - 0.4) / 1000))
    bought = {"instrument": "MOON", "marketId": "MOON", "side": "YES"}
    action = msgspec.structs.replace(made.action("BUY", entryPrice=0.4), action_type="buy_yes", parameters=bought)
    run = made.recorded(made.trajectory("q", steps=[made.step(0, action, "BUY")], pnl=-100.0))
    for resolved, gain in (("YES", 100 / 0.4 - 100), ("NO", 100 / 0.6 - 100)):
        outcomes = made.outcomes(ACME=0.0).assign(outcome=[None, resolved])
        best = score_window(run, outcomes).iloc[0]["counterfactuals"]["best"]
        assert best == pytest.approx(squash((gain - 0.2) / 1000))


def test_another_scorers_row_says_what_alpha_says_of_the_outcome():
    window = made.recorded(made.trajectory("a", "BUY", 4.8), made.trajectory("h", "HOLD"))
    ours, theirs = (
        score_window(window, made.outcomes(), name).set_index("trajectory_id") for name in ("alpha", "heuristic")
    )
    for name in ("a", "h"):
        assert theirs.loc[name, "counterfactuals"] == ours.loc[name, "counterfactuals"]
        assert theirs.loc[name, "outcome_score"] == ours.loc[name, "reward"]
        assert theirs.loc[name, "decision_rewards"] is None
    assert ALPHA.version == "2"


def test_decisions_that_do_not_add_up_to_the_run_are_refused():
    wrong = Scorer("wrong", "1", lambda runs: [Score(1.0, {}, "", decision_rewards={0: 0.5, 1: 0.4})])
    with pytest.raises(ScoringError, match="sum to `reward`"):
        score_window(made.recorded(made.trajectory("a")), made.outcomes(), wrong)
