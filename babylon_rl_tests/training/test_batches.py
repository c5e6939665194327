"""Runs over chosen windows: which windows the updates take, that none is taken twice, and what a forecast says."""

import itertools

import msgspec
import pandas as pd
import pytest
from psycopg import sql

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import metadata, trained_checkpoints, windows
from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.training.batches import BATCHES, Wanted, _split, add_batch, batches_of, choose, unfinished
from babylon_rl.training.forecast import dollars_of, forecast_of, measured_speed, seconds_of, sum_of
from babylon_rl.training.runs import list_checkpoints, load_run, start_run
from babylon_rl.training.updates import update_checkpoints
from babylon_rl_tests.training.rounds import ALL_HOLD, MIXED, OpenRun, plant, trained, window

AGENTS = len(MIXED)


class Chosen(OpenRun):
    """A run of batches, whose windows are planted as ready ones."""

    def __init__(self, database, folder) -> None:
        super().__init__(database, folder)
        self.run = msgspec.structs.replace(self.run, schedule={BATCHES: []}, last_window=window(0))
        with database.connect() as connection:
            connection.execute("DELETE FROM babylon_rl.checkpoints")
            connection.execute("DELETE FROM babylon_rl.training_runs")
            start_run(connection, self.run)

    def ready(self, *places: int, verbs=MIXED, checkpoint: str = "run@0") -> None:
        """Windows of the places, ready and with their groups."""
        ids = [window(place) for place in places]
        plant(self.database, ids, verbs, [checkpoint] * len(verbs))
        row = {"status": "ready", "reason": "", "agents": AGENTS, "recorded": AGENTS, "usable": AGENTS, "rejected": 0,
               "trainable": AGENTS, "reasons": {}, "not_trainable": {}, "misnamed": 0, "revision": "r"}  # fmt: skip
        with self.database.connect() as connection:
            replace_windows(connection, windows, ids, pd.DataFrame([{"window_id": one, **row} for one in ids]))

    def choose(self, last: int = 50, **wanted):
        values = {"min_agents": 5, "min_actions": 1, "windows": 2, "updates": 1} | wanted
        with self.database.connect() as connection:
            return choose(connection, self.stored(), Wanted(first=window(0), last=window(last), **values))

    def stored(self):
        with self.database.connect() as connection:
            return load_run(connection, "run")

    def train(self, batch: list[str]) -> dict:
        """Add the batch and compute the window with which it ends."""
        with self.database.connect() as connection:
            add_batch(connection, self.stored(), batch)
        return self.again(batch)

    def again(self, batch: list[str]) -> dict:
        return update_checkpoints(self.database, self.settings, [batch[-1]], self.launch).frame.iloc[-1].to_dict()

    def launch(self, request):
        self.trained.append(request)
        return trained(request)


@pytest.fixture
def run(database, tmp_path) -> Chosen:
    return Chosen(database, tmp_path)


def everything(database) -> dict[str, list]:
    """All rows of all our tables."""
    found = {}
    with database.connect() as connection:
        for table in metadata.sorted_tables:
            query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(table.schema, table.name))
            found[table.name] = connection.execute(query).fetchall()
    return found


def test_the_newest_windows_are_taken_the_earlier_ones_first(run):
    run.ready(0, 1, 5, 7, 9)
    choice = run.choose(updates=2)
    assert choice.batches == [[window(1), window(5)], [window(7), window(9)]]
    assert (choice.ready, choice.left, choice.trained, choice.few_agents, choice.nothing_new) == (5, 1, 0, 0, 0)


def test_a_window_needs_agents_with_actions_and_something_to_learn(run):
    run.ready(0, 1)
    run.ready(2, verbs=ALL_HOLD)
    assert run.choose(min_actions=2).batches == [] and run.choose(min_actions=2).best == 0
    few = run.choose(min_agents=AGENTS + 1)
    assert (few.few_agents, few.best, few.nothing_new) == (2, AGENTS, 1)
    assert run.choose(windows=9).batches == [[window(0), window(1)]]


def test_what_the_line_was_trained_on_is_not_chosen_again_and_a_late_window_waits_for_a_newer_one(run):
    run.ready(1, 3)
    (batch,) = run.choose().batches
    row = run.train(batch)
    assert row["updated"] and list(row["group_digests"]) == batch
    again = run.choose()
    assert (again.batches, again.trained, again.left) == ([], 2, 0)
    run.ready(2)
    assert (run.choose().batches, run.choose().left) == ([], 1)
    run.ready(6)
    assert run.choose().batches == [[window(2), window(6)]]
    run.train([window(2), window(6)])
    steps = [(c.step, c.last_window) for c in list_checkpoints_of(run)]
    assert steps == [(0, None), (1, window(3)), (2, window(6))]


def list_checkpoints_of(run):
    with run.database.connect() as connection:
        return list_checkpoints(connection, "run")


def test_a_window_that_is_computed_again_is_the_same_job_and_those_between_are_no_update(run):
    run.ready(1, 2, 3)
    run.train([window(1), window(3)])
    assert run.again([window(3)])["updated"]
    assert len({request.job_id for request in run.trained}) == 1 and len(list_checkpoints_of(run)) == 2
    assert "no update of the run ends" in run.again([window(2)])["reason"]


def test_a_batch_whose_update_failed_is_still_due_and_one_that_found_nothing_is_not(run):
    run.ready(1, 2)

    def fails(request):
        raise TrainingError("the disk is full")

    with run.database.connect() as connection:
        add_batch(connection, run.stored(), [window(1), window(2)])
    with pytest.raises(TrainingError, match="the disk is full"):
        update_checkpoints(run.database, run.settings, [window(2)], fails)
    with run.database.connect() as connection:
        assert unfinished(connection, run.stored()) == [window(1), window(2)]
    row = run.again([window(2)])
    with run.database.connect() as connection:
        replace_windows(connection, trained_checkpoints, [window(2)], pd.DataFrame([row]))
        assert unfinished(connection, run.stored()) is None


def test_two_commands_cannot_both_give_the_run_its_next_batch(run):
    seen = run.stored()
    with run.database.connect() as connection:
        add_batch(connection, seen, [window(4)])
        with pytest.raises(TrainingError, match="Another command"):
            add_batch(connection, seen, [window(5)])
    assert batches_of(run.stored()) == [[window(4)]] and run.stored().last_window == window(4)


@pytest.mark.parametrize(("count", "ended", "size"), itertools.product((0, 1, 5, 6), (0, 3, 9), (1, 2, 4)))
def test_each_update_ends_later_than_the_one_before_and_takes_a_window_once(count, ended, size):
    ids = [window(place) for place in range(1, count + 1)]
    batches = _split(ids, window(ended), size)
    ends = [window(ended), *(batch[-1] for batch in batches)]
    assert ends == sorted(set(ends)) and all(batch == sorted(batch) and len(batch) <= size for batch in batches)
    taken = [one for batch in batches for one in batch]
    assert len(taken) == len(set(taken)) and {one for one in ids if one > window(ended)} <= set(taken)


def test_a_forecast_counts_what_the_update_then_takes_and_writes_nothing(run, monkeypatch):
    run.ready(1, 3)
    run.ready(4, verbs=ALL_HOLD)
    before = everything(run.database)
    batch = [window(1), window(3), window(4), window(5)]
    with run.database.connect() as connection:
        found = forecast_of(connection, run.settings, run.stored(), batch)
        assert measured_speed(connection, run.settings, run.stored()) is None
    assert everything(run.database) == before
    assert found.groups == {"trainable": 2, "no_spread": 1, "not_materialized": 1}
    row = run.train(batch)
    assert row["groups_trained"] == 2 and found.windows == 4
    with run.database.connect() as connection:
        snapshot = load_snapshot(connection, row["snapshot_id"])
        speed = measured_speed(connection, run.settings, run.stored())
    members = [member for group in snapshot.groups for member in group.members]
    decisions = [decision for member in members for decision in member.decisions]
    assert found.trajectories == {"importance_weighted": {"on_policy": len(members)}}
    assert found.left_out == snapshot.left_out and found.refused == []
    assert found.prompt_tokens == sum(len(decision.prompt_token_ids) for decision in decisions)
    assert found.answer_tokens == sum(len(decision.token_ids) for decision in decisions) > 0
    assert seconds_of(found, run.run, None) is None
    assert speed.updates == 1 and seconds_of(found, run.run, speed) == pytest.approx(
        found.tokens / speed.tokens_per_second
    )
    hosted = msgspec.structs.replace(run.run, backend="wandb")
    priced = run.settings.model_copy(update={"training_price": 2.0})
    assert dollars_of(found, run.run, priced) == 0 and dollars_of(found, hosted, priced) == 2e-6 * found.tokens
    twice = sum_of([found, found])
    assert (twice.tokens, twice.trained, twice.groups["trainable"]) == (2 * found.tokens, 2 * found.trained, 4)


def test_a_forecast_says_why_no_update_would_be_made(run):
    run.ready(1, verbs=ALL_HOLD)
    with run.database.connect() as connection:
        found = forecast_of(connection, run.settings, run.stored(), [window(1)])
    assert found.trained == 0 and "Nothing trainable" in found.refused[0]
