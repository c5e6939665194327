"""What texts add to a window: members for the supervised loss, and nothing that changes the logged ones."""

import math

import msgspec
import pytest

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.groups.admitting import labels_of
from babylon_rl.groups.build import GroupSettings, build_group
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.groups.trained_view import VerbatimError, check_verbatim, decode_group
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made

READY = {"status": "ready", "reason": ""}
SETTINGS = {"advantages": "leave_one_out"}
LINEAGE = Lineage("demo", {"demo@0": 0}, current=0)
# Of four logged members, as main made it before texts could be members.
DIGEST = "7570087037d212c3571891ea8d86c53c92a8733c90c10d797fc68a464591d01c"


def logged():
    return [
        made.trajectory("a", "BUY", 5.0),
        made.trajectory("b", "SELL", -5.0),
        made.trajectory("c", "HOLD"),
        made.trajectory("d", verbs=["BUY", "SELL"], pnl=1.0),
    ]


def texts(*pnls):
    return [
        made.trajectory(f"text-{place}", "BUY", pnl, calls=[], provenance="no_logprobs")
        for place, pnl in enumerate(pnls)
    ]


def row_of(*runs, **choices):
    window = made.recorded(*runs)
    return build_group(READY, window, score_window(window, made.outcomes()), **choices)


def group_of(*runs, **choices):
    return decode_group(row_of(*runs, **choices)["group"])


def test_a_group_of_logged_members_has_the_digest_that_it_had_before_texts_could_be_members():
    assert row_of(*logged())["group_digest"] == DIGEST


@pytest.mark.parametrize("advantages", ["leave_one_out", "leave_one_out_action_centred", "all_actions"])
def test_the_logged_members_of_a_mixed_window_are_trained_exactly_as_without_the_texts(advantages):
    settings = {"advantages": advantages}
    runs = [made.trajectory("a", "SELL", 2.0), made.trajectory("b", "BUY", -1.0), made.trajectory("c", "HOLD")]
    other = msgspec.structs.replace(group_of(*runs), window_id="2026-01-05T11:00")
    alone = make_snapshot([group_of(*logged()), other], "demo", settings, 1, lineage=LINEAGE).groups[0]
    both = [group_of(*logged(), *texts(9.0, -9.0, 2.0)), other]
    mixed = make_snapshot(both, "demo", settings, 1, lineage=LINEAGE).groups[0]
    assert [m for m in mixed.members if m.loss is msgspec.UNSET] == alone.members
    assert labels_of(mixed.members) == {
        "importance_weighted": {"on_policy": len(alone.members)},
        "weighted_supervised": {"no_logprobs": 2},
    }
    stored = {m.trajectory_id: m.advantage for m in group_of(*logged(), *texts(9.0, -9.0)).members}
    assert {name: stored[name] for name in "abcd"} == {
        m.trajectory_id: m.advantage for m in group_of(*logged()).members
    }


def test_a_text_weighs_what_it_earned_above_the_mean_of_all_others_less_their_agents_baselines():
    group = group_of(*logged(), *texts(9.0, -9.0, 2.0))
    baselines = [0.001, -0.002, 0.0, 0.0005, 0.002, 0.0, -0.001]
    members = [msgspec.structs.replace(m, baseline=b) for m, b in zip(group.members, baselines, strict=True)]
    snapshot = make_snapshot([msgspec.structs.replace(group, members=members)], "demo", SETTINGS, 1, lineage=LINEAGE)
    residuals = [m.reward - m.taken_off for m in members]
    for member in snapshot.groups[0].members:
        place = [m.trajectory_id for m in members].index(member.trajectory_id)
        others = math.fsum(residuals[:place] + residuals[place + 1 :]) / (len(members) - 1)
        if member.loss is not msgspec.UNSET:
            assert member.advantage == pytest.approx(residuals[place] - others) and member.advantage > 0
    assert snapshot.left_out == {"members not_better_than_baseline": 1}


def test_a_text_is_what_was_recorded_byte_for_byte_and_has_no_tokens():
    run = texts(9.0)[0]
    window = made.recorded(*logged(), run)
    group = group_of(*logged(), run)
    (decision,) = group.members[-1].decisions
    call = run.steps[0].llm_calls[0]
    assert (decision.system_prompt, decision.user_prompt, decision.response) == (
        call.system_prompt, call.user_prompt, call.response,
    )  # fmt: skip
    assert decision.token_ids == decision.logprobs == decision.prompt_token_ids == [] and decision.choices is None
    check_verbatim(group, window)
    other = msgspec.structs.replace(decision, response=f"{decision.response} ")
    changed = msgspec.structs.replace(group.members[-1], decisions=[other])
    with pytest.raises(VerbatimError, match="response is not what was recorded"):
        check_verbatim(msgspec.structs.replace(group, members=[*group.members[:-1], changed]), window)


def test_a_window_of_texts_alone_is_trainable_for_the_supervised_loss_and_says_so():
    row = row_of(*texts(9.0, -9.0, 2.0))
    assert row["status"] == "trainable" and row["reason"].startswith("weighted supervised loss only: 2 of 3 texts")
    assert row["settings"]["loss"] == "weighted_supervised"
    (group,) = make_snapshot([decode_group(row["group"])], "demo", SETTINGS, 1, lineage=LINEAGE).groups
    assert [m.trajectory_id for m in group.members] == ["text-0", "text-2"]
    assert row_of(*texts(1.0))["status"] == "too_few_members" and row_of(*texts(0.0, 0.0))["status"] != "trainable"


def test_logged_members_that_are_too_few_are_the_texts_baseline_and_are_not_trained():
    group = group_of(*logged()[:2], *texts(9.0), settings=GroupSettings(min_group_size=3))
    snapshot = make_snapshot([group], "demo", SETTINGS, 1, lineage=LINEAGE)
    assert labels_of(snapshot.groups[0].members) == {"weighted_supervised": {"no_logprobs": 1}}
    assert snapshot.left_out == {"members too_few_logged": 2}


def test_what_another_model_played_with_tokens_enters_the_supervised_loss_by_its_text():
    foreign = [made.trajectory(f"x{place}", "BUY", pnl, checkpoint="gpt") for place, pnl in enumerate((8.0, -8.0))]
    snapshot = make_snapshot([group_of(*logged(), *foreign)], "demo", SETTINGS, 1, lineage=LINEAGE)
    assert labels_of(snapshot.groups[0].members) == {
        "importance_weighted": {"on_policy": 4},
        "weighted_supervised": {"foreign_model": 1},
    }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"backend": "wandb"}, "2 members no_logprobs"),
        ({"backend": "art-local"}, "2 members no_logprobs"),
        ({"admit": ("on_policy",)}, "2 members narrowed no_logprobs"),
        ({"last_window": "2026-01-20T10:00"}, "2 members stale_days"),
    ],
)
def test_texts_are_left_out_where_backend_setting_or_age_forbid_them(changed, reason):
    with pytest.raises(TrainingError, match=reason):
        make_snapshot([group_of(*texts(9.0, -9.0))], "demo", {**SETTINGS, **changed}, 1, lineage=LINEAGE)


@pytest.mark.parametrize(
    ("drawn", "trains"),
    [({}, True), ({"choices": made.CHOICES}, False), ({"temperature": 0.7}, False), ({"top_p": 0.9}, False)],
)
@pytest.mark.parametrize("backend", ["wandb", "art-local"])
def test_answers_drawn_from_another_distribution_reach_no_backend_that_assumes_the_whole_one(backend, drawn, trains):
    free = {"choices": None, "exploration": 0.0, "temperature": 1.0, "top_p": 1.0, **drawn}
    calls = {name: [msgspec.structs.replace(made.call(name, "BUY"), **free)] for name in ("a", "b")}
    runs = [made.trajectory(name, "BUY", pnl, calls=calls[name]) for name, pnl in (("a", 5.0), ("b", -5.0))]
    settings = {**SETTINGS, "backend": backend}
    if trains:
        assert len(make_snapshot([group_of(*runs)], "demo", settings, 1, lineage=LINEAGE).groups[0].members) == 2
    else:
        with pytest.raises(TrainingError, match="2 members drawn_otherwise"):
            make_snapshot([group_of(*runs)], "demo", settings, 1, lineage=LINEAGE)


def test_days_count_back_from_the_largest_window_of_the_batch():
    old = group_of(*logged())
    new = msgspec.structs.replace(old, window_id="2026-01-19T11:00")
    snapshot = make_snapshot([old, new], "demo", SETTINGS, 1, lineage=LINEAGE)
    assert snapshot.window_ids == (new.window_id,) and snapshot.left_out["members stale_days"] == 4
    within = {**SETTINGS, "stale_days": 14.1}
    assert len(make_snapshot([old, new], "demo", within, 1, lineage=LINEAGE).groups) == 2


def test_a_checkpoint_that_its_run_set_aside_is_imitated_by_no_loss():
    aside = Lineage("demo", {"demo@0": 0}, 0, ("demo@9",))
    played = [made.trajectory(f"x{place}", "BUY", pnl, checkpoint="demo@9") for place, pnl in enumerate((8.0, -8.0))]
    snapshot = make_snapshot([group_of(*logged(), *played)], "demo", SETTINGS, 1, lineage=aside)
    assert labels_of(snapshot.groups[0].members) == {"importance_weighted": {"on_policy": 4}}
    assert snapshot.left_out == {"members set_aside": 2}


def test_a_recipe_cannot_ask_for_what_no_loss_takes():
    with pytest.raises(SettingsError, match="No loss may take trajectories labelled no_text"):
        make_snapshot([group_of(*logged())], "demo", {**SETTINGS, "admit": ("no_text",)}, 1, lineage=LINEAGE)


def test_at_most_so_many_members_keeps_the_logged_ones_that_it_keeps_without_texts():
    limit = GroupSettings(max_per_group=3)
    alone = {m.trajectory_id for m in group_of(*logged(), settings=limit).members}
    assert {m.trajectory_id for m in group_of(*logged(), *texts(9.0, 1.0), settings=limit).members} == alone
    roomy = group_of(*logged(), *texts(9.0, 1.0), settings=GroupSettings(max_per_group=5))
    assert len(roomy.members) == 5 and {"a", "b", "c", "d"} <= {m.trajectory_id for m in roomy.members}
