"""Runs without an end: when an update is due, what it takes, and that no line of checkpoints takes a group twice."""

import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import art_groups
from babylon_rl.groups.snapshots import load_snapshot, make_snapshot, save_snapshot
from babylon_rl.groups.trained_view import decode_group
from babylon_rl.training.alarm_log import exploration_for, list_alarms
from babylon_rl.training.due import MOST_ATTEMPTS, WAITS, Attempt, DueUpdate, due_updates, next_attempt
from babylon_rl.training.ledger import before_submitting, failed, in_doubt, open_job, retry
from babylon_rl.training.lineage import state_before
from babylon_rl.training.runs import start_run
from babylon_rl.windows import shift_window
from babylon_rl_tests.training.lineages import snapshot
from babylon_rl_tests.training.rounds import ONE_SIDED, PARTITIONS_START, SIZE, OpenRun, due, make_due_updates, window


@pytest.fixture
def opened(database, tmp_path) -> OpenRun:
    return OpenRun(database, tmp_path)


def test_an_update_is_due_with_the_last_group_that_it_needs_and_rows_count_up_to_it(opened):
    opened.play(0)
    assert due(opened) == ([], ["run: 1 of 2 new groups."])
    opened.play(3)
    (update,), others = due(opened)
    assert (update.first, update.last, others) == (window(0), window(3), [])
    rows = opened.compute(update.first, update.last)
    assert [row["reason"] for row in rows[:3]] == ["1 of 2 new groups"] * 3
    assert rows[3]["updated"] and list(rows[3]["group_digests"]) == [window(0), window(3)]
    assert [row["checkpoint_id"] for row in rows] == ["run@0"] * 3 + [next(iter(opened.checkpoints()))]
    assert due(opened) == ([], ["run: 0 of 2 new groups."])


def test_a_range_may_hold_several_updates_and_each_follows_the_one_before(opened):
    opened.play(*range(5))
    (update,), _ = due(opened)
    rows = opened.compute(update.first, update.last)
    assert [row["updated"] for row in rows] == [False, True, False, True, False]
    assert rows[3]["parent_id"] == rows[1]["checkpoint_id"] == rows[2]["checkpoint_id"]
    assert list(opened.batches().values()) == [[window(0), window(1)], [window(2), window(3)]]


@pytest.mark.parametrize("seed", range(6))
def test_in_whatever_order_windows_become_trainable_each_is_trained_on_once(opened, seed):
    stream = random.Random(seed)
    places = stream.sample(range(14), 11)  # some hours stay empty
    while places:
        count = stream.randint(1, 4)
        arrived, places = places[:count], places[count:]
        opened.play(*arrived)
        make_due_updates(opened, now=20)
    taken = [w for batch in opened.batches().values() for w in batch]
    assert len(taken) == len(set(taken)) and len(taken) > 11 - SIZE
    # One line: each checkpoint's parent is the one before.
    line = ["run@0", *opened.checkpoints()]
    assert [c.parent_id for c in opened.checkpoints().values()] == line[:-1]
    trained = len(opened.trained)
    assert make_due_updates(opened, now=20) == 0 and len(opened.trained) == trained


def test_late_groups_that_all_lie_before_the_last_update_wait_for_the_next_hour_only(opened):
    opened.play(2, 3)
    make_due_updates(opened)
    opened.play(0, 1)
    _, (said,) = due(opened, now=4)
    assert window(4) in said and "once it is over" in said
    (update,), _ = due(opened, now=5)
    assert (update.first, update.last) == (window(4), window(4))
    opened.compute(update.first, update.last)
    assert list(opened.batches().values()) == [[window(2), window(3)], [window(0), window(1)]]
    # Over the old windows again nothing moves: the late groups are where they were trained.
    before = opened.checkpoints()
    assert not any(row["updated"] for row in opened.compute(window(0), window(1)))
    assert opened.checkpoints() == before


def test_the_same_windows_again_come_to_the_same_rows_and_the_same_job(opened):
    opened.play(*range(6))
    first = opened.compute(window(0), window(5))
    made, requests = opened.checkpoints(), list(opened.trained)
    for last in (5, 3):
        assert opened.compute(window(0), window(last)) == first[: last + 1]
    assert opened.checkpoints() == made and len(made) == 3
    assert all(request in requests for request in opened.trained)  # the trainer answers those from their folders
    with opened.database.connect() as connection:
        jobs = connection.execute("SELECT state, count(*) FROM babylon_rl.training_attempts GROUP BY state").fetchall()
    assert jobs == [("done", 3)]


def in_format_1(opened: OpenRun, changes: str = "state = state") -> None:
    """Make the run's one update what a database from before format 2 holds of it: another id, no job by that id."""
    with opened.database.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")  # what is stored is immutable otherwise
        (old,) = connection.execute("SELECT snapshot_id FROM babylon_rl.snapshots").fetchone() or ()
        former = snapshot(connection, load_snapshot(connection, old).groups, form=1)
        for table in ("snapshot_members", "snapshot_groups", "training_attempts", "snapshots"):
            connection.execute(f"DELETE FROM babylon_rl.{table} WHERE snapshot_id = %s", (old,))
        for table in ("checkpoints", "trained_checkpoints"):
            connection.execute(
                f"""UPDATE babylon_rl.{table} SET snapshot_id = %s, checkpoint_id = 'run@1-former'
                    WHERE snapshot_id = %s""",
                (former, old),
            )
        connection.execute(f"UPDATE babylon_rl.checkpoints SET {changes} WHERE checkpoint_id = 'run@1-former'")


def test_an_update_from_a_snapshot_of_format_1_is_not_made_again_over_the_same_groups(opened):
    opened.play(0, 1)
    opened.compute(window(0), window(1))
    in_format_1(opened)
    before = opened.checkpoints()
    (row,) = opened.compute(window(1), window(1))
    assert (row["checkpoint_id"], row["updated"], row["groups_trained"]) == ("run@1-former", True, 2)
    assert len(opened.trained) == 1 and opened.checkpoints() == before
    assert opened.compute(window(1), window(1)) == [row] and len(opened.trained) == 1

    opened.play(1, scale=2.0)
    (row,) = opened.compute(window(1), window(1))
    assert row["updated"] and row["checkpoint_id"] != "run@1-former" and len(opened.trained) == 2


@pytest.mark.parametrize("gone", ["state = 'deleted'", "path = '/nowhere'"])
def test_an_update_from_a_snapshot_of_format_1_whose_weights_are_gone_is_made_again(opened, gone):
    opened.play(0, 1)
    opened.compute(window(0), window(1))
    in_format_1(opened, gone)
    (row,) = opened.compute(window(1), window(1))
    assert row["updated"] and row["checkpoint_id"] != "run@1-former" and row["parent_id"] == "run@0"


def test_a_corrected_window_is_not_trained_twice_and_training_it_again_starts_a_branch(opened):
    opened.play(*range(4))
    opened.compute(window(0), window(3))
    first, second = opened.checkpoints().values()
    opened.play(1, scale=2.0)
    assert due(opened) == ([], ["run: 0 of 2 new groups."])
    row = opened.compute(window(1), window(1))[0]
    assert row["updated"] and row["parent_id"] == "run@0" and row["checkpoint_id"] != first.checkpoint_id
    made = opened.checkpoints()
    assert made[first.checkpoint_id] == first and made[second.checkpoint_id] == second and len(made) == 3
    with opened.database.connect() as connection:
        # The line goes on from its end, not from the branch in its middle.
        assert state_before(connection, opened.run, window(9)).checkpoint_id == second.checkpoint_id


def test_a_window_before_the_run_or_of_the_open_hour_counts_for_nothing(database, tmp_path):
    opened = OpenRun(database, tmp_path, first=2)
    opened.play(0, 1, 2, 5)
    assert due(opened, now=5)[1] == ["run: 1 of 2 new groups."]
    assert due(opened, now=6)[0][0].first == window(2)
    assert due(opened, now=6, start=window(4))[0][0].first == window(4)


def test_an_alarm_leads_back_and_its_batch_is_not_asked_for_again(opened):
    opened.play(0, 1)
    make_due_updates(opened)
    (good,) = opened.checkpoints()
    opened.play(2, 3, verbs=ONE_SIDED, checkpoint=good)
    make_due_updates(opened)
    with opened.database.connect() as connection:
        (alarm,) = list_alarms(connection, "run")
        state = state_before(connection, opened.run, window(4))
        exploring = exploration_for(connection, opened.run, window(4))
    assert (alarm.window_id, alarm.response, state.checkpoint_id) == (window(3), "step_back", "run@0")
    assert exploring == alarm.exploration > opened.run.recipe.exploration
    assert due(opened) == ([], ["run: 0 of 2 new groups."])
    opened.play(4, 5)
    make_due_updates(opened)
    assert opened.batches()[list(opened.checkpoints())[-1]] == [window(4), window(5)]
    with opened.database.connect() as connection:
        assert exploration_for(connection, opened.run, window(6)) == opened.run.recipe.exploration


def test_alarms_in_a_row_stop_the_run_and_it_says_so(opened):
    opened.play(0, 1, 2, 3, 4, 5)
    make_due_updates(opened)
    for first in (6, 8, 10):
        with opened.database.connect() as connection:
            playing = state_before(connection, opened.run, window(first)).checkpoint_id
        opened.play(first, first + 1, verbs=ONE_SIDED, checkpoint=playing)
        make_due_updates(opened)
    opened.play(12, 13)
    (), (said,) = due(opened)
    assert f"alarms stopped it at {window(11)}" in said
    assert not opened.compute(window(13), window(13))[0]["updated"]


def test_windows_are_the_newest_runs_also_those_of_a_demo_in_between(opened, database, tmp_path):
    opened.play(0, 1, 2, 3)
    with database.connect() as connection:
        covers = {"training_run": "demo", "first_window": window(1), "last_window": window(2)}
        demo = msgspec.structs.replace(opened.run, **covers, schedule={"train": [window(1), window(2)]})
        start_run(connection, demo)
    (update,), _ = due(opened)
    opened.compute(update.first, update.last)
    (batch,) = opened.batches().values()
    assert update.last == window(3) and batch == [window(0), window(1), window(2), window(3)]
    newer = OpenRun(database, tmp_path, "newer", first=5, admit=("on_policy",))
    opened.play(4, 5, 6)
    updates, others = due(opened)
    assert not updates and [said.partition(";")[0] for said in others] == [
        "newer: 0 of 2 new groups",  # those that play are of the other run
        "run: 1 of 2 new groups.",
    ]
    assert newer.compute(window(5), window(5))[0]["training_run"] == "newer"


def test_without_a_run_the_answer_is_how_to_start_one(database):
    with database.connect() as connection:
        (), (said,) = due_updates(connection, datetime(2026, 5, 1, tzinfo=UTC), PARTITIONS_START)
    assert "babylon-rl train --from WINDOW --follow" in said


def test_the_key_is_of_the_groups_and_the_parent_and_not_of_what_gathers_meanwhile(opened):
    opened.play(0, 1)
    (first,), _ = due(opened)
    opened.play(2)
    (more,), _ = due(opened)
    assert more.key == first.key and more.last == window(2)
    opened.play(1, scale=2.0)
    (corrected,), _ = due(opened)
    assert corrected.key != first.key
    opened.compute(window(0), window(1))
    opened.play(3)
    assert due(opened)[0][0].key not in (first.key, corrected.key)


NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
UPDATE = DueUpdate(training_run="run", first=window(0), last=window(3), key="key", said="run: 2 of 2 new groups")


def attempts(*states: str, ago: timedelta = timedelta(0), last: str = UPDATE.last) -> list[Attempt]:
    return [
        Attempt(number=n, run_id=f"run-{n}", state=state, last=last, ended=None if state == "running" else NOW - ago)
        for n, state in enumerate(states, start=1)
    ]


def test_a_failed_update_is_tried_again_later_each_time_and_not_for_ever():
    assert next_attempt(UPDATE, [], NOW) == 1
    for failures, wait in enumerate(WAITS, start=1):
        failed = ["failed"] * failures
        assert "after" in str(next_attempt(UPDATE, attempts(*failed, ago=wait - timedelta(seconds=1)), NOW))
        assert next_attempt(UPDATE, attempts(*failed, ago=wait), NOW) == failures + 1
    given_up = next_attempt(UPDATE, attempts(*["failed"] * MOST_ATTEMPTS, ago=timedelta(days=9)), NOW)
    assert "mend the cause" in str(given_up) and "train_checkpoint" in str(given_up)


def test_what_runs_was_cancelled_or_found_nothing_is_left_alone():
    assert "makes the update" in str(next_attempt(UPDATE, attempts("failed", "running"), NOW))
    assert "was cancelled" in str(next_attempt(UPDATE, attempts("cancelled", ago=timedelta(days=1)), NOW))
    assert "without an update" in str(next_attempt(UPDATE, attempts("done", ago=timedelta(days=1)), NOW))
    assert next_attempt(UPDATE, attempts("done", last=shift_window(UPDATE.last, -1)), NOW) == 2


def test_an_update_whose_job_waits_for_a_person_is_not_asked_for_and_the_command_is_told(opened):
    opened.play(0, 1)
    (update,), _ = due(opened)
    with opened.database.connect() as connection:
        groups = [decode_group(group) for group in read_frame(connection, current_rows(art_groups))["group"]]
        snapshot = make_snapshot(groups, "run", opened.run.recipe.as_json(), 0)
        save_snapshot(connection, snapshot)
        job = open_job(connection, snapshot.snapshot_id, "run@0", "settings", "wandb", 0)
    assert next_attempt(update, [], NOW) == 1
    with opened.database.connect() as connection:
        failed(connection, job.job_id, "out of memory")
    (held,), _ = due(opened)
    assert f"babylon-rl jobs retry {job.job_id[:12]}" in str(next_attempt(held, [], NOW))
    with opened.database.connect() as connection:
        retry(connection, job.job_id, "ann")
    assert next_attempt(due(opened)[0][0], [], NOW) == 1
    with opened.database.connect() as connection:
        connection.commit()
        before_submitting(connection, job.job_id, "there e/p/run", "model-1", 0, NOW)
        in_doubt(connection, job.job_id, "524")
    (held,), _ = due(opened)
    assert f"babylon-rl jobs settle {job.job_id[:12]}" in str(next_attempt(held, attempts("failed"), NOW))
