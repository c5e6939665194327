"""A judge's prompt holds each run once, as evidence, and nothing that a run says moves another."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import ScoringError, SettingsError
from babylon_rl.scoring.judge.fence import unfence
from babylon_rl.scoring.judge.view import LONGEST_RUN, RUBRIC, JudgedRun, prompt_of, rubric_of
from babylon_rl_tests.scoring.judge.attacks import ATTACKS

TRUTH = ["ACME: 100.00 to 103.00, +3.0 %", "q-77: resolved YES"]


def runs(*decisions: str) -> list[JudgedRun]:
    return [JudgedRun(f"t{n}", "earn", 1000.0, [text]) for n, text in enumerate(decisions)]


def test_a_prompt_says_the_rubric_the_truth_and_how_to_answer():
    prompt = prompt_of(runs("BUY ACME", "HOLD"), TRUTH, rubric_of(), seed=1)
    assert rubric_of() in prompt.text and TRUTH[0] in prompt.text and '"trajectory_id"' in prompt.text
    assert "Capital: $1,000.00" in prompt.text and sorted(prompt.ids) == ["t0", "t1"]
    assert prompt_of([JudgedRun("t", "", None, [])], [], "r", 0).text.count("not known") == 2


@given(st.lists(st.text(max_size=40) | st.sampled_from(ATTACKS), min_size=1, max_size=8), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_it_falls_into_the_runs_that_went_in(decisions, seed):
    given_runs = runs(*decisions)
    prompt = prompt_of(given_runs, TRUTH, rubric_of(), seed)
    assert [entry.trajectory_id for entry in unfence(prompt.text, prompt.nonce)] == prompt.ids
    assert sorted(prompt.ids) == sorted(run.trajectory_id for run in given_runs)


def test_an_attack_changes_nothing_of_what_is_shown_of_others():
    for attack in ATTACKS:
        shown = []
        for text in ("HOLD", attack):
            prompt = prompt_of(runs(text, "BUY ACME"), TRUTH, rubric_of(), seed=3)
            entries = unfence(prompt.text, prompt.nonce)
            shown.append([entry for entry in entries if entry.trajectory_id == "t1"])
        assert shown[0] == shown[1] and len(shown[0]) == 1


def test_the_seed_decides_the_order_and_nonces_are_fresh():
    many = runs(*"abcdefgh")
    shuffled = many.copy()
    random.Random(5).shuffle(shuffled)
    first, second = prompt_of(many, TRUTH, "r", 7), prompt_of(shuffled, TRUTH, "r", 7)
    assert first.ids == second.ids != prompt_of(many, TRUTH, "r", 8).ids and first.nonce != second.nonce


def test_a_long_run_keeps_both_ends():
    (entry,) = unfence(*prompt_of([JudgedRun("t", "earn", 1.0, ["x" * 50_000, "SELL at last"])], [], "r", 0)[:2])
    assert len(entry.text) < LONGEST_RUN + 100 and "letters are left out" in entry.text
    assert entry.text.endswith("SELL at last")


def test_what_cannot_be_judged_is_refused(tmp_path):
    for wrong in ([], runs("a") * 2):
        with pytest.raises(ScoringError, match="cannot be judged"):
            prompt_of(wrong, [], "r", 0)
    empty = tmp_path / "rubric.md"
    empty.write_text(" \n")
    for file in (empty, tmp_path / "none.md"):
        with pytest.raises(SettingsError, match="rubric"):
            rubric_of(file)
    assert RUBRIC.read_text().count("points") == 4
