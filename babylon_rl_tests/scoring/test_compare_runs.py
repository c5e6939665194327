"""Two runs side by side: which decisions are chosen, and what the market did, in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.scoring.compare_runs import (
    best_and_worst,
    compare,
    decisions_of,
    instruments_to_compare,
    market_then,
    most_important,
    move_of,
    not_done,
    weights,
)
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made

WEIGHTS = st.dictionaries(st.sampled_from("ABCDE"), st.floats(0, 1e6), max_size=5)


def outcome(instrument="ACME", **changes):
    return {"instrument": instrument, "kind": "ticker", "open": 100.0, "close": 105.0, "change": 0.05, "outcome": "up",
            **changes}  # fmt: skip


def run_of(*decisions, name="a"):
    """A run of (verb, instrument, dollars) decisions."""
    steps = [
        made.step(number, made.action(verb, instrument, notional), f"{verb} {instrument}", user=f"prompt {number}")
        for number, (verb, instrument, notional) in enumerate(decisions)
    ]
    return made.trajectory(name, steps=steps, calls=[])


def rows_of(*runs):
    return score_window(made.recorded(*runs), made.outcomes()).to_dict("records")


@given(WEIGHTS, WEIGHTS)
def test_the_instruments_are_those_of_the_runs_and_the_same_one_where_both_have_one(first, second):
    one, other = instruments_to_compare(first, second)
    assert one in first or (one is None and not first)
    assert other in second or (other is None and not second)
    assert (one == other and one is not None) == bool(first.keys() & second.keys())
    assert (other, one) == instruments_to_compare(second, first)


@given(WEIGHTS, WEIGHTS, st.floats(0.01, 100))
def test_the_unit_of_the_weights_does_not_matter(first, second, scale):
    sure = [w for w in (first, second) if len({round(v, 3) for v in w.values()}) == len(w)]
    if len(sure) == 2 and not first.keys() & second.keys():
        scaled = {name: value * scale for name, value in first.items()}
        assert instruments_to_compare(scaled, second) == instruments_to_compare(first, second)


def test_of_several_shared_instruments_it_is_the_one_with_the_largest_share():
    assert instruments_to_compare({"A": 10.0, "B": 90.0}, {"A": 1.0, "B": 1.0, "C": 50.0}) == ("B", "B")


def test_a_decision_tells_what_was_seen_answered_and_done():
    (one, held) = decisions_of(run_of(("BUY", "ACME", 100.0), ("HOLD", "ACME", 0.0)), {"0": 0.25})
    assert (one.goal, one.saw, one.answered, one.did) == (made.SYSTEM, "prompt 0", "BUY ACME", "BUY ACME")
    assert (one.instrument, one.dollars, one.fees, one.reward) == ("ACME", 100.0, 0.2, 0.25)
    assert (held.did, held.dollars, held.fees, held.reward) == ("HOLD", 0.0, 0.0, None)


def test_the_most_important_decision_is_the_dearest_unless_each_has_a_reward_of_its_own():
    run = run_of(("BUY", "ACME", 100.0), ("SELL", "ACME", 300.0), ("BUY", "BOLT", 200.0))
    dear = decisions_of(run)
    assert most_important(dear, "ACME").step == 1 and most_important(dear, "BOLT").step == 2
    assert most_important(dear, "CRUX").step == 1 and most_important([], None) is None
    assert weights(dear) == {"ACME": 400.0, "BOLT": 200.0}
    own = decisions_of(run, {0: -0.5, 1: 0.1, 2: 0.2})
    assert most_important(own, "ACME").step == 0
    assert weights(own) == {"ACME": pytest.approx(0.6), "BOLT": pytest.approx(0.2)}


def test_both_sides_show_the_shared_instrument_with_what_the_market_did():
    runs = (run_of(("BUY", "BOLT", 900.0), ("BUY", "ACME", 50.0)), run_of(("SELL", "ACME", 80.0), name="b"))
    rows = {row["trajectory_id"]: row for row in rows_of(*runs)}
    found = compare((rows["a"], rows["b"]), runs, [outcome(), outcome("BOLT")])
    assert found.same_instrument
    assert [one.decision.did for one in (found.first, found.second)] == ["BUY ACME", "SELL ACME"]
    assert found.first.market == found.second.market == "ACME 100.00 to 105.00, +5.0 %"
    assert (found.first.decisions, found.first.reward) == (2, rows["a"]["reward"])


def test_who_did_nothing_is_shown_beside_what_the_other_one_traded():
    idle = made.trajectory("b", steps=[made.step(0, made.action("HOLD", None), "HOLD")], calls=[])
    runs = (run_of(("BUY", "ACME", 50.0)), idle)
    rows = {row["trajectory_id"]: row for row in rows_of(*runs)}
    found = compare((rows["a"], rows["b"]), runs, [outcome()])
    assert found.second.decision.did == "HOLD" and found.second.instrument == "ACME" and found.same_instrument
    silent = made.trajectory("b", steps=[], calls=[])
    found = compare((rows["a"], rows["b"]), (runs[0], silent), [outcome()])
    assert found.second.decision is None and found.second.decisions == 0


def test_a_reward_that_is_none_is_neither_best_nor_worst():
    rows = [{"rank": n, "provenance": p} for n, p in ((3, "no_capital"), (2, "logged"), (1, "no_text"))]
    assert [row["rank"] for row in best_and_worst(rows)] == [1, 2]
    assert best_and_worst(rows[:2]) is None and best_and_worst([]) is None


def test_prices_probabilities_and_what_is_not_known_are_told_in_words():
    assert move_of(outcome(change=None, close=None)) == "100.00 to ?, change unknown"
    assert move_of(outcome(open=math.nan, change=math.nan)) == "? to 105.00, change unknown"
    question = outcome(kind="question", open=0.4, close=0.62, outcome="YES")
    assert move_of(question) == "YES 40 % to 62 %, resolved YES"
    assert move_of({**question, "outcome": None}).endswith("not resolved")
    assert market_then("MOON", {}) == "MOON: no outcome is known"
    assert not_done({"flat": 0.0, "hold": None, "best": 0.0123}) == "flat +0.0000, best +0.0123"
    assert not_done(None) == ""
