"""What the base model cannot be trained on is left out of an update, and the update says so."""

from babylon_rl_tests.training.rounds import MIXED, Rounds


def test_an_update_leaves_out_what_is_longer_than_the_context_and_says_so(database, tmp_path):
    rounds = Rounds(database, tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2}')
    rounds.play(1, MIXED, "run@0")
    row = rounds.update(1)
    assert not row["updated"] and not rounds.trained
    assert "16 members prompt_too_long" in row["reason"]
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    row = rounds.update(1)
    assert row["updated"] and len(rounds.trained) == 1
