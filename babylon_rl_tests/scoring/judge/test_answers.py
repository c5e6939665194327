"""A judge's answer gives each trajectory one score in 0..1, or nothing and a name for what is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.scoring.judge.answers import AnswerError, Fault, Judged, read_answer

IDS = ["t1", "t2"]


def answer(*scores, **others) -> str:
    return json.dumps({"scores": [{"trajectory_id": name, "score": score} for name, score in scores], **others})


GOOD = answer(("t2", 0.25), ("t1", 1))


@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```", f"\n```\n{GOOD}\n``` \n"])
def test_scores_come_in_the_order_asked_for(text):
    assert [(one.trajectory_id, one.score, one.clamped) for one in read_answer(text, IDS)] == [
        ("t1", 1.0, False),
        ("t2", 0.25, False),
    ]


def test_a_score_out_of_range_is_clamped_and_told():
    assert read_answer(answer(("t1", 17), ("t2", -0.5)), IDS) == [
        Judged("t1", 1.0, "", True),
        Judged("t2", 0.0, "", True),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Fault.EMPTY),
        ("```json\n\n```", Fault.EMPTY),
        ("I would say 0.7.", Fault.NOT_JSON),
        (f"Here it is: {GOOD}", Fault.NOT_JSON),
        (GOOD[:-8], Fault.NOT_JSON),
        (GOOD + GOOD, Fault.NOT_JSON),
        ("[" * 100_000, Fault.NOT_JSON),
        ("[0.1, 0.2]", Fault.NOT_SCORES),
        ('{"scores": {"t1": 1, "t2": 0}}', Fault.NOT_SCORES),
        ('{"scores": [{"trajectory_id": 1, "score": 1}]}', Fault.NOT_SCORES),
        (answer(("t1", 0.5)), Fault.MISSING_ID),
        (answer(), Fault.MISSING_ID),
        (answer(("t1", 0.5), ("t2", 0.5), ("t1", 0.6)), Fault.DOUBLED_ID),
        (answer(("t1", 0.5), ("t2", 0.5), ("t3", 0.6)), Fault.UNKNOWN_ID),
        (answer(("t1", 0.5), ("T2", 0.5)), Fault.UNKNOWN_ID),
        (answer(("t1", float("nan")), ("t2", 0.5)), Fault.NOT_A_NUMBER),
        (answer(("t1", float("inf")), ("t2", 0.5)), Fault.NOT_A_NUMBER),
        (answer(("t1", "1.0"), ("t2", 0.5)), Fault.NOT_A_NUMBER),
        (answer(("t1", True), ("t2", 0.5)), Fault.NOT_A_NUMBER),
        (answer(("t1", None), ("t2", 0.5)), Fault.NOT_A_NUMBER),
        (answer(("t1", 10**400), ("t2", 0.5)), Fault.NOT_A_NUMBER),
    ],
)
def test_what_does_not_fit_is_refused_by_name(text, fault):
    with pytest.raises(AnswerError) as raised:
        read_answer(text, IDS)
    assert raised.value.fault is fault and str(fault) in str(raised.value)


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
@settings(max_examples=200, deadline=None)
def test_no_text_raises_anything_else(text):
    try:
        read = read_answer(text, IDS)
    except AnswerError:
        return
    assert [one.trajectory_id for one in read] == IDS and all(0 <= one.score <= 1 for one in read)
