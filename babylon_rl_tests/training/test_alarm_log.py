"""Alarms in the database: what is written with an update, and what it changes for state, exploration and candidates."""

import pandas as pd
import pytest

from babylon_rl.evaluation import schedule
from babylon_rl.evaluation.schedule import candidate_of, schedule_of
from babylon_rl.reporting.progress import alarm_lines
from babylon_rl.training.alarm_log import (
    exploration_for,
    list_alarms,
    newest_alarms,
    response_at,
    standing_checkpoints,
    statuses_of,
)
from babylon_rl.training.lineage import state_before
from babylon_rl_tests.training.rounds import ALL_HOLD, MIXED, ONE_SIDED, Rounds


@pytest.fixture
def rounds(database, tmp_path) -> Rounds:
    return Rounds(database, tmp_path)


def state(rounds: Rounds, number: int) -> str:
    """The checkpoint with which a round is played."""
    with rounds.database.connect() as connection:
        return state_before(connection, rounds.run, rounds.windows(number)[0]).checkpoint_id


def exploration(rounds: Rounds, number: int) -> float:
    with rounds.database.connect() as connection:
        first, *others = {exploration_for(connection, rounds.run, w) for w in rounds.windows(number)}
    assert not others  # one exploration a round, also where it is taken up in its middle
    return first


def alarms(rounds: Rounds) -> list[tuple]:
    with rounds.database.connect() as connection:
        found = list_alarms(connection, rounds.run.training_run)
    return [(a.window_id, a.kind, a.response, a.back_to) for a in found]


def go(rounds: Rounds, number: int, verbs: tuple[str, ...]) -> dict:
    """Play a round as the loop does and make its update."""
    rounds.play(number, verbs, state(rounds, number), exploration(rounds, number))
    return rounds.update(number)


def test_a_one_sided_batch_leads_back_and_explores_more_and_a_good_one_explores_as_before(rounds):
    good, better = (go(rounds, number, MIXED)["checkpoint_id"] for number in (1, 2))
    row = go(rounds, 3, ONE_SIDED)
    assert row["updated"] is False and row["checkpoint_id"] == good and "SELL 100 %" in row["reason"]
    assert alarms(rounds) == [(rounds.windows(3)[-1], "one_sided", "step_back", good)]
    assert len(rounds.trained) == 2
    assert (state(rounds, 3), state(rounds, 4)) == (better, good)
    assert (exploration(rounds, 3), exploration(rounds, 4), exploration(rounds, 5)) == (0.1, 0.3, 0.1)

    after = go(rounds, 4, MIXED)
    assert after["updated"] and after["parent_id"] == good and after["step"] == 2
    assert after["checkpoint_id"] != better and rounds.trained[-1].parent_step == 1
    assert after["groups_trained"] == 2  # what the earlier state played is on policy again
    assert exploration(rounds, 5) == 0.1
    with rounds.database.connect() as connection:
        standing = [c.checkpoint_id for c in standing_checkpoints(connection, rounds.run)]
        lines = alarm_lines(connection, rounds.run)
    assert standing == ["run@0", good, after["checkpoint_id"]]
    assert lines == [f"round 3: one_sided (SELL 100 %): stepped back to {good}, exploration 0.3"]


def test_every_window_that_is_materialized_again_comes_to_the_same_row(rounds):
    batches = (MIXED, MIXED, ONE_SIDED, ONE_SIDED, MIXED, MIXED)
    first = [go(rounds, number, verbs) for number, verbs in enumerate(batches, start=1)]
    written = alarms(rounds)
    assert [row["updated"] for row in first] == [True, True, False, False, True, True]
    for order in (range(1, 7), reversed(range(1, 7))):
        for number in order:
            assert rounds.update(number) == first[number - 1]
    assert alarms(rounds) == written


def test_alarms_step_back_further_each_time_and_patience_ends_the_run(rounds):
    first, second, third = (go(rounds, number, MIXED)["checkpoint_id"] for number in (1, 2, 3))
    assert go(rounds, 4, ONE_SIDED)["checkpoint_id"] == second
    assert go(rounds, 5, ONE_SIDED)["checkpoint_id"] == first
    assert go(rounds, 6, ONE_SIDED)["checkpoint_id"] == "run@0"
    assert [response for _, _, response, _ in alarms(rounds)] == ["step_back", "step_back", "stop"]
    with rounds.database.connect() as connection:
        assert response_at(connection, rounds.run, rounds.windows(6)[-1]) == "stop"
        assert [c.checkpoint_id for c in standing_checkpoints(connection, rounds.run)] == ["run@0"]
        as_of = standing_checkpoints(connection, rounds.run, rounds.windows(4)[-1])
    assert third in {c.checkpoint_id for c in as_of}
    trained = len(rounds.trained)
    row = go(rounds, 7, MIXED)
    assert "stopped" in row["reason"] and row["checkpoint_id"] == "run@0" and len(rounds.trained) == trained


def test_the_start_is_trained_on_whatever_it_played_and_explores_more(rounds):
    row = go(rounds, 1, ONE_SIDED)
    assert row["updated"] and row["metrics"]["alarms"][0]["response"] == "explore"
    assert row["metrics"]["health"]["shares"] == {"SELL": 1.0}
    assert state(rounds, 2) == row["checkpoint_id"] and exploration(rounds, 2) == 0.3


def test_where_nothing_can_be_trained_on_the_alarm_is_there_too(rounds):
    row = go(rounds, 1, ALL_HOLD)
    assert not row["updated"] and row["checkpoint_id"] == "run@0" and "Nothing trainable" in row["reason"]
    assert {kind for _, kind, _, _ in alarms(rounds)} == {"all_hold", "no_spread"}
    assert exploration(rounds, 2) == 0.3 and not rounds.trained
    go(rounds, 2, ALL_HOLD)
    go(rounds, 3, ALL_HOLD)
    assert {response for window, _, response, _ in alarms(rounds) if window == rounds.windows(3)[-1]} == {"stop"}


def test_an_alarm_goes_when_the_window_is_materialized_again_over_other_data(rounds):
    go(rounds, 1, MIXED)
    go(rounds, 2, ONE_SIDED)
    assert alarms(rounds)
    with rounds.database.connect() as connection:
        assert newest_alarms(connection)[0] == rounds.windows(2)[-1]
    rounds.play(2, MIXED, state(rounds, 2))
    assert rounds.update(2)["updated"]
    assert alarms(rounds) == [] and exploration(rounds, 3) == 0.1
    with rounds.database.connect() as connection:
        assert newest_alarms(connection) == (rounds.windows(2)[-1], [])


def test_what_a_checkpoint_that_was_set_aside_played_is_not_on_policy(rounds):
    go(rounds, 1, MIXED)
    aside = go(rounds, 2, MIXED)["checkpoint_id"]
    go(rounds, 3, ONE_SIDED)
    go(rounds, 4, MIXED)
    rounds.play(5, MIXED, aside)
    row = rounds.update(5)
    assert not row["updated"] and "16 members set_aside" in row["reason"]


def test_what_was_set_aside_is_no_candidate_whatever_it_earned(rounds, monkeypatch):
    good, aside = (go(rounds, number, MIXED)["checkpoint_id"] for number in (1, 2))
    earned = {"run@0": 0.0, good: 1.0, aside: 9.0}
    played = pd.DataFrame(
        [
            {"window_id": window_id, "arm": arm, "agent_id": "a", "pnl": pnl, "valid": True}
            for window_id in schedule_of(rounds.run).windows("validation")
            for arm, pnl in earned.items()
        ]
    )
    monkeypatch.setattr(schedule, "read_evaluation", lambda *_: played)
    chosen = []
    for _ in range(2):
        with rounds.database.connect() as connection:
            chosen.append(candidate_of(connection, rounds.run, schedule_of(rounds.run))[0])
        go(rounds, 3, ONE_SIDED)
    assert chosen == [aside, good]


def test_equal_rewards_are_no_spread_also_where_values_make_the_group_trainable():
    groups = pd.DataFrame(
        {"status": ["trainable", "trainable", "no_spread", "not_ready"], "reward_spread": [0.02, 0.0, 0.0, None]}
    )
    assert statuses_of(groups) == {"trainable": 1, "no_spread": 2, "not_ready": 1}
    # Of rewards within the noise that the group was made with, too.
    assert statuses_of(groups.assign(settings=[{"tolerance": 0.1}] * 4)) == {"no_spread": 3, "not_ready": 1}
