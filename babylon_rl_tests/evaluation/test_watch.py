"""The watch over what is served: what it takes back, and what it leaves alone."""

from datetime import timedelta

import pytest

from babylon_rl.evaluation.watch import Watched, guard_what_is_served, watch
from babylon_rl.training.runs import promote, promoted
from babylon_rl.windows import parse_window_id, shift_window, window_of
from babylon_rl_tests.evaluation.two_arms import BASELINE, CANDIDATE, NOW, TwoArms, malformed

pytest_plugins = ["babylon_rl_tests.evaluation.two_arms_played"]

BEFORE = 6


@pytest.fixture
def arms(arms) -> TwoArms:
    """A day of the baseline, after which a candidate is promoted."""
    decide(arms, CANDIDATE)
    return arms


def decide(arms: TwoArms, checkpoint: str) -> None:
    with arms.database.connect() as connection:
        assert promote(connection, "run", checkpoint, "x", "it looks good", {}, again=True)
        connection.execute(
            "UPDATE babylon_rl.promotions SET promoted_at = %s WHERE promotion_id = "
            "(SELECT max(promotion_id) FROM babylon_rl.promotions)",
            (NOW,),
        )


def serve(arms: TwoArms, hours: int, checkpoint: str = CANDIDATE) -> None:
    """Hours after the promotion's own."""
    first = shift_window(window_of(NOW), 1)
    arms.play([shift_window(first, hour) for hour in range(hours)], lambda agent, window: checkpoint)


def tick(arms: TwoArms, hours: int) -> Watched:
    now = parse_window_id(shift_window(window_of(NOW), 1 + hours)) + timedelta(minutes=5)
    with arms.database.connect() as connection:
        return guard_what_is_served(connection, arms.settings, now)


def test_what_answers_badly_is_taken_back_once_with_what_was_seen(arms):
    arms.plays[CANDIDATE] = malformed
    serve(arms, 4)
    assert tick(arms, 2).state == "fine"  # two hours are too few
    found = tick(arms, 3)
    assert found.state == "rolled_back" and "valid" in found.said and len(found.windows) == 3
    with arms.database.connect() as connection:
        row = promoted(connection)
    assert (row["kind"], row["to_checkpoint"], row["who"]) == ("rollback", BASELINE, "watch")
    assert row["evidence"]["watch"]["guards"]["valid"]["breached"] and len(row["evidence"]["watch"]["before"]) == BEFORE
    after = tick(arms, 4)
    assert after.state == "idle" and "rollback" in after.said and len(arms.booked()) == 3


def test_what_was_gone_back_to_is_not_taken_back_however_it_does(arms):
    arms.plays[CANDIDATE] = malformed
    serve(arms, 3)
    assert tick(arms, 3).state == "rolled_back"
    arms.plays[BASELINE] = malformed
    first = shift_window(window_of(NOW), 4)
    arms.play([shift_window(first, hour) for hour in range(4)], lambda agent, window: BASELINE)
    assert tick(arms, 8).state == "idle" and len(arms.booked()) == 3


def test_what_does_as_well_as_before_stays(arms):
    serve(arms, 6)
    found = tick(arms, 6)
    assert found.state == "fine" and found.before[-1] == shift_window(window_of(NOW), -1) and len(arms.booked()) == 2


def test_looking_changes_nothing(arms):
    arms.plays[CANDIDATE] = malformed
    serve(arms, 3)
    with arms.database.connect() as connection:
        assert watch(connection, arms.settings, NOW + timedelta(hours=4)).state == "breached"
    assert len(arms.booked()) == 2


def test_where_there_is_nothing_to_go_back_to_it_is_said(arms):
    arms.plays[CANDIDATE] = malformed
    serve(arms, 3)
    with arms.database.connect() as connection:
        connection.execute(
            "UPDATE babylon_rl.checkpoints SET state = 'deleted' WHERE checkpoint_id <> %s", (CANDIDATE,)
        )
    found = tick(arms, 3)
    assert found.state == "breached" and "It stays: Nothing was served before" in found.said


def test_a_latency_twice_that_of_before_is_taken_back(arms):
    serve(arms, 3)
    with arms.database.connect() as connection:
        for checkpoint, first, hours, slow in (
            (BASELINE, shift_window(window_of(NOW), -BEFORE), BEFORE, 200.0),
            (CANDIDATE, shift_window(window_of(NOW), 1), 3, 900.0),
        ):
            for hour in range(hours):
                for call in range(4):
                    name = f"{checkpoint}{hour}{call}"
                    connection.execute(
                        """INSERT INTO babylon_rl.gateway_calls (call_id, request_id, key_id, agent_id, window_id, arm,
                           checkpoint_id, upstream, model, request, response, status, streamed, sampling, asked_at,
                           latency_ms) VALUES (%s, %s, 'k', 'a', %s, 'promoted', %s, '', '', '', '', 200, false, '{}',
                           now(), %s)""",
                        (name, name, shift_window(first, hour), checkpoint, slow + call),
                    )
    found = tick(arms, 3)
    assert found.state == "rolled_back" and "latency: 903 ms against 203 ms" in found.said
