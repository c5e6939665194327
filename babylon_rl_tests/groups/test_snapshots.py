import math
import random

import msgspec
import pytest

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.advantages import leave_one_out
from babylon_rl.groups.build import build_group
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import action_of, make_snapshot, minibatch_of
from babylon_rl.groups.trained_view import canonical_json, decode_group
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made

SETTINGS = {"advantages": "leave_one_out", "learning_rate": 5e-4}
CENTRED = {**SETTINGS, "advantages": "leave_one_out_action_centred"}
READY = {"status": "ready", "reason": ""}


def group(hour, pnls, checkpoints=None):
    window_id = f"2026-01-05T{hour:02d}:00"
    verbs = ["BUY", "SELL", "HOLD", "SELL"]
    own = [
        made.trajectory(
            f"{hour}-{i}", verbs[i % 4], pnl, agent_id=f"agent-{i}", checkpoint=(checkpoints or {}).get(i, "demo@0")
        )
        for i, pnl in enumerate(pnls)
    ]
    window = made.recorded(*own, window_id=window_id)
    return decode_group(build_group(READY, window, score_window(window, made.outcomes(window_id)))["group"])


def batch():
    return [group(10, [5.0, -5.0, 0.0]), group(11, [-2.0, 3.0, 0.0, 1.0]), group(12, [4.0, 0.5])]


def advantages_of(groups):
    return [member.advantage for one in groups for member in one.members]


@pytest.mark.parametrize("settings", [SETTINGS, CENTRED])
def test_the_id_depends_on_the_content_and_not_on_the_order(settings):
    first = make_snapshot(batch(), "demo", settings, 1)
    turned = [msgspec.structs.replace(one, members=one.members[::-1]) for one in reversed(batch())]
    again = make_snapshot(turned, "demo", dict(reversed(settings.items())), 1)
    assert again.snapshot_id == first.snapshot_id and again.content == first.content
    others = [
        make_snapshot(batch(), "demo", settings, 2),
        make_snapshot(batch(), "other", settings, 1),
        make_snapshot(batch(), "demo", {**settings, "learning_rate": 1e-4}, 1),
        make_snapshot(batch()[:2], "demo", settings, 1),
        make_snapshot(batch(), "demo", settings, 1, left_out={"not_ready": 1}),
    ]
    assert len({one.snapshot_id for one in [first, *others]}) == 6


def test_with_all_actions_every_choice_of_a_valued_window_has_an_advantage():
    stream = random.Random(0)
    first, second, third = *batch()[:2], group(12, [4.0, 0.5, 0.0, -1.0])
    members = [
        msgspec.structs.replace(m, action_values=[stream.gauss(0, 1) for _ in range(3)])
        for one in (first, second)
        for m in one.members
    ]
    size = len(first.members)
    first, second = (
        msgspec.structs.replace(one, members=own) for one, own in ((first, members[:size]), (second, members[size:]))
    )
    groups = make_snapshot([first, second, third], "demo", {**SETTINGS, "advantages": "all_actions"}, 1).groups
    made_of = [m.action_advantages for one in groups[:2] for m in one.members]
    for action in zip(*made_of, strict=True):
        assert sum(action) == pytest.approx(0, abs=1e-12)
    for member in groups[0].members:
        taken = member.decisions[0].choices.index(member.decisions[0].response)
        assert member.advantage == member.action_advantages[taken]
    # Values of one decision, less an equal amount a decision and an amount an action: differences of differences stay.
    a, b = made_of[0], made_of[1]
    va, vb = first.members[0].action_values, first.members[1].action_values
    assert (a[0] - a[1]) - (b[0] - b[1]) == pytest.approx((va[0] - va[1]) - (vb[0] - vb[1]))
    # Where nothing is valued, what was done is trained on.
    assert all(m.action_advantages is None for m in groups[2].members) and any(advantages_of(groups[2:]))


def test_a_member_without_values_is_left_out_of_a_valued_window_and_counted():
    first = batch()[0]
    own = [msgspec.structs.replace(first.members[0], action_values=[0.1, -0.1, 0.0]), *first.members[1:]]
    other = msgspec.structs.replace(
        group(13, [1.0]), members=[msgspec.structs.replace(group(13, [1.0]).members[0], action_values=[-0.2, 0.1, 0.0])]
    )
    mixed = msgspec.structs.replace(first, members=own)
    snapshot = make_snapshot([mixed, other], "demo", {**SETTINGS, "advantages": "all_actions"}, 1)
    assert [len(one.members) for one in snapshot.groups] == [1, 1]
    assert snapshot.left_out == {"members without action_values": 2}
    wrong = msgspec.structs.replace(own[0], action_values=[0.1, 0.2])
    with pytest.raises(TrainingError, match="do not stand for the recorded choices"):
        make_snapshot([msgspec.structs.replace(first, members=[wrong])], "demo", SETTINGS, 1)


def test_a_snapshot_says_its_windows_in_order_and_what_was_left_out():
    equal = group(14, [0.0, 0.0, 0.0])
    equal = msgspec.structs.replace(equal, members=[msgspec.structs.replace(m, reward=0.1) for m in equal.members])
    snapshot = make_snapshot([equal, *batch(), group(13, [1.0])], "demo", SETTINGS, 1, left_out={"not_ready": 2})
    assert snapshot.window_ids == ("2026-01-05T10:00", "2026-01-05T11:00", "2026-01-05T12:00")
    assert snapshot.left_out == {"no_spread": 1, "not_ready": 2, "too_few_members": 1}


def test_centred_advantages_sum_to_zero_within_each_action_of_the_batch():
    groups = make_snapshot(batch(), "demo", CENTRED, 1).groups
    for action in ("BUY", "SELL", "HOLD"):
        own = [m.advantage for one in groups for m in one.members if action_of(m) == action]
        assert own and abs(math.fsum(own)) < 1e-15
    assert advantages_of(groups) != advantages_of(make_snapshot(batch(), "demo", SETTINGS, 1).groups)


def test_centring_is_over_each_minibatch_whose_shares_are_equal_and_in_order():
    assert minibatch_of(batch() * 2, 4) == [0, 0, 1, 2, 2, 3]
    assert minibatch_of(batch(), 8) == [0, 1, 2] and minibatch_of(batch(), 0) == [0, 0, 0]
    groups = make_snapshot(batch(), "demo", {**CENTRED, "minibatches": 2}, 1).groups
    for share in (groups[:2], groups[2:]):
        for action in ("BUY", "SELL", "HOLD"):
            assert abs(math.fsum(m.advantage for one in share for m in one.members if action_of(m) == action)) < 1e-15


def test_members_outside_the_lineage_are_left_out_before_the_advantages():
    mixed = group(10, [5.0, -5.0, 0.0, 9.0], {3: "gpt", 2: "demo@1"})
    lineage = Lineage("demo", {"demo@0": 0, "demo@1": 1}, current=1)
    snapshot = make_snapshot([mixed], "demo", {**SETTINGS, "admit": ("on_policy", "stale")}, 1, lineage=lineage)
    assert snapshot.left_out == {"members narrowed foreign_model": 1}
    assert len(snapshot.groups[0].members) == 3 and abs(math.fsum(advantages_of(snapshot.groups))) < 1e-15
    strict = {**SETTINGS, "stale_limit": 0}
    with pytest.raises(TrainingError, match="2 members stale"):
        make_snapshot([mixed], "demo", {**strict, "admit": ("on_policy", "stale")}, 1, lineage=lineage)


def test_nothing_trainable_is_an_error_that_says_why():
    with pytest.raises(TrainingError, match="no group was given"):
        make_snapshot([], "demo", SETTINGS, 1)
    with pytest.raises(TrainingError, match="1 too_few_members"):
        make_snapshot([group(10, [1.0])], "demo", SETTINGS, 1)
    # Each action occurs once: centring leaves nothing.
    with pytest.raises(TrainingError, match="Nothing trainable"):
        make_snapshot([group(10, [1.0, 2.0, 0.0])], "demo", CENTRED, 1)


def test_unknown_advantages_and_doubled_windows_are_refused():
    with pytest.raises(SettingsError, match="leave_one_out"):
        make_snapshot(batch(), "demo", {"advantages": "std"}, 1)
    with pytest.raises(TrainingError, match="twice"):
        make_snapshot([*batch(), batch()[0]], "demo", SETTINGS, 1)


@pytest.mark.parametrize(
    ("responses", "label"),
    [
        (["BUY ACME"], "BUY"),
        ([" sell."], "SELL"),
        (["SELL MOON", "BUY ACME", "SELL ACME"], "BUY+SELL"),
        (['{"action": "open_long", "trade": {}}'], "OPEN_LONG"),
        (["{broken"], "malformed"),
        ([""], "malformed"),
    ],
)
def test_a_member_is_labelled_by_what_it_answered(responses, label):
    member = batch()[0].members[0]
    decisions = [msgspec.structs.replace(member.decisions[0], response=response) for response in responses]
    assert action_of(msgspec.structs.replace(member, decisions=decisions)) == label


def with_baselines(one, *baselines):
    members = [msgspec.structs.replace(m, baseline=b) for m, b in zip(one.members, baselines, strict=False)]
    return msgspec.structs.replace(one, members=[*members, *one.members[len(members) :]])


def test_baselines_are_taken_off_also_where_members_are_left_out_since():
    mixed = with_baselines(group(10, [5.0, -5.0, 0.0, 9.0], {3: "gpt"}), 0.004, -0.001)
    lineage = Lineage("demo", {"demo@0": 0}, current=0)
    snapshot = make_snapshot([mixed], "demo", {**SETTINGS, "admit": ("on_policy", "stale")}, 1, lineage=lineage)
    (made_of,) = snapshot.groups
    residuals = [member.reward - taken for member, taken in zip(mixed.members, (0.004, -0.001, 0.0), strict=False)]
    assert [m.advantage for m in made_of.members] == pytest.approx(leave_one_out(residuals))
    assert [m.taken_off for m in made_of.members] == [0.004, -0.001, 0.0]
    assert canonical_json(made_of).count('"baseline"') == 2


def test_with_all_actions_a_baseline_changes_nothing_not_even_the_id():
    first = batch()[0]
    valued = msgspec.structs.replace(
        first,
        members=[msgspec.structs.replace(m, action_values=[0.1 * i, -0.1, 0.0]) for i, m in enumerate(first.members)],
    )
    settings = {**SETTINGS, "advantages": "all_actions"}
    plain = make_snapshot([valued], "demo", settings, 1)
    assert make_snapshot([with_baselines(valued, 0.5, 0.1)], "demo", settings, 1).content == plain.content


@pytest.mark.parametrize(("count", "reward"), [(3, 0.1), (7, 0.7)])
def test_equal_rewards_train_nothing_whatever_the_baselines(count, reward):
    equal = group(10, [1.0 + number for number in range(count)])
    equal = msgspec.structs.replace(equal, members=[msgspec.structs.replace(m, reward=reward) for m in equal.members])
    with pytest.raises(TrainingError, match="1 no_spread"):
        make_snapshot([with_baselines(equal, 0.3, -0.3)], "demo", SETTINGS, 1)


def test_rewards_within_the_noise_of_the_groups_scorer_train_nothing():
    noisy = msgspec.structs.replace(batch()[0], tolerance=0.5)
    snapshot = make_snapshot([noisy, *batch()[1:]], "demo", SETTINGS, 1)
    assert snapshot.left_out == {"no_spread": 1} and len(snapshot.groups) == 2


# --- dropout -----------------------------------------------------------------------------------------


def dropped(groups, target, most=0.3, seed=1, **settings):
    given = {**SETTINGS, "dropout_target": target, "max_dropout": most, **settings}
    return make_snapshot(groups, "demo", given, seed)


def test_a_batch_up_to_the_target_is_taken_whole():
    whole = dropped(batch(), 9)
    assert sum(len(one.members) for one in whole.groups) == 9 and whole.left_out == {}
    assert "dropout" not in whole.settings


def test_a_larger_batch_loses_members_by_seed_and_says_so():
    snapshot = dropped(batch(), 8, 0.5)
    assert snapshot.left_out == {"members dropout": 1}
    assert snapshot.settings["dropout"] == {
        "target": 8, "max_dropout": 0.5, "members": 9, "rate": pytest.approx(1 / 9), "left_out": 1
    }  # fmt: skip
    for one in snapshot.groups:
        assert abs(math.fsum(m.advantage for m in one.members)) < 1e-15
    turned = [msgspec.structs.replace(one, members=one.members[::-1]) for one in reversed(batch())]
    assert dropped(turned, 8, 0.5).snapshot_id == snapshot.snapshot_id
    kept = {frozenset(m.trajectory_id for one in dropped(batch(), 8, 0.5, seed).groups for m in one.members)
            for seed in range(6)}  # fmt: skip
    assert len(kept) > 1


def test_a_window_of_which_one_member_is_left_goes_with_its_reason():
    groups = [group(10, [5.0, -5.0]), group(11, [1.0, 2.0]), group(12, [4.0, 0.5])]
    for seed in range(8):
        snapshot = dropped(groups, 2, 0.2, seed)
        assert snapshot.left_out == {"members dropout": 1, "too_few_members": 1} and len(snapshot.groups) == 2


def test_members_that_are_not_admitted_do_not_count_for_the_target():
    mixed = group(10, [5.0, -5.0, 0.0, 9.0], {3: "gpt"})
    lineage = Lineage("demo", {"demo@0": 0}, current=0)
    limited = {**SETTINGS, "dropout_target": 3, "admit": ("on_policy", "stale")}
    snapshot = make_snapshot([mixed], "demo", limited, 1, lineage=lineage)
    assert snapshot.left_out == {"members narrowed foreign_model": 1}
