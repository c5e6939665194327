"""Updates that fail midway, damaged snapshots and weights, and what becomes stale along a chain of checkpoints."""

import hashlib
from pathlib import Path

import dagster as dg
import msgspec
import pandas as pd
import pytest

from babylon_rl.database.window_rows import open_failures
from babylon_rl.defs import trained_checkpoints
from babylon_rl.errors import TrainingError
from babylon_rl.evaluation import schedule as evaluation
from babylon_rl.staleness import stale_rows
from babylon_rl.training.runs import start_run
from babylon_rl.training.trainer import WEIGHTS_FILE, TrainerRequest, TrainerResult
from babylon_rl.training.updates import keep_rows, update_checkpoints
from babylon_rl.training.verification import altered_snapshots, altered_weights
from babylon_rl_tests.defs.ranges import materialize, span
from babylon_rl_tests.training.rounds import MIXED, Rounds

OTHER = MIXED[::-1]


class Weighed(Rounds):
    """Rounds whose trainer writes weights."""

    def _launch(self, request: TrainerRequest) -> TrainerResult:
        folder = Path(request.folder)
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(request.checkpoint_id.encode())
        digest = hashlib.sha256(request.checkpoint_id.encode()).hexdigest()
        return msgspec.structs.replace(super()._launch(request), weights_sha256=digest)


@pytest.fixture
def rounds(database, tmp_path) -> Rounds:
    return Weighed(database, tmp_path)


def play_and_update(rounds: Rounds, *numbers: int) -> None:
    for number in numbers:
        rounds.play(number, MIXED, rounds.trained[-1].checkpoint_id if rounds.trained else "run@0")
        rounds.update(number)


def change(rounds: Rounds, query: str, *parameters) -> None:
    """Change rows as the database's owner could who switches its triggers off."""
    with rounds.database.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(query, parameters)


def found(rounds: Rounds, verify, number: int) -> list[str]:
    with rounds.database.connect() as connection:
        return verify(connection, rounds.windows(number))["what"].tolist()


def stale(rounds: Rounds, asset: str = "trained_checkpoints") -> dict[str, str]:
    with rounds.database.connect() as connection:
        told = stale_rows(connection, [asset])
    return dict(zip(told["window_id"], told["why"], strict=True))


def test_windows_before_the_failing_update_are_kept_and_the_error_is_the_trainers(rounds):
    play_and_update(rounds, 1)
    windows = [w for number in (2, 3) for w in rounds.windows(number)]
    rounds.play(2, MIXED, rounds.trained[-1].checkpoint_id)
    kept = []

    def launch(_request):
        raise TrainingError("the trainer's own message")

    def keep(rows):
        kept.append(rows)
        keep_rows(rounds.database, rows)

    with pytest.raises(TrainingError, match="the trainer's own message"):
        update_checkpoints(rounds.database, rounds.settings, windows, launch, keep)
    assert kept[0].frame["window_id"].tolist() == windows[:1] and set(kept[0].failed) == {windows[1]}
    with rounds.database.connect() as connection:
        failures = open_failures(connection, ["trained_checkpoints"])
    assert failures[["window_id", "detail"]].values.tolist() == [[windows[1], "the trainer's own message"]]


def test_a_snapshot_that_was_changed_is_found(rounds):
    play_and_update(rounds, 1)
    assert found(rounds, altered_snapshots, 1) == []
    change(rounds, "UPDATE babylon_rl.snapshots SET content = replace(content, '\"seed\":0', '\"seed\":1')")
    assert "rebuilds to" in found(rounds, altered_snapshots, 1)[0]
    change(rounds, "UPDATE babylon_rl.snapshots SET content = '{}'")
    assert "is no snapshot" in found(rounds, altered_snapshots, 1)[0]


def test_weights_that_were_changed_or_are_missing_are_found_and_deleted_ones_are_not_looked_for(rounds):
    play_and_update(rounds, 1)
    assert found(rounds, altered_weights, 1) == []
    weights = Path(rounds.trained[0].folder) / WEIGHTS_FILE
    weights.write_bytes(b"other")
    assert "not the booked" in found(rounds, altered_weights, 1)[0]
    weights.unlink()
    assert WEIGHTS_FILE in found(rounds, altered_weights, 1)[0]
    change(rounds, "UPDATE babylon_rl.checkpoints SET state = 'deleted' WHERE step > 0")
    assert found(rounds, altered_weights, 1) == []


def test_what_was_trained_on_a_group_that_changed_is_stale_with_all_its_descendants(rounds):
    play_and_update(rounds, 1, 2, 3)
    first, second, third = (request.checkpoint_id for request in rounds.trained)
    assert stale(rounds) == {}
    change(
        rounds,
        """INSERT INTO babylon_rl.checkpoint_evaluations (window_id, candidate, baseline, split, design, windows,
           effect, low, high, candidate_pnl, baseline_pnl, decision, reason, digest)
           SELECT '2026-02-01T00:00', c, 'run@0', 'test', 'x', 1, 0, 0, 0, 0, 0, 'keep', 'x', 'x'
           FROM unnest(%s::text[]) c""",
        [second, third],
    )
    # Other answers in the second round: the first checkpoint stands, what came after it does not.
    rounds.play(2, OTHER, first)
    told = stale(rounds)
    assert set(told) == {rounds.windows(2)[1], *rounds.windows(3)}
    assert f"the group of {rounds.windows(2)[0]} changed" in told[rounds.windows(2)[1]]
    assert "descends from" in told[rounds.windows(3)[1]]
    assert set(stale(rounds, "checkpoint_evaluations")) == {"2026-02-01T00:00"}
    # Trained again, the update itself is current; what was trained from the one before it is not.
    rounds.update(2)
    assert set(stale(rounds)) == set(rounds.windows(3))
    rounds.update(3)
    assert stale(rounds) == {}
    assert set(stale(rounds, "checkpoint_evaluations")) == {"2026-02-01T00:00"}


def test_a_group_that_came_after_the_update_or_vanished_makes_it_stale_and_an_unknown_past_does_not(rounds):
    play_and_update(rounds, 1)
    window = rounds.windows(1)[0]
    change(rounds, "UPDATE babylon_rl.art_groups SET superseded_at = now() WHERE window_id = %s", window)
    assert set(stale(rounds)) == {rounds.windows(1)[1]}
    change(rounds, "UPDATE babylon_rl.trained_checkpoints SET group_digests = NULL")
    assert stale(rounds) == {}


def test_an_update_goes_on_without_a_window_whose_group_failed_and_says_so(rounds):
    rounds.play(1, MIXED, "run@0")
    change(
        rounds,
        "INSERT INTO babylon_rl.window_failures (asset, window_id, error, detail) VALUES ('art_groups', %s, 'x', 'x')",
        rounds.windows(1)[0],
    )
    row = rounds.update(1)
    assert row["updated"] and row["groups_trained"] == 1 and row["metrics"]["left_out"]["not_computed"] == 1
    change(rounds, "UPDATE babylon_rl.window_failures SET resolved_at = now()")
    assert set(stale(rounds)) == {rounds.windows(1)[1]}


def test_a_failed_update_leaves_the_windows_before_it_materialized(rounds, instance, monkeypatch, tmp_path):
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    monkeypatch.setattr(trained_checkpoints.sys, "executable", "/bin/false")
    rounds.play(1, MIXED, "run@0")
    first, second = rounds.windows(1)
    result = materialize(rounds.database, instance, span(first, second), ["trained_checkpoints"])
    assert not result.success
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert "ended without a result" in data.user_failure_data.description
    assert instance.get_materialized_partitions(dg.AssetKey("trained_checkpoints")) == {first}
    with rounds.database.connect() as connection:
        kept = connection.execute("SELECT window_id FROM babylon_rl.trained_checkpoints").fetchall()
        assert kept == [(first,)] and open_failures(connection, ["trained_checkpoints"])["window_id"].tolist() == [
            second
        ]


def test_a_later_run_over_the_same_windows_takes_away_neither_evaluations_nor_their_currency(rounds, monkeypatch):
    play_and_update(rounds, 1)
    made = pd.DataFrame([{"candidate": rounds.trained[0].checkpoint_id}])
    monkeypatch.setattr(evaluation, "_test", lambda connection, run, schedule: [made.assign(run=run.training_run)])
    later = msgspec.structs.replace(rounds.run, training_run="later", schedule={}, last_window=None)
    judged = evaluation.schedule_of(rounds.run).test[1]
    with rounds.database.connect() as connection:
        start_run(connection, later)
        (comparison,) = evaluation._comparisons(connection, judged)
    assert comparison["run"].tolist() == ["run"]
    change(rounds, "UPDATE babylon_rl.trained_checkpoints SET superseded_at = now()")
    change(
        rounds,
        """INSERT INTO babylon_rl.trained_checkpoints (window_id, training_run, updated, reason, checkpoint_id,
           groups_trained, groups_left_out, metrics, digest)
           SELECT DISTINCT window_id, 'later', false, 'x', 'later@0', 0, 0, '{}'::jsonb, 'x'
           FROM babylon_rl.trained_checkpoints""",
    )
    change(
        rounds,
        """INSERT INTO babylon_rl.checkpoint_evaluations (window_id, candidate, baseline, split, design, windows,
           effect, low, high, candidate_pnl, baseline_pnl, decision, reason, digest)
           VALUES (%s, %s, 'run@0', 'test', 'x', 1, 0, 0, 0, 0, 0, 'keep', 'x', 'x')""",
        judged,
        rounds.trained[0].checkpoint_id,
    )
    assert stale(rounds, "checkpoint_evaluations") == {}
