"""How a judge is held against what was earned: its figures a window, their means, and the verdict."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import ScoringError
from babylon_rl.scoring.calibration import (
    MOST_POOLED,
    SET_ASIDE,
    TRUSTED,
    UNPROVEN,
    Figures,
    Floors,
    WindowFigures,
    courses_of,
    pooled,
    verdict_of,
    window_figures,
)
from babylon_rl.scoring.rank_correlation import tau_b
from babylon_rl.windows import shift_window
from babylon_rl_tests.scoring.judged import judge_json, judged_window

WINDOW = "2025-01-15T00:00"
FLOORS = Floors(agreement=0.0, repeat=0.3, least_windows=10)


def history(windows: int, skill: float, seed: int = 0, **changes) -> dict[str, WindowFigures]:
    ids = [shift_window(WINDOW, place) for place in range(windows)]
    return {w: window_figures(judged_window(w, seed, skill, **changes)) for w in ids}


def figures(agreement=None, repeat=None, judge="one", reward="hindsight", **other) -> WindowFigures:
    own = Figures(runs=8, agreement=agreement, repeat=repeat, **other)
    return WindowFigures(judge=judge, runs=8, reward=reward, hindsight=own, process=Figures())


def made_row(name: str, scores, places, alpha, length=100, **changes) -> dict:
    judge = judge_json(scores, places, 4, length)
    mean = sum(scores) / len(scores)
    return {"window_id": WINDOW, "trajectory_id": name, "judge": judge, "hindsight_score": mean, "process_score": None,
            "outcome_score": alpha, "scorer_settings": None, **changes}  # fmt: skip


# --- a window's figures ------------------------------------------------------------------------------


def test_figures_of_a_window_are_what_they_are_by_hand():
    rows = [
        made_row("a", [0.1, 0.2], [1, 4], -0.02, 400),
        made_row("b", [0.2, 0.1], [2, 3], -0.01, 300),
        made_row("c", [0.6, 0.6], [3, 2], 0.0, 200),
        made_row("d", [0.8, 1.0], [4, 1], 0.03, 100),
    ]
    found = window_figures(rows)
    assert (found.judge, found.runs, found.reward) == ("judge-1 asked-1", 4, "hindsight")
    own = found.hindsight
    assert own.runs == 4
    # The means of a and b are equal: one tied pair of six.
    assert own.agreement == pytest.approx(5 / math.sqrt(5 * 6))
    assert own.repeat == pytest.approx(4 / 6)
    # In the first repeat the place rises with the score in all pairs; in the second it falls in five of six.
    assert own.order == pytest.approx((1.0 - 4 / 6) / 2)
    assert own.length == pytest.approx(-5 / math.sqrt(5 * 6))
    assert own.length_given_outcome is None  # alpha orders the lengths completely
    assert own.noise == pytest.approx(math.sqrt((2 * 0.05**2 + 2 * 0.05**2 + 2 * 0.1**2) / 4))
    assert found.process == Figures(runs=0, noise=own.noise)


@given(st.integers(0, 1000), st.integers(0, 9), st.floats(0, 1), st.integers(1, 3), st.randoms())
@settings(max_examples=30, deadline=None)
def test_figures_ignore_the_order_of_rows_and_of_answers(seed, runs, skill, repeats, shuffle):
    rows = judged_window(WINDOW, seed, skill, runs, repeats)
    found = window_figures(rows)
    mixed = shuffle.sample(rows, len(rows))
    for row in mixed:
        for answers in row["judge"]["asked"].values():
            shuffle.shuffle(answers)
    assert window_figures(mixed) == found
    assert (found is None) == (not rows)
    if runs >= 3:
        assert found.hindsight.agreement == tau_b(
            [row["hindsight_score"] for row in rows], [row["outcome_score"] for row in rows]
        )
        assert (found.hindsight.repeat is None) == (repeats == 1) == (found.hindsight.noise is None)


def test_what_is_not_defined_is_null():
    two = window_figures(judged_window(WINDOW, 0, 1.0, runs=2)).hindsight
    assert (two.runs, two.agreement, two.repeat, two.order, two.length) == (2, None, None, None, None)
    alike = [made_row(name, [0.5, 0.5], [place, place], 0.01 * place) for place, name in enumerate("abcd")]
    constant = window_figures(alike).hindsight
    assert (constant.agreement, constant.repeat, constant.order, constant.noise) == (0.0, None, None, 0.0)
    unearned = judged_window(WINDOW, 0, 1.0, outcome_score=math.nan)
    assert window_figures(unearned).hindsight.agreement is None
    assert window_figures([{**row, "judge": None} for row in judged_window(WINDOW, 0, 1.0)]) is None


def test_a_run_without_a_known_outcome_is_left_out_of_agreement_alone():
    rows = judged_window(WINDOW, 0, 0.5)
    rows[0]["outcome_score"] = None
    found, rest = window_figures(rows).hindsight, window_figures(rows[1:]).hindsight
    assert found.agreement == rest.agreement and found.repeat != rest.repeat


@pytest.mark.parametrize("scorer_settings", [{"reward": "process"}, {"weights": {}, "ruler": {"reward": "process"}}])
def test_the_question_that_is_the_reward_is_the_scorers_setting_also_in_a_blend(scorer_settings):
    rows = judged_window(WINDOW, 0, 0.5, scorer_settings=scorer_settings)
    for place, row in enumerate(rows):
        row["process_score"] = place / 10
    found = window_figures(rows)
    assert found.reward == "process" and found.process.agreement != found.hindsight.agreement
    assert pooled([found]).agreement.value == found.process.agreement


def test_planted_order_and_length_bias_are_found():
    generator = random.Random(5)
    for biased in ("order", "length"):
        rows = []
        for run in range(60):
            places, length = [generator.randrange(60), generator.randrange(60)], generator.randrange(1000)
            lean = [p / 60 for p in places] if biased == "order" else [length / 1000] * 2
            scores = [0.3 * own + 0.2 * generator.random() for own in lean]
            rows.append(made_row(f"t{run:02d}", scores, places, generator.gauss(0, 1), length))
        found = window_figures(rows).hindsight
        assert (found.order > 0.3) == (biased == "order") and (found.length > 0.3) == (biased == "length")
        assert (found.length_given_outcome > 0.3) == (biased == "length")


def test_several_judges_of_one_window_are_refused():
    rows = judged_window(WINDOW, 0, 0.5)
    rows[3]["judge"] = {**rows[3]["judge"], "digest": "asked-2"}
    with pytest.raises(ScoringError, match="2 judges"):
        window_figures(rows)


@pytest.mark.parametrize("judge", [{}, {"model": "m", "digest": "d", "asked": {"hindsight": [{"repeat": 0}]}}])
def test_a_judgment_that_cannot_be_read_is_told_with_its_trajectory(judge):
    rows = judged_window(WINDOW, 0, 0.5)
    rows[2]["judge"] = judge
    with pytest.raises(ScoringError, match=rf"{rows[2]['trajectory_id']} cannot be read .*Materialize"):
        window_figures(rows)


# --- over windows ------------------------------------------------------------------------------------


def test_a_course_holds_the_same_judges_windows_up_to_its_own_and_no_later_ones():
    early = history(6, 0.5)
    other = {w: figures(0.9, judge="another") for w in list(early)[1::2]}
    mixed = {**early, **other}
    found = courses_of(mixed)
    assert found[list(mixed)[4]] == [mixed[w] for w in list(mixed)[:5:2]]
    later = {shift_window(WINDOW, place): figures(-1.0, judge=early[WINDOW].judge) for place in range(6, 20)}
    assert {w: course for w, course in courses_of({**later, **mixed}).items() if w in mixed} == found


def test_a_course_is_as_long_as_what_is_pooled():
    many = {shift_window(WINDOW, place): figures(place / 1000) for place in range(MOST_POOLED + 7)}
    course = courses_of(many)[max(many)]
    assert len(course) == MOST_POOLED and course[0].hindsight.agreement == 0.007


def test_means_are_over_the_windows_in_which_a_figure_is_known():
    found = pooled([figures(0.1, noise=0.3), figures(None, noise=0.4), figures(0.5, 0.9)])
    assert (found.agreement.windows, found.agreement.value) == (2, pytest.approx(0.3))
    assert (found.repeat.windows, found.repeat.value, found.repeat.low) == (1, 0.9, None)
    assert (found.order.windows, found.order.value) == (0, None)
    assert found.noise == pytest.approx(math.sqrt((0.09 + 0.16) / 2))


# --- the verdict -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "agreement", "repeat", "verdict"),
    [
        (9, -0.9, -0.9, UNPROVEN),
        (10, 0.001, 0.3, TRUSTED),
        (10, 0.0, 0.9, SET_ASIDE),
        (10, 0.9, 0.299, SET_ASIDE),
        (10, -0.5, 0.1, SET_ASIDE),
        (10, 0.4, None, TRUSTED),
        (10, -0.4, None, SET_ASIDE),
        (10, None, 0.9, UNPROVEN),
    ],
)
def test_a_verdict_follows_the_floors(windows, agreement, repeat, verdict):
    found, reason = verdict_of(pooled([figures(agreement, repeat)] * windows), FLOORS)
    assert found == verdict
    if verdict == UNPROVEN:
        assert "unproven" in reason and "of the 10" in reason
    if verdict == SET_ASIDE:
        assert ("agreement with alpha" in reason) == (agreement <= 0)
        assert ("agreement with itself" in reason) == (repeat is not None and repeat < 0.3)
        assert "10 windows" in reason and "floor" in reason and "[" in reason
    if repeat is None and verdict == TRUSTED:
        assert "not held to its floor" in reason


def test_agreement_is_held_to_its_floor_by_the_lower_end_of_its_interval():
    spread = [figures(agreement, 0.9) for agreement in (-0.5, 0.6) * 5]
    found, reason = verdict_of(pooled(spread), FLOORS)
    assert pooled(spread).agreement.value > 0 and found == SET_ASIDE and "agreement with alpha is +0.05 [-0." in reason


def test_a_judge_that_says_the_same_of_all_agrees_with_nothing_and_is_set_aside():
    rows = [made_row(f"t{n}", [1.0, 1.0], [n, n], earned) for n, earned in enumerate((0.01, -0.02, 0.0))]
    found = window_figures(rows)
    assert found.hindsight.agreement == 0.0 and found.hindsight.repeat is None
    assert verdict_of(pooled([found] * 10), FLOORS)[0] == SET_ASIDE
    # Where alpha says the same of all too, nothing is known of the judge.
    assert window_figures([{**row, "outcome_score": 0.0} for row in rows]).hindsight.agreement is None


def test_a_judge_that_knows_alpha_ends_trusted():
    found = pooled(courses_of(history(20, 0.8, seed=3))[shift_window(WINDOW, 19)])
    assert verdict_of(found, FLOORS)[0] == TRUSTED
    assert found.agreement.low > 0.3 and found.repeat.low > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_a_judge_that_guesses_ends_set_aside_and_its_agreement_proves_nothing(seed):
    found = pooled(courses_of(history(30, 0.0, seed=seed))[shift_window(WINDOW, 29)])
    assert verdict_of(found, FLOORS)[0] == SET_ASIDE
    assert abs(found.agreement.value) < 0.2 and abs(found.repeat.value) < 0.2


def test_a_judge_that_guesses_alike_each_time_is_set_aside_but_in_few_of_many_histories():
    def guess(number: int, window_id: str) -> WindowFigures:
        generator = random.Random(f"{number} {window_id}")
        scores = [generator.random() for _ in range(8)]
        return window_figures([made_row(f"t{n}", [s, s], [n, n], generator.gauss(0, 1)) for n, s in enumerate(scores)])

    histories = [pooled([guess(number, shift_window(WINDOW, place)) for place in range(12)]) for number in range(40)]
    assert all(means.repeat.value == pytest.approx(1.0) for means in histories)
    assert sum(verdict_of(means, FLOORS)[0] == TRUSTED for means in histories) <= 4
