"""The life of an experiment over recorded hours of the simulated market: what starts, what ends it, and how."""

from datetime import timedelta

import pytest

from babylon_rl.errors import ServingError, SettingsError, TrainingError
from babylon_rl.evaluation.experiments import (
    list_experiments,
    load_experiment,
    route_of,
    running_experiment,
    save_experiment,
    stop,
)
from babylon_rl.evaluation.looks import looks
from babylon_rl.evaluation.planning import first_window, share_of
from babylon_rl.evaluation.promotion import roll_back
from babylon_rl.serving.in_force import coming, experiment_in_force, promotion_in_force
from babylon_rl.serving.routing import runs_in
from babylon_rl.training.runs import promote, promoted
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.evaluation.two_arms import BASELINE, CANDIDATE, NOW, OTHER, TwoArms, changed, malformed

pytest_plugins = ["babylon_rl_tests.evaluation.two_arms_played"]

FIRST = "2026-03-02T10:00"


def test_a_better_candidate_is_promoted_by_looks_hour_by_hour(arms):
    experiment = arms.start()
    found = arms.follow(experiment)
    ended = arms.load(experiment)
    assert ended.state == "promote" and found[-1].decision == "promote" and found[-1].low > 0
    assert {one.decision for one in found[:-1]} == {"go on"} and len(found) < experiment.horizon
    before, after = arms.booked()
    name = experiment.experiment_id
    assert after == (BASELINE, CANDIDATE, f"experiment {name}", "promotion", name)
    with arms.database.connect() as connection:
        evidence = promoted(connection)["evidence"]["experiment"]
        assert len(looks(connection, experiment.experiment_id)) == len(found)
    assert evidence["look"] == found[-1].digest and evidence["interval"] == [found[-1].low, found[-1].high]
    # Agents keep their arm until the hour of the look is over.
    hour, following = (shift_window(experiment.first_window, len(found) + n) for n in (0, 1))
    assert evidence["from_window"] == following == ended.end_window
    with arms.database.connect() as connection:
        still, then = experiment_in_force(connection, hour), experiment_in_force(connection, following)
        assert promotion_in_force(connection, hour).after == BASELINE
        assert promotion_in_force(connection, following).after == CANDIDATE
    assert still.route == route_of(ended) and runs_in(still.route, hour) and then is None


def test_an_equal_candidate_is_kept_at_the_horizon_and_nothing_is_promoted(arms):
    arms.plays[CANDIDATE] = arms.plays[BASELINE]
    experiment = arms.start(hours=30)
    found = arms.follow(experiment)
    assert [one.decision for one in found] == ["go on"] * 29 + ["keep"] and len(arms.booked()) == 1
    ended = arms.load(experiment)
    assert ended.state == "keep" and "30 windows gave no evidence" in ended.reason
    assert not any(guard["breached"] for one in found for guard in one.guardrails["guards"].values())


def test_a_broken_candidate_is_stopped_by_a_guardrail_within_hours_and_at_once(arms):
    arms.plays[CANDIDATE] = malformed
    experiment = arms.start()
    found = arms.follow(experiment, hours=6)
    ended = arms.load(experiment)
    assert len(found) == 3 and ended.state == "harm" and "0.0% valid actions against 100.0%" in ended.reason
    hour = shift_window(experiment.first_window, 3)
    with arms.database.connect() as connection:  # the hour that runs is no candidate's any more
        assert ended.end_window == hour and experiment_in_force(connection, hour) is None
    assert len(arms.booked()) == 1


def test_a_worse_candidate_is_stopped_by_the_sequence(arms):
    arms.plays[BASELINE], arms.plays[CANDIDATE] = arms.plays[CANDIDATE], arms.plays[BASELINE]
    experiment = arms.start()
    found = arms.follow(experiment, every=5)
    ended = arms.load(experiment)
    assert ended.state == "harm" and "is worse than" in ended.reason and found[-1].high < 0 and len(arms.booked()) == 1


def test_a_router_that_sends_all_to_one_arm_is_no_evidence(arms):
    experiment = arms.start()
    found = arms.follow(experiment, answers=lambda agent, window: CANDIDATE, hours=5)
    ended = arms.load(experiment)
    assert ended.state == "stopped" and len(found) == 3 and "other arm than the plan's" in ended.reason
    assert found[-1].sample_ratio_p < found[0].sample_ratio_p <= 1 and found[-1].guardrails["mismatched"] > 5
    assert len(arms.booked()) == 1


def test_runs_of_one_arm_that_are_not_recorded_fail_the_sample_ratio(arms):
    experiment = arms.start()
    route = arms.planned(experiment)

    def lost(agent: str, window: str) -> str:
        """Half of the candidate's runs are of a checkpoint that nobody asked for."""
        by = route(agent, window)
        return OTHER if by == CANDIDATE and agent in ("agent-1", "agent-2", "agent-3", "agent-4", "agent-5") else by

    found = arms.follow(experiment, answers=lost)
    ended = arms.load(experiment)
    assert ended.state == "stopped" and "50% were planned" in ended.reason and found[-1].guardrails["mismatched"] == 0
    assert found[-1].guardrails["left_out"]["other_checkpoint"] > 0 and len(arms.booked()) == 1


def test_a_switchback_is_decided_by_pairs_of_blocks(arms):
    arms = TwoArms(arms.database, experiment_block_hours=3)
    experiment = arms.start(hours=84, design="switchback")
    found = arms.follow(experiment, every=6, agents=4)
    assert arms.load(experiment).state == "promote" and found[-1].sample_ratio_p is None
    # A pair of blocks of three hours is one observation.
    assert found[-1].blocks == found[-1].windows // 6 >= 10


def test_the_same_windows_give_the_same_look_which_is_stored_once_and_late_data_another(arms):
    experiment = arms.start()
    assert arms.look(experiment, 0).windows == 0
    windows = [shift_window(experiment.first_window, hour) for hour in range(3)]
    arms.play(windows[:2], arms.planned(experiment))
    first, again = arms.look(experiment, 2), arms.look(experiment, 2)
    assert first.new and not again.new and first.digest == again.digest and first.last_window == windows[1]
    later = arms.look(experiment, 3)  # an hour passed that nobody scored
    assert later.digest == first.digest
    arms.play(windows[2:], arms.planned(experiment))
    assert arms.look(experiment, 3).new
    with arms.database.connect() as connection:
        assert [one.windows for one in looks(connection, experiment.experiment_id)] == [0, 2, 3]


def test_an_experiment_that_is_over_is_looked_at_no_more(arms):
    experiment = arms.start()
    with arms.database.connect() as connection:
        ended = stop(connection, "the market is closed", "somebody", NOW + timedelta(hours=2))
        with pytest.raises(ServingError, match="No experiment runs"):
            stop(connection, "again", "somebody", NOW)
    assert ended.state == "stopped" and ended.reason == "somebody: the market is closed"
    assert ended.end_window == "2026-03-02T12:00"  # agents keep their arm until the hour is over
    assert arms.look(experiment, 9).decision == "stopped"


def test_nothing_recorded_ends_it_a_day_after_its_horizon(arms):
    experiment = arms.start(hours=10)
    assert arms.look(experiment, 10 + 23).decision == "go on"
    assert arms.look(experiment, 10 + 24).decision == "keep" and arms.load(experiment).state == "keep"


def test_agents_that_met_two_checkpoints_or_chose_theirs_are_left_out_and_counted(arms):
    experiment = arms.start()
    window = experiment.first_window
    arms.play([window], arms.planned(experiment))
    with arms.database.connect() as connection:
        agents = dict(connection.execute("SELECT agent_id, trajectory_id FROM babylon_rl.scored_trajectories "
                                         "WHERE window_id = %s", (window,)).fetchall())  # fmt: skip
        for name, agent, checkpoint, arm in (
            ("a", "agent-1", BASELINE, "promoted"), ("b", "agent-1", CANDIDATE, "candidate"),
            ("c", "agent-2", arms.planned(experiment)("agent-2", window), "pinned"),
        ):  # fmt: skip
            connection.execute(
                """INSERT INTO babylon_rl.gateway_calls (call_id, request_id, key_id, agent_id, window_id,
                   trajectory_id, arm, checkpoint_id, upstream, model, request, response, status, streamed, sampling,
                   asked_at, latency_ms) VALUES (%s, %s, 'k', %s, %s, %s, %s, %s, '', '', '', '', 200, false, '{}',
                   now(), 7)""",
                (name, name, agent, window, agents[agent], arm, checkpoint),
            )
    seen = arms.look(experiment, 1).guardrails
    assert seen["left_out"] == {"mixed": 1, "pinned": 1} and seen["agents"] == 6


def test_what_cannot_be_compared_is_not_started(arms):
    with pytest.raises(TrainingError, match="no checkpoint"):
        arms.start(candidate="run@9")
    with pytest.raises(ServingError, match="is what is promoted"):
        arms.start(candidate=BASELINE)
    with pytest.raises(ServingError, match=f"answered by what is promoted, {BASELINE}"):
        arms.start(baseline=OTHER)
    for share in (0.0, 1.0):
        with pytest.raises(SettingsError, match="leaves an arm without agents"):
            arms.start(share=share)
    with pytest.raises(SettingsError, match="its share is 50"):
        arms.start(share=0.2, design="switchback")
    with pytest.raises(SettingsError, match="can show nothing"):
        arms.start(hours=9)
    with pytest.raises(SettingsError, match="not found within"):
        arms.start(hours=None, effect=1e-9)
    with arms.database.connect() as connection:
        connection.execute("UPDATE babylon_rl.checkpoints SET state = 'deleted' WHERE checkpoint_id = %s", (OTHER,))
        connection.execute("UPDATE babylon_rl.checkpoints SET weights_sha256 = 'x' WHERE checkpoint_id = %s",
                           (CANDIDATE,))  # fmt: skip
    with pytest.raises(ServingError, match="hash differs"):
        arms.start()
    with pytest.raises(ServingError, match="was deleted"):
        arms.start(candidate=OTHER)
    with arms.database.connect() as connection:
        assert list_experiments(connection) == []


def test_one_runs_at_a_time_and_each_candidate_tried_makes_the_next_ones_threshold_harder(arms):
    first = arms.start()
    assert first.tried == 1 and first.experiment_id == "e1" and first.first_window == FIRST
    with pytest.raises(ServingError, match=r"Experiment e1 runs \(.* until 2026-03-04T02:00\)"):
        arms.start(candidate=OTHER)
    with arms.database.connect() as connection:
        assert running_experiment(connection) == first
        assert experiment_in_force(connection, first.end_window).route == route_of(first)
        with pytest.raises(ServingError, match="at the same moment"):  # two that looked before either wrote
            save_experiment(connection, changed(first, experiment_id="e9"))
        stop(connection, "enough", "somebody", NOW)
    second = arms.start(candidate=OTHER)
    assert second.tried == 2 and second.settings["alpha"] == pytest.approx(first.settings["alpha"] / 4)


def test_agents_keep_their_arm_for_the_hour_also_where_the_next_experiment_is_started_within_it(arms):
    first = arms.start()
    hour = shift_window(first.first_window, 2)
    with arms.database.connect() as connection:
        stop(connection, "enough", "somebody", parse_window_id(hour))
        ended = load_experiment(connection, first.experiment_id)
        second = changed(first, experiment_id="e2", candidate=OTHER, first_window=ended.end_window, horizon=9, tried=2)
        save_experiment(connection, second)
        assert ended.end_window == shift_window(hour, 1)
        assert experiment_in_force(connection, hour).route == route_of(ended) and coming(connection) == OTHER
        assert experiment_in_force(connection, ended.end_window).route == route_of(second)


def test_what_decides_is_declared_before_the_start_with_the_forecast(arms):
    experiment = arms.start(effect=0.01)
    declared = experiment.settings
    assert {"block_hours", "burn_in_hours", "metric", "alpha", "alpha_harm", "effect"} <= set(declared)
    assert (declared["metric"], declared["scorer"], declared["effect"]) == ("reward", "alpha", 0.01)
    assert experiment.forecast["noise"]["windows"] == 24 and experiment.forecast["hours"] >= 10


def test_without_a_past_there_is_no_forecast_and_a_person_says_how_long(database, tmp_path):
    arms = TwoArms(database)
    arms.train(tmp_path)
    with pytest.raises(SettingsError, match="Or say yourself for how many hours"):
        arms.start(hours=None)
    experiment = arms.start(hours=10)
    assert "0 past windows" in experiment.forecast["unknown"] and experiment.settings["metric"] == "return"


def test_what_was_rolled_back_from_is_promoted_by_no_experiment(arms):
    experiment = arms.start()
    with arms.database.connect() as connection:
        promote(connection, "run", CANDIDATE, "x", "it looks good", {}, again=True)
        roll_back(connection, "watch", "it lost money")
    found = arms.follow(experiment, every=20)
    assert found[-1].decision == "keep" and "rolled back from: it lost money" in found[-1].reason
    with arms.database.connect() as connection:
        assert promoted(connection)["to_checkpoint"] == BASELINE
    with pytest.raises(ServingError, match="no experiment promotes it again"):
        arms.start()


def test_another_promotion_ends_the_experiment(arms):
    experiment = arms.start()
    with arms.database.connect() as connection:
        promote(connection, "run", OTHER, "x", "in a hurry", {}, again=True)
    assert arms.look(experiment, 1).decision == "stopped"
    assert "is promoted since" in arms.load(experiment).reason


def test_a_winner_whose_weights_are_gone_is_not_promoted(arms):
    experiment = arms.start()
    with arms.database.connect() as connection:
        connection.execute("UPDATE babylon_rl.checkpoints SET weights_sha256 = 'x' WHERE checkpoint_id = %s",
                           (CANDIDATE,))  # fmt: skip
    assert arms.follow(experiment, every=20)[-1].decision == "promote"
    ended = arms.load(experiment)
    assert ended.state == "stopped" and "hash differs" in ended.reason and len(arms.booked()) == 1


def test_a_share_is_a_percentage_from_1_on_and_an_hour_that_is_too_near_is_left_out():
    assert share_of(50) == share_of(0.5) == 0.5 and share_of(1) == 0.01
    for wrong in (0, 100, -1, float("nan")):
        with pytest.raises(SettingsError):
            share_of(wrong)
    assert first_window(NOW) == FIRST
    assert first_window(NOW.replace(minute=59)) == shift_window(FIRST, 1)
