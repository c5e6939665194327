import json
from typing import Literal

import msgspec
import pytest

from babylon_rl.database.tables import metadata
from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.build import build_group, trainable_groups
from babylon_rl.groups.leaks import Leak
from babylon_rl.groups.trained_view import (
    Decision,
    Group,
    Member,
    VerbatimError,
    check_verbatim,
    decode_group,
    digest_of,
    encode_group,
)
from babylon_rl.scoring.judge.view import JudgedRun
from babylon_rl.scoring.scorers import score_window
from babylon_rl.scoring.seam import RunText, Score
from babylon_rl.scoring.values import squash
from babylon_rl_tests.scoring import made

READY = {"status": "ready", "reason": "3 agents"}


def three(**changed):
    own = {"a": made.trajectory("a", "BUY", 5.0), "b": made.trajectory("b", "SELL", -5.0)}
    own["c"] = made.trajectory("c", "HOLD")
    return made.recorded(*{**own, **changed}.values())


def built(window, status=READY, scorer="alpha"):
    return build_group(status, window, score_window(window, made.outcomes(), scorer))


def test_a_ready_window_with_spread_is_trainable_and_its_advantages_sum_to_zero():
    row = built(three())
    group = decode_group(row["group"])
    assert row["status"] == "trainable" and row["members"] == 3 and row["left_out"] == []
    assert [member.trajectory_id for member in group.members] == ["a", "b", "c"]
    assert sum(member.advantage for member in group.members) == pytest.approx(0, abs=1e-15)
    assert group.members[0].advantage == pytest.approx(squash(0.0045) - (squash(-0.0045) + 0.0) / 2)


def test_the_row_has_the_columns_of_the_table():
    history = {"row_id", "digest", "created_at", "superseded_at"}
    columns = set(metadata.tables["babylon_rl.art_groups"].columns.keys()) - history
    for window in (three(), made.recorded()):
        assert set(built(window)) == columns


def test_a_window_that_is_not_ready_says_why():
    row = built(three(), {"status": "too_few_agents", "reason": "3 of 5 agents"})
    assert (row["status"], row["reason"]) == ("not_ready", "window is too_few_agents: 3 of 5 agents")


def test_equal_rewards_have_no_spread_and_no_advantage():
    row = built(three(a=made.trajectory("a", "HOLD"), b=made.trajectory("b", "HOLD")))
    assert row["status"] == "no_spread"
    assert {member.advantage for member in decode_group(row["group"]).members} == {0.0}


def test_a_run_without_tokens_is_a_member_by_its_text_and_one_without_text_is_left_out():
    window = three(
        b=made.trajectory("b", "SELL", -5.0, calls=[], provenance="no_logprobs"),
        c=made.trajectory("c", "HOLD", calls=[], provenance="no_text"),
    )
    row = built(window)
    assert (row["status"], row["members"]) == ("too_few_members", 2)
    assert row["reason"] == "1 of 3 trajectories can be trained on, 2 must be"
    assert [one["reason"].split(":")[0] for one in row["left_out"]] == ["no_text"]


def test_every_usable_trajectory_is_a_member_or_left_out():
    late = made.trajectory("late", "BUY", 1.0)
    scored = score_window(three(), made.outcomes())
    row = build_group(READY, made.recorded(*three().usable[1:], late), scored)
    assert row["members"] == 2
    assert [one["trajectory_id"] for one in row["left_out"]] == ["a", "late"]
    assert [one["reason"].split(":")[0] for one in row["left_out"]] == ["not_recorded", "not_scored"]


def test_a_trajectory_with_one_call_unrecorded_is_left_out_whole():
    half = made.trajectory("a", verbs=["BUY", "SELL"], pnl=1.0, calls=[made.call("a", "BUY", 0)])
    row = built(three(a=half))
    assert [one["trajectory_id"] for one in row["left_out"]] == ["a"]


def test_the_group_is_the_same_in_any_order_and_survives_json():
    window = three()
    row = built(window)
    other = built(made.recorded(*reversed(window.usable)))
    assert other == row
    stored = json.loads(json.dumps(row["group"]))
    assert digest_of(decode_group(stored)) == row["group_digest"]


def test_several_scorers_in_one_group_are_refused():
    import pandas as pd

    both = pd.concat([score_window(three(), made.outcomes(), name) for name in ("alpha", "heuristic")])
    with pytest.raises(SettingsError, match="alpha.*heuristic"):
        build_group(READY, three(), both)


def test_the_trained_view_has_no_field_for_what_came_after_the_decision():
    told = json.dumps(built(three())["group"])
    assert "market_move" not in told and "outcome" not in told and "reason" not in told
    value = encode_group(decode_group(built(three())["group"]))
    value["members"][0]["decisions"][0]["outcome"] = "ACME closed at +5 %"
    with pytest.raises(TrainingError, match="outcome"):
        decode_group(value)


def test_only_a_trained_view_can_enter_a_group():
    """The judge's view and the trained view share no type: none is taken for the other, and no field is left over."""
    assert set(Group.__struct_fields__) == {"window_id", "scorer", "scorer_version", "members", "tolerance", "loss"}
    types = {field.type for field in msgspec.structs.fields(Group)}
    assert types == {str, list[Member], float | msgspec.UnsetType, Literal["weighted_supervised"] | msgspec.UnsetType}
    assert {field.type for field in msgspec.structs.fields(Member) if field.name == "decisions"} == {list[Decision]}
    text = RunText(trajectory_id="a", agent_id="a", goal="Win.", decisions=["Saw: x"], actions=["BUY"])
    shown = JudgedRun(trajectory_id="a", goal="Win.", capital=1.0, actions=["BUY"], texts=["Saw: x"])
    for other in (text, shown, Score(0.5, {}, "It was right.")):
        for group in ({"members": [other]}, {"members": [{"decisions": [other]}]}):
            with pytest.raises(TrainingError, match="not a trained view"):
                decode_group(msgspec.to_builtins({"window_id": "w", "scorer": "s", "scorer_version": "1", **group}))
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(other, Decision, from_attributes=True)


def test_a_run_that_leaks_is_left_out_with_a_reason_that_tells_little_of_the_text():
    scored = score_window(three(), made.outcomes())
    found = {"a": [Leak("close of ACME", "1" * 500, 3), Leak("change of ACME", "5 %", 9)]}
    row = build_group(READY, three(), scored, leaks=found)
    assert [member["trajectory_id"] for member in row["group"]["members"]] == ["b", "c"]
    (left,) = row["left_out"]
    assert left["reason"].startswith("leak: close of ACME: '111") and left["reason"].endswith("and 1 more")
    assert len(left["reason"]) < 120


TAMPERED = {
    "user_prompt": "a step 0 and ACME will close at +5 %",
    "system_prompt": "You are evaluating.",
    "response": "BUY ",
    "token_ids": [5, 2],
    "logprobs": [-0.1, 0.0],
    "prompt_token_ids": [1],
    "choices": None,
    "temperature": 0.5,
    "exploration": 0.0,
}


@pytest.mark.parametrize("field", TAMPERED)
def test_the_guard_catches_any_field_that_is_not_what_was_recorded(field):
    window = three()
    group = decode_group(built(window)["group"])
    check_verbatim(group, window)
    with pytest.raises(VerbatimError, match=field):
        check_verbatim(with_decision(group, **{field: TAMPERED[field]}), window)


def test_the_guard_covers_every_field_of_a_decision():
    assert set(Decision.__struct_fields__) - set(TAMPERED) == {"call_id", "top_p"}
    assert "reasoning" not in Member.__struct_fields__


@pytest.mark.parametrize("logprobs", [[-0.7], [-0.7, float("nan")], [-0.7, float("-inf")], [0.7, 0.0]])
def test_the_guard_refuses_recorded_numbers_that_are_no_log_probabilities(logprobs):
    broken = msgspec.structs.replace(made.call("a", "BUY"), logprobs=logprobs)
    window = three(a=made.trajectory("a", "BUY", 5.0, calls=[broken]))
    with pytest.raises(VerbatimError, match="a-call-0-0"):
        built(window)


def test_the_guard_refuses_a_trajectory_of_another_agent_or_window():
    window = three()
    group = decode_group(built(window)["group"])
    swapped = [msgspec.structs.replace(member, agent_id="agent-x") for member in group.members]
    with pytest.raises(VerbatimError):
        check_verbatim(msgspec.structs.replace(group, members=swapped), window)
    with pytest.raises(VerbatimError):
        check_verbatim(group, made.recorded(*window.usable, window_id="2026-01-05T11:00"))


def test_stored_groups_come_back_by_window_and_the_others_are_counted():
    import pandas as pd

    rows = [built(three()), {**built(three()), "window_id": "2026-01-05T09:00", "status": "no_spread"}]
    groups, others = trainable_groups(pd.DataFrame(rows))
    assert [group.window_id for group in groups] == [made.WINDOW] and others == {"no_spread": 1}
    rows[0]["group"]["members"][0]["reward"] = 9.0
    with pytest.raises(TrainingError, match="digest"):
        trainable_groups(pd.DataFrame(rows))


def with_decision(group, **changed):
    first = group.members[0]
    decision = msgspec.structs.replace(first.decisions[0], **changed)
    member = msgspec.structs.replace(first, decisions=[decision, *first.decisions[1:]])
    return msgspec.structs.replace(group, members=[member, *group.members[1:]])
