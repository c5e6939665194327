"""Decisions with rewards of their own: they share an agent's advantage, and the agent counts once."""

import json
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import TrainingError
from babylon_rl.groups.advantages import center_by_action, decision_advantages, leave_one_out
from babylon_rl.groups.art_types import advantages_of, batch_to_art, is_centred
from babylon_rl.groups.build import build_group, trainable_groups
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.groups.trained_view import VerbatimError, check_values, decode_group, digest_of, encode_group
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.groups.test_art_types import advantages_in_the_loss
from babylon_rl_tests.scoring import made

READY = {"status": "ready", "reason": ""}
VERBS = ("BUY", "SELL", "HOLD")

rewards_of_agents = st.lists(st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=5), min_size=2, max_size=6)


def run(name, pnls, *, older=0.0, **own):
    """A run that trades once for each P&L, which its trade says; `older`: what it earned beside them."""
    verbs = ["HOLD" if pnl is None else VERBS[number % 2] for number, pnl in enumerate(pnls)]
    steps = [
        made.step(
            number, made.action(verb) if pnl is None else made.action(verb, pnl=pnl), verb, user=f"{name} {number}"
        )
        for number, (verb, pnl) in enumerate(zip(verbs, pnls, strict=True))
    ]
    calls = [made.call(name, verb, number) for number, verb in enumerate(verbs)]
    return made.trajectory(name, steps=steps, calls=calls, pnl=older + math.fsum(p or 0.0 for p in pnls), **own)


def group_of(hour, *runs):
    window_id = f"2026-01-05T{hour:02d}:00"
    window = made.recorded(*runs, window_id=window_id)
    return build_group(READY, window, score_window(window, made.outcomes(window_id)))


def rows():
    """Two windows of agents with one, two and three decisions, and one whose P&L is of no decision alone."""
    mixed = (run("a", [9.0, -4.0]), run("b", [3.0]), run("c", [-6.0, None, 2.0]), run("d", [1.0, -2.0], older=5.0))
    return [group_of(10, *mixed), group_of(11, run("e", [2.0, 7.0, -1.0]), run("f", [-3.0, -5.0]))]


def groups():
    return [decode_group(row["group"]) for row in rows()]


@given(rewards_of_agents)
def test_weighted_by_one_nth_decisions_sum_to_their_agents_advantage_and_windows_to_zero(agents):
    rewards = [math.fsum(own) for own in agents]
    advantages = leave_one_out(rewards)
    weighted = []
    for own, reward, advantage in zip(agents, rewards, advantages, strict=True):
        parts = [one / len(own) for one in decision_advantages(reward, advantage, own)]
        assert math.fsum(parts) == pytest.approx(advantage, abs=1e-14)
        weighted += parts
    assert math.fsum(weighted) == pytest.approx(0, abs=1e-13)


@given(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.integers(1, 6))
def test_equal_decisions_have_their_agents_advantage_each(reward, advantage, count):
    assert decision_advantages(reward, advantage, [reward / count] * count) == pytest.approx([advantage] * count)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from(VERBS), st.sampled_from([1.0, 0.5, 0.25])), max_size=12))
def test_weighted_advantages_sum_to_zero_within_every_action(entries):
    columns = [list(column) for column in zip(*entries, strict=True)] or [[], [], []]
    centred = center_by_action(*columns)
    for verb in VERBS:
        own = [value * weight for value, (_, label, weight) in zip(centred, entries, strict=True) if label == verb]
        assert math.fsum(own) == pytest.approx(0, abs=1e-12)


def test_only_members_whose_decisions_have_all_of_their_reward_have_rewards_of_decisions():
    first, second = groups()
    told = {member.trajectory_id: member.decision_rewards for one in (first, second) for member in one.members}
    assert told["b"] is told["d"] is msgspec.UNSET
    assert [len(told[name]) for name in "acef"] == [2, 3, 3, 2] and told["c"][1] == 0.0
    for member in (*first.members, *second.members):
        if member.decision_rewards is not msgspec.UNSET:
            assert math.fsum(member.decision_rewards) == pytest.approx(member.reward, abs=1e-15)


def test_a_step_that_earned_without_a_decision_leaves_the_reward_to_the_whole_run():
    own = run("a", [9.0, -4.0])
    silent = msgspec.structs.replace(own.steps[1], llm_calls=[])
    row = group_of(
        10, msgspec.structs.replace(own, steps=[own.steps[0], silent], calls=own.calls[:1]), run("b", [9.0, -4.0, None])
    )
    members = {member["trajectory_id"]: member for member in row["group"]["members"]}
    assert "decision_rewards" not in members["a"] and len(members["b"]["decision_rewards"]) == 3


def test_calls_of_one_step_share_its_reward():
    own = run("a", [9.0, -4.0])
    twice = msgspec.structs.replace(own.steps[0], llm_calls=own.steps[0].llm_calls * 2)
    calls = [own.calls[0], msgspec.structs.replace(own.calls[0], call_id="a-call-0-1"), own.calls[1]]
    row = group_of(10, msgspec.structs.replace(own, steps=[twice, own.steps[1]], calls=calls), run("b", [1.0]))
    (member,) = (member for member in decode_group(row["group"]).members if member.trajectory_id == "a")
    first, second, third = member.decision_rewards
    assert first == second > 0 > third and first + second + third == pytest.approx(member.reward)


def test_rewards_of_decisions_survive_the_database_and_a_group_without_them_keeps_its_digest():
    for row in rows():
        stored = json.loads(json.dumps(row["group"]))
        assert digest_of(decode_group(stored)) == row["group_digest"]
        assert encode_group(decode_group(stored)) == stored
    (old,) = (member for member in rows()[0]["group"]["members"] if member["trajectory_id"] == "b")
    assert set(old) == {
        "trajectory_id", "agent_id", "reward", "advantage", "checkpoint", "decisions", "action_values",
        "action_advantages",
    }  # fmt: skip
    import pandas as pd

    found, _ = trainable_groups(pd.DataFrame(rows()))
    assert found == groups()


def test_numbers_that_stand_for_no_decisions_are_refused():
    member = groups()[0].members[0]
    for wrong in ([0.1], [0.1, math.nan]):
        with pytest.raises(VerbatimError, match="decisions"):
            check_values(msgspec.structs.replace(member, decision_rewards=wrong))


@pytest.mark.parametrize("kind", ["leave_one_out", "leave_one_out_action_centred", "all_actions"])
def test_a_snapshots_weighted_advantages_are_centred_and_sum_to_their_agents(kind):
    snapshot = make_snapshot(groups(), "demo", {"advantages": kind}, 1)
    assert is_centred(advantages_of(snapshot.groups))
    assert len(advantages_of(snapshot.groups)) == 2 + 1 + 3 + 1 + 3 + 2
    for group in snapshot.groups:
        for member in group.members:
            if member.decision_rewards is not msgspec.UNSET:
                mean = math.fsum(member.decision_advantages) / len(member.decisions)
                assert mean == pytest.approx(member.advantage, abs=1e-15)
    again = make_snapshot(groups()[::-1], "demo", {"advantages": kind}, 1)
    assert again.snapshot_id == snapshot.snapshot_id


def test_leave_one_out_advantages_are_those_of_the_agents_rewards():
    group = make_snapshot(groups(), "demo", {"advantages": "leave_one_out"}, 1).groups[0]
    rewards = [member.reward for member in group.members]
    assert [member.advantage for member in group.members] == leave_one_out(rewards)
    first = group.members[0]
    others = math.fsum(rewards[1:]) / 3
    assert first.decision_advantages == pytest.approx([2 * own - others for own in first.decision_rewards])


def test_within_an_action_the_decisions_of_a_batch_sum_to_zero():
    snapshot = make_snapshot(groups(), "demo", {"advantages": "leave_one_out_action_centred"}, 1)
    own = {}
    for member in (member for group in snapshot.groups for member in group.members):
        if member.decision_advantages is msgspec.UNSET:
            continue
        for decision, advantage in zip(member.decisions, member.decision_advantages, strict=True):
            own.setdefault(decision.response, []).append(advantage / len(member.decisions))
    # `b`, of one decision, is a BUY as well; `d` has one label for both of its own.
    (b,) = (m for m in snapshot.groups[0].members if m.trajectory_id == "b")
    assert math.fsum([*own["BUY"], b.advantage]) == pytest.approx(0, abs=1e-15)
    assert math.fsum(own["SELL"]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("kind", ["leave_one_out", "leave_one_out_action_centred"])
def test_what_reaches_arts_loss_of_a_decision_is_its_advantage_over_n_times_one_constant(tokenizer, kind):
    snapshot = make_snapshot(groups(), "demo", {"advantages": kind}, 1)
    converted = batch_to_art(snapshot.groups)
    found = advantages_in_the_loss(tokenizer, converted)
    pairs = []
    for member in (member for group in snapshot.groups for member in group.members):
        if member.decision_advantages is msgspec.UNSET:
            stored = [member.advantage] * len(member.decisions)
        else:
            stored = [advantage / len(member.decisions) for advantage in member.decision_advantages]
        # What is 0 is left out, by ART where it is 0 to the last digit.
        reached = [value for value in found.get(member.trajectory_id, []) if abs(value) > 1e-9]
        pairs += zip(sorted(own for own in stored if own), sorted(reached), strict=True)
    constant = max(abs(value) for _, value in pairs) / max(abs(advantage) for advantage, _ in pairs)
    assert constant > 0
    for advantage, value in pairs:
        assert value == pytest.approx(advantage * constant, rel=1e-5, abs=1e-5)


def test_art_weighs_every_trajectory_alike_so_that_an_agent_counts_once(tokenizer):
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    random.seed(0)
    converted = batch_to_art(groups_of_snapshot())
    totals, whole = {}, {}
    for result in tokenize_trajectory_groups(tokenizer, converted, False, scale_rewards=False):
        weight = result.weight * sum(result.assistant_mask)
        totals[id(result.trajectory)] = totals.get(id(result.trajectory), 0.0) + weight
        name = result.trajectory.metadata["trajectory_id"]
        whole[name] = whole.get(name, 0.0) + weight * result.advantage
    assert list(totals.values()) == pytest.approx([1.0] * len(totals), rel=1e-5)
    advantages = {m.trajectory_id: m.advantage for g in groups_of_snapshot() for m in g.members}
    assert whole == pytest.approx(advantages, rel=1e-4, abs=1e-9)


def groups_of_snapshot():
    return make_snapshot(groups(), "demo", {"advantages": "leave_one_out"}, 1).groups


def test_advantages_of_decisions_that_are_not_centred_are_not_handed_over():
    group = groups_of_snapshot()[1]
    first = group.members[0]
    shifted = msgspec.structs.replace(first, decision_advantages=[a + 0.01 for a in first.decision_advantages])
    with pytest.raises(TrainingError, match="do not sum to 0"):
        batch_to_art([msgspec.structs.replace(group, members=[shifted, *group.members[1:]])])
