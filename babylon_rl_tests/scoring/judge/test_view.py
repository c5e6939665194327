"""A judge's prompt holds each run once, as evidence, and nothing that a run says moves another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.errors import ScoringError, SettingsError
from babylon_rl.scoring.judge.attacks import ATTACKS
from babylon_rl.scoring.judge.fence import unfence
from babylon_rl.scoring.judge.view import (
    LONGEST_RUN,
    QUOTE,
    RUBRICS,
    JudgedRun,
    Question,
    ask_all,
    ask_one,
    prompt_of,
    rubric_of,
)

TRUTH = ["ACME: 100.00 to 103.00, +3.0 %", "q-77: resolved YES"]
HINDSIGHT, PROCESS = Question.HINDSIGHT, Question.PROCESS
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["a\nb", '"', "\\", "</trajectory-", "\u2028", "id=", "\x00", "{count}"]
)
TEXTS = st.text(max_size=40) | st.sampled_from(ATTACKS) | st.sampled_from(["| ", "\r", "\x85", "1. BUY ACME", "\ud800"])


def runs(*texts: str) -> list[JudgedRun]:
    return [JudgedRun(f"t{n}", "earn", 1000.0, ["BUY ACME"], [text], earned=4.1) for n, text in enumerate(texts)]


def test_a_prompt_says_the_rubric_and_how_to_answer():
    prompt = prompt_of(runs("BUY ACME", "HOLD"), TRUTH, rubric_of(HINDSIGHT), HINDSIGHT)
    assert rubric_of(HINDSIGHT) in prompt.text and "Capital: $1,000.00" in prompt.text and prompt.ids == ["t0", "t1"]
    assert prompt_of([JudgedRun("t", "", None, [])], [], "r", HINDSIGHT).text.count("not known") == 3
    assert '"trajectory_id"' in ask_all(2) and "2 ids" in ask_all(2) and '"t\\n"' in ask_one("t\n")


def test_only_hindsight_is_told_what_came_after_the_decision():
    shown = [prompt_of(runs("BUY ACME"), TRUTH, "r", question).text for question in (HINDSIGHT, PROCESS)]
    for told in (*TRUTH, "$4.10"):
        assert told in shown[0] and told not in shown[1]
    rubrics = {path.read_text() for path in RUBRICS.values()}
    assert len(rubrics) == 2 and all(text.count("points") == 4 for text in rubrics)


@given(st.lists(st.tuples(IDS, TEXTS, TEXTS), min_size=1, max_size=8, unique_by=lambda one: one[0]))
@settings(max_examples=200, deadline=None)
def test_it_falls_into_the_runs_that_went_in(many):
    told = [JudgedRun(name, goal, 1.0, ["HOLD"], [text]) for name, text, goal in many]
    prompt = prompt_of(told, TRUTH, rubric_of(HINDSIGHT), HINDSIGHT)
    asked = prompt.text + ask_one(many[0][0])
    assert [entry.trajectory_id for entry in unfence(asked, prompt.nonce)] == [name for name, _, _ in many]
    asked.encode()


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_no_line_that_an_agent_wrote_passes_for_one_of_the_record(goal, text):
    prompt = prompt_of([JudgedRun("t", goal, 1.0, ["HOLD"], [text])], [], "r", PROCESS)
    (entry,) = unfence(prompt.text, prompt.nonce)
    record = [line for line in entry.text.split("\n") if not line.startswith(QUOTE)]
    assert [line for line in record if not line.startswith("Goal:")] == ["Capital: $1.00", "Decisions:", "1. HOLD"]


def test_an_attack_changes_nothing_of_what_is_shown_of_others():
    for attack in ATTACKS:
        shown = []
        for text in ("HOLD", attack):
            prompt = prompt_of(runs(text, "BUY ACME"), TRUTH, rubric_of(HINDSIGHT), HINDSIGHT)
            shown.append([e for e in unfence(prompt.text, prompt.nonce) if e.trajectory_id == "t1"])
        assert shown[0] == shown[1] and len(shown[0]) == 1


def test_nonces_are_fresh_and_leave_the_rest_as_it_is():
    first, second = (prompt_of(runs(*"ab"), TRUTH, "r", PROCESS) for _ in range(2))
    third = first.with_another_nonce()
    assert len({first.nonce, second.nonce, third.nonce}) == 3
    assert first.plain == second.plain == third.plain and unfence(third.text, third.nonce) == first.entries


def test_what_is_withheld_is_not_shown():
    told = JudgedRun("t", "secret goal", 1.0, ["BUY ACME"], ["secret text"], withheld=True)
    text = prompt_of([told], [], "r", PROCESS).text
    assert "secret" not in text and "1. BUY ACME" in text and "withheld" in text


def test_a_long_run_keeps_both_ends_and_its_cut_line_stays_quoted():
    told = JudgedRun("t", "earn", 1.0, ["BUY A", "SELL at last"], ["x" * 50_000, ""])
    prompt = prompt_of([told], [], "r", PROCESS)
    (entry,) = unfence(prompt.text, prompt.nonce)
    assert len(entry.text) < LONGEST_RUN + 100 and "letters are left out" in entry.text
    assert entry.text.endswith("2. SELL at last") and "\nx" not in entry.text


def test_what_cannot_be_judged_is_refused(tmp_path):
    for wrong in ([], runs("a") * 2):
        with pytest.raises(ScoringError, match="cannot be judged"):
            prompt_of(wrong, [], "r", PROCESS)
    empty = tmp_path / "rubric.md"
    empty.write_text(" \n")
    for file in (empty, tmp_path / "none.md"):
        with pytest.raises(SettingsError, match="rubric"):
            rubric_of(HINDSIGHT, file)
