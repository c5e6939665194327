"""Ticks: each ready window is requested once a revision, and every other window says what it waits for."""

import threading
from datetime import timedelta

import pytest

from babylon_rl.database.connect import Recordings
from babylon_rl.readiness import requests
from babylon_rl.readiness.requests import MOST_REQUESTS, RELAUNCH, tick
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.readiness.conftest import START, materialize, run
from babylon_rl_tests.recording.runs import WINDOW

NEXT = shift_window(WINDOW, 1)


def done(world) -> str:
    """The window recorded, requested and materialized; its run key."""
    world.window()
    found = world.tick()
    run(world, found)
    assert world.ids() == [] and world.entry()[0] == "materialized"
    return found.requests[0].run_key


# --- what is requested -----------------------------------------------------------------------------


def test_a_new_window_is_observed_and_requested_once_under_its_revision(world):
    world.window()
    found = world.tick()
    (request,), (observed,) = found.requests, found.observed
    assert request.run_key == f"{WINDOW}:{observed.revision}" and request.window_id == WINDOW
    assert (observed.window_id, observed.agents, observed.recorded) == (WINDOW, 2, 2)
    world.runs[request.run_key] = "running"
    later = world.tick()
    assert not later.requests and not later.observed and world.entry()[0] == "requested"


def test_what_is_materialized_and_unchanged_is_left_alone(world):
    done(world)
    found = world.tick()
    assert not found.requests and not found.observed and not found.waiting


@pytest.mark.parametrize(
    "write",
    [
        None,
        """UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'agentBalance": 1', 'agentBalance": 2')
           WHERE "agentId" = 'agent-1'""",
        """UPDATE trajectories SET "finalPnL" = 9 WHERE "agentId" = 'agent-1'""",
    ],
)
def test_late_rows_and_corrections_of_the_same_length_give_a_run_of_that_window_alone(world, write):
    world.window(NEXT)
    first = done(world)
    if write is None:
        world.row("late", "agent-3")
    else:
        ((before,),) = world.sql('SELECT sum(octet_length("stepsJson")) FROM trajectories')
        world.sql(write + """ AND "windowId" = %s""", WINDOW)
        assert world.sql('SELECT sum(octet_length("stepsJson")) FROM trajectories') == [(before,)]
    found = world.tick()
    (request,), (observed,) = found.requests, found.observed
    assert request.window_id == WINDOW and request.run_key not in world.runs and request.run_key != first
    assert observed.window_id == WINDOW
    run(world, found)
    assert world.ids() == [] and set(world.states().values()) == {"materialized"}


def test_what_training_and_judges_write_back_gives_neither_a_run_nor_an_observation(world):
    done(world)
    world.sql(
        """UPDATE trajectories SET "usedInTraining" = true, "trainedInBatch" = 'b', "aiJudgeReward" = 0.5,
           "aiJudgeReasoning" = 'good', "judgedAt" = now(), "updatedAt" = now(), "totalReward" = 3,
           "stepsJson" = replace("stepsJson", '"reward": 0.1', '"reward": 0.9')"""
    )
    found = world.tick()
    assert not found.requests and not found.observed and world.entry()[0] == "materialized"


def test_a_write_back_while_the_run_is_under_way_gives_no_second_run(world):
    world.window()
    found = world.tick()
    world.runs[found.requests[0].run_key] = "running"
    world.sql('UPDATE trajectories SET "usedInTraining" = true')
    assert world.ids() == [] and world.entry()[0] == "requested"
    run(world, found)
    assert world.ids() == [] and world.entry()[0] == "materialized"


def test_deleted_rows_give_a_run(world):
    world.window(agents=3)
    run(world, world.tick())
    world.sql("""DELETE FROM trajectories WHERE "agentId" = 'agent-3'""")
    assert world.ids() == [WINDOW]


def test_a_correction_that_is_taken_back_is_materialized_again_though_its_key_was_used(world):
    first = done(world)
    world.sql('UPDATE trajectories SET "finalPnL" = 9')
    run(world, world.tick())
    world.sql('UPDATE trajectories SET "finalPnL" = 5')
    (request,) = world.tick().requests
    assert request.run_key == f"{first}:2"


@pytest.mark.parametrize("named", [None, "window-3", shift_window(WINDOW, 1)])
def test_rows_count_where_they_ended_whatever_they_name(world, named):
    world.window(windowId=named)
    found = world.tick()
    assert [r.window_id for r in found.requests] == [WINDOW]
    materialize(world, WINDOW)
    assert world.ids() == []


def test_a_row_that_names_a_window_it_did_not_end_in_is_news_to_both(world):
    done(world)
    world.row("foreign", "agent-3", window=NEXT, windowId=WINDOW)
    found = world.tick()
    # The window it names counts one more rejected row; what agents wrote in it is the same.
    assert [o.window_id for o in found.observed] == [NEXT] and not found.requests
    assert world.states() == {WINDOW: "materialized", NEXT: "waiting"}


def test_a_window_materialized_by_hand_gets_no_request_and_no_observation_that_would_make_it_out_of_date(world):
    world.window()
    materialize(world, WINDOW)
    found = world.tick()
    assert not found.requests and world.entry() == ("materialized", "materialized, 2 agents")
    assert not found.observed


def test_a_window_materialized_while_it_was_open_is_requested_when_it_closes(world):
    world.window()
    late, world.now = world.now, parse_window_id(WINDOW) + timedelta(minutes=40)
    materialize(world, WINDOW)
    assert world.ids() == []
    world.now = late
    assert world.ids() == [WINDOW]


def test_windows_outside_the_partitions_are_passed_over(world):
    for window in ("2020-01-15T10:00", "9999-12-31T23:00"):
        world.window(window)
    assert world.ids() == [] and world.states() == {}


# --- what waits ------------------------------------------------------------------------------------


def test_an_open_hour_and_the_delay_after_it_are_waited_for_and_not_read(world):
    world.window()
    world.now = parse_window_id(NEXT) - timedelta(minutes=1)
    found = world.tick()
    assert not found.requests and not found.observed
    assert world.entry() == ("changed", "the hour is not over")
    assert any("the hour is not over" in line for line in found.waiting)
    world.now = parse_window_id(NEXT) + timedelta(minutes=9)
    assert world.ids() == []
    assert world.ids() == [WINDOW]


def test_too_few_agents_wait_for_more_and_are_never_requested_here(world):
    world.window(agents=1)
    found = world.tick(minutes=60 * 24)
    assert not found.requests and found.observed
    assert world.entry()[0] == "waiting" and "1 of at least 2 agents" in world.entry()[1]
    assert world.ids() == []
    world.row("late", "agent-2")
    assert world.ids() == [WINDOW]


def test_questions_that_ended_are_waited_for_and_those_that_end_later_are_not(world):
    world.window()
    for name, hours in (("ended", 0.5), ("later", 40)):
        world.sql(
            'INSERT INTO "Market" (id, question, liquidity, "endDate", "updatedAt") VALUES (%s, %s, 1, %s, now())',
            name, "?", (parse_window_id(WINDOW) + timedelta(hours=hours)).replace(tzinfo=None),
        )  # fmt: skip
        world.sql(
            'INSERT INTO "PredictionPriceHistory" (id, "marketId", "yesPrice", "noPrice", "createdAt") '
            "VALUES (%s, %s, 0.5, 0.5, '2025-01-15 10:10')",
            name, name,
        )  # fmt: skip
    assert world.ids(minutes=5) == []
    assert world.entry()[1].startswith("1 outcomes are not settled")
    world.sql("""UPDATE "Market" SET resolved = true, resolution = true WHERE id = 'ended'""")
    assert world.ids() == [WINDOW]


def test_outcomes_that_never_settle_are_waited_for_so_long_and_no_longer(world):
    world.window()
    world.sql(
        """INSERT INTO "Market" (id, question, liquidity, "endDate", "updatedAt")
           VALUES ('m', '?', 1, '2025-01-15 10:30', now())"""
    )
    assert world.ids() == []
    world.now = parse_window_id(NEXT) + timedelta(hours=6)
    assert world.ids() == [WINDOW]


def test_a_window_that_cannot_be_read_says_so_and_holds_up_no_other(world, monkeypatch):
    world.window()
    world.window(NEXT)
    world.now += timedelta(hours=1)
    read = requests.read_window

    def reading(recordings, window_id, misnamed):
        if window_id == WINDOW:
            recordings.application.execute("SELECT 1/0")
        return read(recordings, window_id, misnamed)

    monkeypatch.setattr(requests, "read_window", reading)
    assert world.ids() == [NEXT]
    assert world.entry()[0] == "failed" and "division by zero" in world.entry()[1]


# --- what becomes of a request ---------------------------------------------------------------------


def test_a_failed_run_is_tried_again_so_often_under_keys_of_its_own_and_then_left_to_a_person(world):
    world.window()
    found, keys = world.tick(), []
    for _ in range(10):
        for request in found.requests:
            keys.append(request.run_key)
            world.runs[request.run_key] = "failed"
        found = world.tick(minutes=40)
    revision = keys[0]
    assert keys == [revision, f"{revision}:2", f"{revision}:3"]
    state, reason = world.entry()
    assert state == "failed" and "look at the run" in reason and "by hand" in reason
    materialize(world, WINDOW)
    world.tick(minutes=60)
    world.tick()
    assert world.entry()[0] == "materialized"


def test_a_failed_window_whose_agents_write_again_starts_from_the_first_attempt(world):
    world.window()
    for _ in range(8):
        world.runs |= {request.run_key: "failed" for request in world.tick(minutes=40).requests}
    assert world.entry()[0] == "failed"
    world.row("late", "agent-3")
    (request,) = world.tick().requests
    assert request.run_key.count(":") == 2


def test_attempts_are_spaced(world):
    world.window()
    world.runs |= {request.run_key: "failed" for request in world.tick().requests}
    assert world.ids() == [] and "attempt 1 of 3 failed" in world.entry()[1]
    assert world.ids(minutes=4) == []
    assert world.ids() == [WINDOW]


def test_a_run_that_succeeded_without_the_windows_rows_is_a_failed_attempt_that_says_what_failed(world):
    world.window()
    found = world.tick()
    world.runs[found.requests[0].run_key] = "succeeded"
    world.sql(
        "INSERT INTO babylon_rl.window_failures (asset, window_id, error, detail) "
        "VALUES ('market_outcomes', %s, 'ValueError', 'no price')", WINDOW,
    )  # fmt: skip
    world.tick()
    assert world.entry()[0] == "waiting" and "market_outcomes: no price" in world.entry()[1]


def test_a_run_that_someone_canceled_is_not_tried_again(world):
    world.window()
    world.runs |= {request.run_key: "canceled" for request in world.tick().requests}
    assert world.ids(minutes=300) == [] and world.entry()[0] == "failed"
    assert world.ids() == []


def test_a_request_that_never_became_a_run_is_made_again_under_the_same_key(world):
    world.window()
    first = world.tick(minutes=1).requests
    assert world.ids(minutes=RELAUNCH.total_seconds() / 60) == []
    assert world.tick().requests == first


# --- bounds and races ------------------------------------------------------------------------------


def test_a_week_of_downtime_is_caught_up_oldest_first_without_flooding(world):
    ids = [shift_window(WINDOW, i) for i in range(168)]
    for window_id in ids:
        world.window(window_id)
    world.now = parse_window_id(ids[-1]) + timedelta(hours=3)
    asked: list[str] = []
    for _ in range(6):
        found = world.tick()
        assert len(found.requests) <= MOST_REQUESTS
        asked += [request.window_id for request in found.requests]
        run(world, found)
    assert asked == ids
    assert set(world.states().values()) == {"materialized"}


def test_no_more_runs_are_asked_for_than_may_be_queued_or_running(world, monkeypatch):
    monkeypatch.setattr(requests, "MOST_REQUESTS", 3)
    ids = [shift_window(WINDOW, -i) for i in range(8)]
    for window_id in ids:
        world.window(window_id)
    first = world.tick()
    assert [request.window_id for request in first.requests] == sorted(ids)[:3]
    world.runs |= {request.run_key: "running" for request in first.requests}
    assert world.ids() == []
    assert "3 runs are queued or running" in world.entry(sorted(ids)[3])[1]
    materialize(world, first.requests[0].window_id)
    world.runs[first.requests[0].run_key] = "succeeded"
    (fourth,) = world.tick().requests
    assert fourth.window_id == sorted(ids)[3]
    world.in_flight = 3  # as Dagster counts them
    world.runs = dict.fromkeys([*world.runs, fourth.run_key], "failed")
    assert world.ids(minutes=40) == [] and world.ids() == []


def test_a_tick_reads_so_many_rows_and_the_next_goes_on(world, monkeypatch):
    monkeypatch.setattr(requests, "MOST_ROWS_READ", 4)
    ids = sorted(shift_window(WINDOW, -i) for i in range(4))
    for window_id in ids:
        world.window(window_id)
    assert [world.ids() for _ in range(3)] == [ids[:2], ids[2:], []]


def test_a_large_window_alone_is_read_though_it_has_more_rows_than_a_tick_reads(world, monkeypatch):
    monkeypatch.setattr(requests, "MOST_ROWS_READ", 1)
    world.window()
    assert world.ids() == [WINDOW]


def test_two_ticks_that_race_request_each_window_once(world):
    ids = [shift_window(WINDOW, -i) for i in range(12)]
    for window_id in ids:
        world.window(window_id)
    ready, asked, skipped = threading.Barrier(4), [], []

    def race() -> None:
        ready.wait()
        with world.database.connect() as connection:
            found = tick(Recordings.of(connection), world.walk, world.now, world.waits, 48, START, world.run_states, 0)
            (asked if found else skipped).append(found)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) + len(skipped) == 4
    assert sorted(request.window_id for found in asked for request in found.requests) == sorted(ids)


def test_a_tick_stands_back_while_another_is_at_work(world):
    world.window()
    with world.database.connect() as first, world.database.connect() as second:
        arguments = (world.walk, world.now, world.waits, 48, START, world.run_states, 0)
        assert tick(Recordings.of(first), *arguments).requests
        assert tick(Recordings.of(second), *arguments) is None
