"""What a group takes and leaves: settings, the judge's verdict, leaks, baselines and alarms, all told in its row."""

import random

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from babylon_rl.errors import SettingsError
from babylon_rl.groups.baselines import AgentHistory
from babylon_rl.groups.build import GroupSettings, build_group
from babylon_rl.groups.leaks import Leak
from babylon_rl.groups.trained_view import decode_group, digest_of
from babylon_rl.groups.windows import tolerance_for
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.scorers import score_window
from babylon_rl.scoring.seam import Scorer
from babylon_rl.settings import Settings
from babylon_rl.windows import shift_window
from babylon_rl_tests.scoring import made

READY = {"status": "ready", "reason": ""}
VERBS = ("BUY", "SELL", "HOLD")
ASIDE = {"verdict": "set_aside", "reason": "set aside for alpha: it agrees with nothing", "judge": "m", "noise": 0.2}


def played(pnls, verbs=VERBS, names="abcdefghijkl"):
    own = [
        made.trajectory(name, "HOLD" if pnl == 0 else verbs[place % 2], pnl)
        for place, (name, pnl) in enumerate(zip(names, pnls, strict=False))
    ]
    return made.recorded(*own)


def built(window, scored=None, **given_):
    return build_group(READY, window, score_window(window, made.outcomes()) if scored is None else scored, **given_)


def advantages(row):
    return {member["agent_id"]: member["advantage"] for member in row["group"]["members"]}


def judged(window, rewards, scorer="ruler"):
    """Rows of a judge that gave these rewards, by trajectory; alpha's stand beside them."""
    scored = score_window(window, made.outcomes())
    return scored.assign(
        scorer=scorer, scorer_version="3", reward=scored["trajectory_id"].map(rewards), action_values=None
    )


# --- size ------------------------------------------------------------------------------------------------


def test_a_group_smaller_than_its_least_size_says_so():
    row = built(played([5, -5, 0]), settings=GroupSettings(min_group_size=4))
    assert row["status"] == "too_few_members" and row["reason"].endswith(
        "3 of 3 trajectories can be trained on, 4 must be"
    )
    assert built(played([5, -5, 0]), settings=GroupSettings(min_group_size=3))["status"] == "trainable"


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 100))
def test_a_large_group_is_cut_by_seed_whatever_the_order_and_the_others_are_told(size, most, seed, order):
    window = played([0.5 + number for number in range(size)])
    settings = GroupSettings(max_per_group=most, seed=seed)
    row = built(window, settings=settings)
    shuffled = made.recorded(*made.shuffled(window.usable, order))
    assert built(shuffled, settings=settings) == row
    assert row["members"] == min(size, most) and row["members"] + len(row["left_out"]) == size
    for one in row["left_out"]:
        assert one["reason"] == f"max_per_group: {most} of {size} were chosen by seed {seed}"
    assert [one["trajectory_id"] for one in row["left_out"]] == sorted(one["trajectory_id"] for one in row["left_out"])


def test_another_seed_chooses_others():
    window = played([0.5 + number for number in range(9)])
    chosen = {tuple(advantages(built(window, settings=GroupSettings(max_per_group=4, seed=s)))) for s in range(4)}
    assert len(chosen) > 1


def test_what_tells_the_future_is_left_out_with_what_it_told():
    leaks = {"a": [Leak("ACME's close", "105.3", 12)], "b": []}
    row = built(played([5, -5, 0]), leaks=leaks)
    assert row["left_out"] == [{"trajectory_id": "a", "agent_id": "agent-a", "reason": "leak: ACME's close: '105.3'"}]
    assert list(advantages(row)) == ["agent-b", "agent-c"]


# --- noise -----------------------------------------------------------------------------------------------


def test_rewards_within_the_noise_are_no_spread_and_the_group_carries_the_noise():
    window = played([5, -5, 0])
    row = built(window, tolerance=0.02)
    assert row["status"] == "no_spread" and set(advantages(row).values()) == {0.0}
    group = decode_group(built(window, tolerance=0.001)["group"])
    assert group.tolerance == 0.001 and digest_of(decode_group(built(window)["group"])) != digest_of(group)
    assert "tolerance" not in built(window)["group"]


def test_the_noise_is_the_larger_of_the_scorers_and_the_judges_as_measured():
    judge = Scorer("ruler", "1", list, noise=0.05, reads_texts=True)
    assert tolerance_for(judge, {"noise": 0.2}) == 0.2
    assert tolerance_for(judge, {"noise": 0.01}) == 0.05
    for unknown in (None, {"noise": None}, {"noise": float("nan")}):
        assert tolerance_for(judge, unknown) == 0.05
    mixed = Scorer("blend", "1", list, settings={"weights": {"alpha": 1.0, "ruler": 0.1}}, reads_texts=True)
    # A judge's noise says nothing of rewards that are computed, and its part in a blend of the blend.
    assert tolerance_for(Scorer("alpha", "1", list), {"noise": 0.2}) == 1e-6
    assert tolerance_for(mixed, {"noise": 0.2}) == pytest.approx(0.02)
    assert tolerance_for(None, {"noise": 0.2}) == 0.2 and tolerance_for(None, None) == 1e-6


@pytest.mark.parametrize(("count", "reward"), [(3, 0.1), (7, 0.7)])
def test_equal_rewards_of_a_judge_give_exactly_no_advantage_also_with_baselines(count, reward):
    window = played([1.0 + number for number in range(count)])
    scored = judged(window, {one.trajectory_id: reward for one in window.usable})
    history = history_of({"agent-a": 0.5, "agent-b": -0.5, "agent-c": 0.0}, scorer="ruler", version="3")
    row = built(window, scored, history=history)
    assert any(row["baselines"].values())
    assert row["status"] == "no_spread" and set(advantages(row).values()) == {0.0}


# --- the judge -------------------------------------------------------------------------------------------


def test_where_the_judge_is_set_aside_the_group_is_alphas():
    window = played([5, -5, 0])
    scored = judged(window, {"a": 0.0, "b": 1.0, "c": 0.5}).assign(decision_rewards=[{"0": 9.0}] * 3)
    row, alpha = built(window, scored, verdict=ASIDE), built(window)
    assert row["scorer"] == "alpha" and row["judge_verdict"] == "set_aside"
    assert "the judge m is set aside for alpha: it agrees with nothing; rewards are alpha's" in row["reason"]
    assert advantages(row) == advantages(alpha) and row["reward_spread"] == alpha["reward_spread"]
    assert decode_group(row["group"]).scorer_version == ALPHA.version
    assert "9.0" not in str(row["group"])


@pytest.mark.parametrize("verdict", ["trusted", "unproven", "no_judge"])
def test_another_verdict_is_stored_and_leaves_the_rewards(verdict):
    window = played([5, -5, 0])
    row = built(window, judged(window, {"a": 0.0, "b": 1.0, "c": 0.5}), verdict={**ASIDE, "verdict": verdict})
    assert (row["scorer"], row["judge_verdict"], row["reward_spread"]) == ("ruler", verdict, 1.0)
    assert advantages(row)["agent-b"] > 0 and "set aside" not in row["reason"]


def test_a_run_without_alphas_reward_cannot_take_the_judges_place():
    window = played([5, -5, 0])
    scored = judged(window, {"a": 0.0, "b": 1.0, "c": 0.5})
    scored["outcome_score"] = scored["outcome_score"].astype(float).mask(scored["trajectory_id"] == "a")
    row = built(window, scored, verdict=ASIDE)
    assert [(one["trajectory_id"], one["reason"].split(":")[0]) for one in row["left_out"]] == [("a", "no_capital")]
    assert row["members"] == 2 and row["status"] == "trainable"


# --- who the agent is ------------------------------------------------------------------------------------


def history_of(levels, hours=40, scorer="alpha", version=ALPHA.version, seed=0):
    """Earlier windows in which agents earned their levels, with noise, and what the market gave to all."""
    stream = random.Random(seed)
    rows = []
    for back in range(hours, 0, -1):
        market = stream.gauss(0, 1)
        for agent, level in levels.items():
            reward = level + market + stream.gauss(0, 0.01)
            rows.append((shift_window(made.WINDOW, -back), agent, scorer, version, reward, reward, "logged"))
    columns = ["window_id", "agent_id", "scorer", "scorer_version", "reward", "outcome_score", "provenance"]
    return AgentHistory(pd.DataFrame(rows, columns=columns))


RICH = {"agent-a": 0.1, "agent-b": 0.0, "agent-c": -0.1}


def test_a_baseline_is_taken_off_and_the_row_says_what_it_rests_on():
    window = played([5, -5, 0])
    row, plain = built(window, history=history_of(RICH)), built(window)
    assert row["baselines"] == pytest.approx(RICH, abs=0.01) and row["agent_share"] > 0.9
    assert row["settings"]["history"]["windows"] == 40
    assert row["settings"]["history"]["last"] == shift_window(made.WINDOW, -1)
    rewards = {member["agent_id"]: member["reward"] for member in row["group"]["members"]}
    residuals = {agent: rewards[agent] - row["baselines"][agent] for agent in rewards}
    for agent, advantage in advantages(row).items():
        others = [residual for name, residual in residuals.items() if name != agent]
        assert advantage == pytest.approx(residuals[agent] - sum(others) / 2)
    assert sum(advantages(row).values()) == pytest.approx(0, abs=1e-12)
    assert advantages(plain)["agent-a"] > 0 > advantages(row)["agent-a"]
    assert (plain["baselines"], plain["agent_share"]) == (None, None)


def test_without_a_history_the_stored_group_is_what_it_was():
    window = played([5, -5, 0])
    none_yet = AgentHistory(score_window(window, made.outcomes()))
    row = built(window, history=none_yet)
    assert row["group_digest"] == built(window)["group_digest"] and "baseline" not in str(row["group"])
    assert set(row["baselines"].values()) == {0.0}


def test_plain_centring_is_refused_where_rewards_tell_who_the_agent_is():
    window, plain = played([5, -5, 0]), GroupSettings(agent_baseline="none")
    row = built(window, history=history_of(RICH), settings=plain)
    assert row["status"] == "agent_bias" and set(advantages(row).values()) == {0.0} and row["baselines"] is None
    assert "BABYLON_RL_AGENT_BASELINE=shrunken" in row["reason"] and row["agent_share"] > 0.5
    alike = history_of(dict.fromkeys(RICH, 0.0))
    assert built(window, history=alike, settings=plain)["status"] == "trainable"
    # Over a few windows a large share comes about by chance.
    assert built(window, history=history_of(RICH, hours=4), settings=plain)["status"] == "trainable"
    high = GroupSettings(agent_baseline="none", agent_share_limit=1.0)
    assert built(window, history=history_of(RICH), settings=high)["status"] == "trainable"


def test_a_group_is_made_with_the_settings_of_the_user_and_says_so():
    settings = GroupSettings.of(
        Settings(min_group_size=3, max_per_group=5, group_seed=7, agent_baseline="none", agent_share_limit=0.4)
    )
    row = built(played([5, -5, 0]), settings=settings)
    assert row["settings"] == {
        "min_group_size": 3, "max_per_group": 5, "seed": 7, "agent_baseline": "none", "agent_share_limit": 0.4,
        "tolerance": 1e-6,
    }  # fmt: skip


def test_sizes_that_no_group_could_have_are_refused():
    with pytest.raises(SettingsError, match="BABYLON_RL_MAX_PER_GROUP=2"):
        GroupSettings.of(Settings(min_group_size=3, max_per_group=2))


# --- alarms ----------------------------------------------------------------------------------------------


def test_a_window_in_which_all_hold_says_so_and_a_usual_one_says_nothing():
    (alarm,) = built(played([0, 0, 0]))["alarms"]
    assert (alarm["kind"], alarm["value"], alarm["detail"]) == ("all_hold", 1.0, "HOLD 100 %")
    assert alarm["limit"] == pytest.approx(0.95 * (1 - 0.1 * 2 / 3))
    assert built(played([5, -5, 0]))["alarms"] == []


def test_fees_beyond_what_is_earned_are_overtrading_and_one_side_alone_is_no_alarm():
    window = made.recorded(*(made.trajectory(name, "BUY", pnl) for name, pnl in (("a", -0.3), ("b", -0.25))))
    assert [alarm["kind"] for alarm in built(window)["alarms"]] == ["overtrading"]
    window = made.recorded(*(made.trajectory(name, "BUY", pnl) for name, pnl in (("a", 3.0), ("b", 4.0))))
    assert built(window)["alarms"] == []
