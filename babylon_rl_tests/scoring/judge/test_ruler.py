"""Scorer ruler against a real endpoint that is scripted: every run gets its scores, or the window fails by name."""

import asyncio
import json
import logging

import pytest

from babylon_rl.errors import ScoringError, SettingsError
from babylon_rl.scoring.judge.answers import AnswerError, Fault
from babylon_rl.scoring.judge.budget import BudgetError, Prices
from babylon_rl.scoring.judge.client import JudgeError, Trouble
from babylon_rl.scoring.judge.evidence import evidence_of
from babylon_rl.scoring.judge.fence import unfence
from babylon_rl.scoring.judge.ruler import make_ruler, panel_of
from babylon_rl.scoring.scorers import score_window, scorer_of
from babylon_rl_tests.scoring import made
from babylon_rl_tests.scoring.judge.judge_server import NONCE
from babylon_rl_tests.scoring.judge.shown import by_id, run, window_of

WINDOW = window_of(run("t-buy", "BUY", "up"), run("t-sell", "SELL", "down"), run("t-hold", "HOLD", "wait"))
TRUE = {"t-buy": 0.8, "t-sell": 0.2, "t-hold": 0.5}


def rewards(scorer, window=WINDOW):
    return {name: score.reward for name, score in by_id(scorer, window).items()}


def test_both_questions_are_asked_in_each_repeat_and_stored_as_agreed(judge, settings):
    scorer = make_ruler(settings(), None)
    scores = by_id(scorer, WINDOW)
    assert {name: score.reward for name, score in scores.items()} == TRUE
    assert len(judge.bodies) == 4 and {body["seed"] for body in judge.bodies} == {0, 1}
    one = scores["t-buy"]
    assert (one.process, one.hindsight, one.parts) == (0.8, 0.8, {"process": 0.8, "hindsight": 0.8})
    assert one.judge.keys() == {"model", "form", "asked", "digest"} and one.judge["digest"] == scorer.settings["asked"]
    assert one.judge["asked"].keys() == {"hindsight", "process"} and one.judge["model"] == "scripted"
    for repeats in one.judge["asked"].values():
        assert [each["repeat"] for each in repeats] == [0, 1]
        for each in repeats:
            assert each.keys() == {"repeat", "score", "place", "of", "length", "reason", "clamped"}
            assert each["score"] == 0.8 and each["of"] == 3 and each["length"] > 20 and not each["clamped"]
    assert "judge 0.80 (0.80, 0.80): It acted" in one.reason
    json.dumps(one.judge)


def test_places_are_those_of_the_prompt(judge, settings):
    judge.score = lambda entry, entries: entries.index(entry) / 10
    for score in by_id(make_ruler(settings(), None), WINDOW).values():
        for repeats in score.judge["asked"].values():
            assert [each["place"] / 10 for each in repeats] == [each["score"] for each in repeats]


def test_process_is_not_shown_what_came_after(judge, settings):
    by_id(make_ruler(settings(judge_repeats=1), None), WINDOW)
    after = [("Earned" in prompt, "+5.00 %" in prompt) for prompt in judge.prompts]
    assert sorted(after) == [(False, False), (True, True)]


@pytest.mark.parametrize(
    "fault", ["missing", "doubled", "unknown", "nan", "prose", "empty", "cut_off", "not_http_json"]
)
def test_a_bad_answer_is_asked_for_once_more_with_a_fresh_nonce(judge, settings, fault):
    judge.next(fault)
    assert rewards(make_ruler(settings(judge_repeats=1, judge_concurrency=1), None)) == TRUE
    assert len(judge.bodies) == 3 and len({NONCE.search(prompt)[1] for prompt in judge.prompts}) == 3


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("missing", Fault.MISSING_ID),
        ("doubled", Fault.DOUBLED_ID),
        ("unknown", Fault.UNKNOWN_ID),
        ("nan", Fault.NOT_A_NUMBER),
        ("prose", Fault.NOT_JSON),
        ("empty", Fault.EMPTY),
    ],
)
def test_an_answer_that_stays_bad_is_refused_by_name(judge, settings, fault, name):
    judge.whenever("t-buy", fault)
    with pytest.raises(AnswerError, match="asked twice") as raised:
        rewards(make_ruler(settings(judge_repeats=1), None))
    assert raised.value.fault is name and len(judge.bodies) == 4


def test_an_answer_that_is_cut_off_twice_says_what_to_do(judge, settings):
    judge.whenever("t-buy", "cut_off")
    with pytest.raises(JudgeError, match="RUNS_PER_CALL") as raised:
        rewards(make_ruler(settings(), None))
    assert raised.value.trouble is Trouble.CUT_OFF


def test_odd_answers_that_can_be_read_are(judge, settings):
    judge.next("block", "unstorable")
    assert rewards(make_ruler(settings(judge_repeats=1, judge_concurrency=1), None)) == TRUE
    judge.whenever("t-buy", "out_of_range")
    asked = [s.judge["asked"]["process"][0] for s in by_id(make_ruler(settings(), None), WINDOW).values()]
    assert [each["score"] for each in asked if each["clamped"]] == [1.0]


def test_a_window_that_is_judged_again_asks_nothing(judge, settings, database):
    first = rewards(make_ruler(settings(), database))
    asked = len(judge.bodies)
    judge.score = lambda entry, entries: 0.0
    assert rewards(make_ruler(settings(), database)) == first and len(judge.bodies) == asked == 4
    with database.connect() as connection:
        kept = connection.execute(
            "SELECT window_id, model, question, prompt_tokens > 100 FROM babylon_rl.judge_answers ORDER BY question"
        ).fetchall()
    assert kept == [(made.WINDOW, "scripted", question, True) for question in ("hindsight",) * 2 + ("process",) * 2]


@pytest.mark.parametrize("changed", ["rubric", "seed", "repeats", "model", "form", "truth", "text"])
def test_whatever_goes_in_otherwise_is_asked_anew(judge, settings, database, tmp_path, changed):
    rewards(make_ruler(settings(judge_repeats=1), database))
    rubric = tmp_path / "rubric.md"
    rubric.write_text("Judge by the weather.")
    others = {
        "rubric": ({"judge_rubric": rubric}, WINDOW, 1),
        "seed": ({"judge_seed": 9}, WINDOW, 2),
        "repeats": ({"judge_repeats": 2}, WINDOW, 2),
        "model": ({"judge_model": "other"}, WINDOW, 2),
        "form": ({"judge_form": "choices"}, WINDOW, 6),
        "truth": ({}, window_of(run("t-buy", "BUY", "up"), outcomes=made.outcomes(ACME=0.01)), 2),
        "text": ({}, window_of(run("t-buy", "BUY", "up!"), run("t-sell", "SELL", "down")), 2),
    }
    changes, window, asked = others[changed]
    before = len(judge.bodies)
    rewards(make_ruler(settings(**{"judge_repeats": 1, **changes}), database), window)
    assert len(judge.bodies) - before == asked


def test_good_answers_of_a_window_that_fails_are_kept(judge, settings, database):
    judge.whenever("could be expected to earn", "nan")
    with pytest.raises(AnswerError):
        rewards(make_ruler(settings(judge_repeats=1), database))
    asked = len(judge.bodies)
    judge._whenever.clear()
    assert rewards(make_ruler(settings(judge_repeats=1), database)) == TRUE and len(judge.bodies) == asked + 1


@pytest.mark.parametrize("text", ["up " * 400, "价格" * 300, "1234567890 " * 200, '{"a": [1, 2]}' * 100])
@pytest.mark.parametrize("form", ["json", "choices"])
def test_the_estimate_is_above_what_is_used(judge, settings, caplog, text, form):
    caplog.set_level(logging.INFO, "babylon_rl.scoring.judge.panel")
    panel = panel_of(settings(judge_form=form, judge_prices="1/2"), None)
    evidence = evidence_of(window_of(run("t-1", "BUY", text), run("t-2", "SELL", "down")))
    panel.judge(made.WINDOW, evidence.runs, evidence.truth)
    (told,) = caplog.records
    calls, estimated, dollars = told.args[1:4]
    assert calls == len(judge.bodies) == panel.budget.calls and "$" in dollars
    assert panel.budget.spent == judge.used < estimated < 4 * judge.used


def test_a_budget_refuses_a_window_before_it_is_asked(judge, settings):
    scorer = make_ruler(settings(judge_budget_tokens=9_000, judge_prices="1/2"), None)
    assert rewards(scorer) == TRUE
    with pytest.raises(BudgetError, match=r"JUDGE_BUDGET_TOKENS") as raised:
        for hour in range(11, 20):
            rewards(scorer, window_of(run("t-1"), run("t-2"), window_id=f"2026-01-05T{hour}:00"))
    assert judge.used < 9_000 and f"{judge.used:,} of 9,000 are spent ($0.0" in str(raised.value)
    asked = len(judge.bodies)
    assert rewards(scorer) == TRUE and len(judge.bodies) == asked  # what was answered costs nothing


def test_where_nobody_says_what_was_used_the_estimate_is_counted(judge, settings):
    judge.whenever("t-buy", "no_usage")
    scorer = make_ruler(settings(judge_budget_tokens=9_000), None)
    rewards(scorer)
    with pytest.raises(BudgetError):
        rewards(scorer, window_of(run("t-1"), window_id="2026-01-05T11:00"))


@pytest.mark.parametrize("told", ["1", "a/b", "1/2/3", "-1/2", "nan/1"])
def test_odd_prices_are_refused(told):
    with pytest.raises(SettingsError, match="JUDGE_PRICES"):
        Prices(told)


def test_chunks_of_a_long_window_are_ranked_as_one(judge, settings):
    """A judge that is milder in some calls than in others by more than runs differ."""
    names = [f"t{n:02d}" for n in range(20)]
    window = window_of(*(run(name) for name in names))
    worth = {name: 0.4 + 0.01 * place for place, name in enumerate(names)}

    def offset(entries):
        return 0.25 * (sum(map(ord, "".join(sorted(e.trajectory_id for e in entries)))) % 3 - 1)

    judge.score = lambda entry, entries: worth[entry.trajectory_id] + offset(entries)
    found = rewards(make_ruler(settings(judge_runs_per_call=6, judge_repeats=1), None), window)
    assert sorted(found, key=found.__getitem__) == names
    chunks = {tuple(sorted(e.trajectory_id for e in unfence(p, NONCE.search(p)[1]))) for p in judge.prompts}
    offsets = {round(0.25 * (sum(map(ord, "".join(chunk))) % 3 - 1), 2) for chunk in chunks}
    assert len(chunks) == 5 and len(offsets) > 1


def test_choices_ask_for_a_run_at_a_time(judge, settings):
    scorer = make_ruler(settings(judge_form="choices", judge_repeats=1), None)
    assert rewards(scorer) == TRUE and len(judge.bodies) == 6
    assert all(len(body["structured_outputs"]["choice"]) == 11 for body in judge.bodies)
    judge.whenever("t-buy", "letters")
    with pytest.raises(AnswerError, match="not_a_choice"):
        rewards(make_ruler(settings(judge_form="choices"), None))


def test_it_works_inside_of_an_event_loop_and_on_an_empty_window(judge, settings):
    scorer = make_ruler(settings(judge_repeats=1), None)

    async def inside():
        return rewards(scorer)

    assert asyncio.run(inside()) == TRUE and scorer.score(window_of()) == []


def test_settings_that_are_stored_hold_no_secret(judge, settings):
    named = settings(judge_base_url=judge.base_url.replace("//", "//user:word@") + "?key=word", judge_api_key="word")
    assert "word" not in json.dumps(dict(make_ruler(named, None).settings))


def test_without_a_model_the_scorer_says_what_to_set(settings):
    with pytest.raises(SettingsError, match="JUDGE_MODEL"):
        scorer_of("ruler", settings(judge_model=None))


def test_rows_are_complete_with_the_outcome_beside_the_judges_scores(judge, settings):
    recorded = made.recorded(made.trajectory("t-buy", "BUY", 4.8), made.trajectory("t-hold", "HOLD"))
    rows = score_window(recorded, made.outcomes(), make_ruler(settings(), None))
    assert list(rows["scorer"]) == ["ruler"] * 2 and list(rows["trajectory_id"]) == ["t-buy", "t-hold"]
    assert list(rows["process_score"]) == list(rows["hindsight_score"]) == list(rows["reward"]) == [0.8, 0.5]
    assert rows["outcome_score"].notna().all() and rows["injection_signs"].isna().all()
    assert rows.loc[0, "scorer_settings"]["model"] == "scripted"


def test_the_reward_is_the_question_that_the_settings_name(judge, settings):
    judge.score = lambda entry, entries: 0.9 if "Earned" in entry.text else 0.3
    assert set(rewards(make_ruler(settings(judge_reward="process"), None)).values()) == {0.3}
    assert set(rewards(make_ruler(settings(), None)).values()) == {0.9}


def test_every_error_of_a_judge_is_one_of_scoring():
    assert all(issubclass(kind, ScoringError) for kind in (AnswerError, JudgeError, BudgetError))
