"""The demo's rounds under alarms: it goes on with more exploration or from an earlier state, and stops when told to."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.evaluation.schedule import schedule_of
from babylon_rl.loop import Player, _evaluate, _train, require_files
from babylon_rl.training.runs import list_checkpoints
from babylon_rl_tests.training.rounds import ALL_HOLD, MIXED, ONE_SIDED, SIZE, Rounds


def demo_of(database, folder, *batches):
    """Player and materializer whose rounds are these batches, and what they were asked for."""
    rounds = Rounds(database, folder, rounds=len(batches))
    asked = []

    def number_of(window_id: str) -> int:
        return schedule_of(rounds.run).windows("train").index(window_id) // SIZE + 1

    class Planted(Player):
        def _play(self, split, window_ids, label, model, exploration, title):
            asked.append((number_of(window_ids[0]), model, exploration))
            rounds.play(number_of(window_ids[0]), batches[number_of(window_ids[0]) - 1], model, exploration)

    served = SimpleNamespace(load=lambda name, folder: None)
    player = Planted(database, None, served, rounds.run, lambda title, steps: lambda: None, folder)
    materializer = SimpleNamespace(materialize=lambda first, last, title: rounds.update(number_of(first)))
    return player, materializer, rounds, asked


def test_rounds_go_on_from_the_last_good_state_with_more_exploration(database, tmp_path):
    player, materializer, rounds, asked = demo_of(database, tmp_path, ALL_HOLD, MIXED, MIXED, ONE_SIDED, MIXED, MIXED)
    _train(player, materializer)
    first, second = (request.checkpoint_id for request in rounds.trained[:2])
    assert second.startswith("run@2")
    assert asked[:5] == [
        (1, "run@0", 0.1),
        (2, "run@0", 0.3),
        (3, first, 0.1),
        (4, second, 0.1),
        (5, first, 0.3),
    ]
    assert asked[5][0] == 6 and asked[5][2] == 0.1
    trained = [request.checkpoint_id for request in rounds.trained]
    _train(player, materializer)  # taken up again, it goes the same way
    assert asked[6:] == asked[:6]
    assert [request.checkpoint_id for request in rounds.trained] == trained  # and nothing is trained twice


def test_patience_stops_the_rounds_and_a_run_without_a_checkpoint_says_why(database, tmp_path):
    player, materializer, rounds, asked = demo_of(database, tmp_path, *[ALL_HOLD] * 6)
    _train(player, materializer)
    assert [number for number, _, _ in asked] == [1, 2, 3]
    with pytest.raises(TrainingError, match="without a checkpoint to evaluate: round 1: all_hold"):
        _evaluate(player)


def test_a_round_without_an_update_and_without_an_alarm_is_still_an_error(database, tmp_path):
    player, materializer, _, _ = demo_of(database, tmp_path, ())
    with pytest.raises(TrainingError, match="Round 1 gave nothing to train on"):
        _train(player, materializer)


def test_a_demo_whose_checkpoints_lost_their_files_says_so_before_it_plays(database, tmp_path):
    player, materializer, rounds, _ = demo_of(database, tmp_path, MIXED)
    require_files(database, rounds.run)
    _train(player, materializer)
    with database.connect() as connection:
        (folder,) = [Path(c.path) for c in list_checkpoints(connection, rounds.run.training_run) if c.path]
    folder.mkdir(parents=True, exist_ok=True)
    adapter = folder / "adapter_config.json"
    adapter.write_text("{}")
    require_files(database, rounds.run)
    adapter.unlink()
    with pytest.raises(TrainingError, match="knows 1 checkpoints.*SEED=2"):
        require_files(database, rounds.run)
