"""The trainer's work on the database: one request, one checkpoint, whatever the environment holds."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import make_snapshot, save_snapshot
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import MANIFEST_FILE, TrainerRequest, train_update
from babylon_rl_tests.training.batches import sampled_groups

RECIPE = Recipe(windows_per_update=4, minibatches=2, lora_layers=1)


@pytest.fixture
def request_for(database, tiny: Path, tmp_path: Path) -> TrainerRequest:
    snapshot = make_snapshot(sampled_groups(Policy(tiny), 4), "run", RECIPE.as_json(), 0)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
    return TrainerRequest(
        checkpoint_id="run@1",
        snapshot_id=snapshot.snapshot_id,
        parent_id="run@0",
        parent_folder=None,
        parent_step=0,
        base_folder=str(tiny),
        folder=str(tmp_path / "checkpoints" / "run@1"),
        recipe=RECIPE,
        device="cpu",
        threads=1,
    )


def test_a_second_attempt_is_answered_from_the_first_ones_checkpoint(database, request_for):
    steps: list[dict] = []
    first = train_update(request_for, database, steps.append)
    assert len(steps) == RECIPE.minibatches
    assert train_update(request_for, database, steps.append) == first
    assert len(steps) == RECIPE.minibatches  # nothing was trained again


def test_a_damaged_checkpoint_is_made_again_with_the_same_weights(database, request_for):
    first = train_update(request_for, database, lambda _: None)
    weights = Path(first.folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train_update(request_for, database, lambda _: None).weights_sha256 == first.weights_sha256


def test_a_checkpoint_whose_manifest_was_cut_short_is_made_again(database, request_for):
    first = train_update(request_for, database, lambda _: None)
    manifest = Path(first.folder) / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert train_update(request_for, database, lambda _: None) == first


def test_an_unknown_snapshot_is_an_error_and_leaves_no_folder(database, request_for):
    unknown = msgspec.structs.replace(request_for, snapshot_id="0" * 64)
    with pytest.raises(TrainingError, match="no snapshot"):
        train_update(unknown, database, lambda _: None)
    assert not Path(request_for.folder).exists()


def test_a_key_in_a_dotenv_file_does_not_reach_the_trainer(tmp_path: Path):
    (tmp_path / ".env").write_text("WANDB_API_KEY=planted\n")
    code = (
        "from babylon_rl.training.trainer import _stay_local; _stay_local(); import art, os, dotenv; "
        "dotenv.load_dotenv('.env'); print('WANDB_API_KEY' in os.environ)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
