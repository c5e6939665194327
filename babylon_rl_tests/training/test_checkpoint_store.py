"""Checkpoints in folders and behind URLs: nothing half written is one, and what comes back is what was kept."""

import json
import shutil
from pathlib import Path

import fsspec
import msgspec
import pytest

from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training import checkpoint_store as store
from babylon_rl.training.hashes import base_digest, tokenizer_digest
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, list_checkpoints
from babylon_rl.training.trainer import MANIFEST_FILE, WEIGHTS_FILE, TrainerRequest, TrainerResult
from babylon_rl_tests.training.rounds import MIXED, Rounds, trained

PLACE = "memory://checkpoints/of-a-test"


@pytest.fixture(autouse=True)
def memory():
    """The file system of memory:// URLs, empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings().model_copy(update={"home": tmp_path / "home", "checkpoint_store": PLACE})


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights of the base")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def request_for(settings: Settings, base: Path, checkpoint_id: str = "run@1-abc") -> TrainerRequest:
    return TrainerRequest(
        checkpoint_id=checkpoint_id, snapshot_id="0" * 64, parent_id="run@0", parent_folder=None, parent_step=0,
        base_folder=str(base), folder=str(store.working_folder(settings, checkpoint_id)), recipe=Recipe(),
        device="cpu", threads=1,
    )  # fmt: skip


def made(settings: Settings, base: Path) -> tuple[TrainerRequest, TrainerResult]:
    request = request_for(settings, base)
    folder = Path(request.folder)
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "more.txt").write_text("more")
    return request, store.keep(settings, request, trained(request))


def checkpoint(result: TrainerResult, **changes) -> Checkpoint:
    fields = {
        "checkpoint_id": "run@1-abc", "training_run": "run", "parent_id": "run@0", "snapshot_id": "0" * 64,
        "base_model": "base", "step": 1, "path": result.folder, "weights_sha256": result.weights_sha256,
        "last_window": "2025-01-15T00:00", "metrics": {}, "state": "ready", "base_sha256": result.base_sha256,
    }  # fmt: skip
    return Checkpoint(**{**fields, **changes})


def test_what_is_kept_behind_a_url_comes_back_on_another_machine_once_and_checked(settings, base, tmp_path, memory):
    request, result = made(settings, base)
    assert result.folder == f"{PLACE}/run@1-abc"
    assert (result.base_sha256, result.tokenizer_sha256) == (base_digest(base), tokenizer_digest(base))
    elsewhere = tmp_path / "elsewhere"
    folder = store.local_folder(checkpoint(result), elsewhere)
    assert (folder / WEIGHTS_FILE).read_text() == "run@1-abc" and (folder / "inner" / "more.txt").read_text() == "more"
    memory.store.clear()  # not asked for again
    assert store.local_folder(checkpoint(result), elsewhere) == folder
    (folder / WEIGHTS_FILE).write_text("altered")
    with pytest.raises(TrainingError, match="not in memory"):
        store.local_folder(checkpoint(result), elsewhere)


def test_a_result_that_is_in_the_store_is_taken_up_on_a_machine_that_never_made_it(settings, base, tmp_path):
    request, result = made(settings, base)
    other = settings.model_copy(update={"home": tmp_path / "other"})
    there = request_for(other, base)
    assert store.take_up(other, there) == result
    assert store.take_up(other, request_for(other, base, "run@1-never")) is None


@pytest.mark.parametrize("after", range(4))
def test_an_upload_that_breaks_off_at_any_file_leaves_no_checkpoint_and_the_next_attempt_completes_it(
    settings, base, memory, monkeypatch, after
):
    request = request_for(settings, base)
    result = trained(request)
    moves, mv = iter(range(100)), memory.mv

    def break_off(*arguments, **options):
        if next(moves) == after:
            raise RuntimeError("the line is down")
        return mv(*arguments, **options)

    (Path(request.folder) / "a.txt").write_text("a")
    (Path(request.folder) / "z.txt").write_text("z")
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "mv", break_off)
        with pytest.raises(TrainingError, match="nothing is trained twice"):
            store.keep(settings, request, result)
    assert not store.exists(f"{PLACE}/run@1-abc")
    kept = store.keep(settings, request, result)
    assert store.exists(kept.folder) and store.keep(settings, request, kept) == kept
    assert not [name for name in memory.store if "/.run@" in name], "nothing temporary is left"


def test_what_was_damaged_in_the_store_is_not_handed_out(settings, base, tmp_path, memory):
    _, result = made(settings, base)
    memory.pipe_file(f"{result.folder}/inner/more.txt", b"less")
    with pytest.raises(TrainingError, match="more.txt .* is damaged"):
        store.local_folder(checkpoint(result), tmp_path / "elsewhere")
    memory.rm_file(f"{result.folder}/{MANIFEST_FILE}")
    with pytest.raises(TrainingError, match="no manifest"):
        store.local_folder(checkpoint(result), tmp_path / "elsewhere")


def test_a_folder_or_file_url_is_written_to_as_it_is_with_a_manifest_of_all_files(settings, base, tmp_path):
    for place in (str(tmp_path / "a"), f"file://{tmp_path}/b", ""):
        request, result = made(settings.model_copy(update={"checkpoint_store": place}), base)
        assert request.folder == result.folder and Path(result.folder).is_relative_to(tmp_path)
        manifest = json.loads((Path(result.folder) / MANIFEST_FILE).read_text())
        assert set(manifest["files"]) == {WEIGHTS_FILE, "inner/more.txt"}
        assert manifest["result"]["base_sha256"] == base_digest(base)


def test_a_backend_with_a_layout_of_its_own_has_its_files_copied_into_place(settings, base, tmp_path):
    local = settings.model_copy(update={"checkpoint_store": ""})
    request = request_for(local, base)
    theirs = tmp_path / "art" / "0001"
    result = trained(msgspec.structs.replace(request, folder=str(theirs)))
    assert store.keep(local, request, result).folder == request.folder
    assert (Path(request.folder) / WEIGHTS_FILE).is_file() and (theirs / WEIGHTS_FILE).is_file()


@pytest.mark.parametrize(
    ("place", "said"), [("nowhere://a/b", "fsspec does not know"), ("hdfs3x://a", "fsspec"), ("gs://bucket/a", "gcsfs")]
)
def test_a_store_that_cannot_be_opened_is_told_with_the_package_that_it_needs(settings, place, said):
    with pytest.raises(SettingsError, match=said):
        store.working_folder(settings.model_copy(update={"checkpoint_store": place}), "run@1")


def test_a_deleted_checkpoint_says_how_it_is_made_again_and_a_hosted_one_where_it_is(settings, base):
    _, result = made(settings, base)
    with pytest.raises(TrainingError, match="train again from its snapshot: .* 2025-01-15T00:00"):
        store.local_folder(checkpoint(result, state="deleted"), settings.home)
    hosted = checkpoint(result, path=None, inference_url="https://example.test/v1", inference_name="name:step3")
    with pytest.raises(TrainingError, match="example.test/v1 as name:step3"):
        store.local_folder(hosted, settings.home)


def test_taking_a_checkpoint_away_leaves_nothing_of_it(settings, base, memory):
    _, result = made(settings, base)
    store.delete(result.folder)
    assert store.stored_bytes(result.folder) == 0 and not memory.store
    _, local = made(settings.model_copy(update={"checkpoint_store": ""}), base)
    assert store.stored_bytes(local.folder) > 0
    store.delete(local.folder)
    assert not Path(local.folder).exists() and not list((Path(local.folder).parent / store.TRASH).iterdir())
    store.delete(local.folder)


def test_the_hash_of_a_base_model_is_read_once_and_again_when_a_file_changes(base, tmp_path):
    first = base_digest(base, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text(kept.read_text().replace(first, "remembered"))
    assert base_digest(base, tmp_path / "kept") == "remembered"
    (base / "model.safetensors").write_bytes(b"other weights")
    assert base_digest(base, tmp_path / "kept") not in (first, "remembered")
    kept.write_text("{")
    assert base_digest(base, tmp_path / "kept") == base_digest(base)


# --- in an update ----------------------------------------------------------------------------------


@pytest.fixture
def rounds(database, tmp_path) -> Rounds:
    made = Rounds(database, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights of the base")
    return made


def latest(rounds: Rounds) -> Checkpoint:
    with rounds.database.connect() as connection:
        return list_checkpoints(connection, "run")[-1]


def test_an_update_books_hashes_and_code_and_goes_on_from_a_store_behind_a_url(rounds):
    rounds.settings = rounds.settings.model_copy(update={"checkpoint_store": PLACE})
    rounds.play(1, MIXED, "run@0")
    rounds.update(1)
    first = latest(rounds)
    assert first.path == f"{PLACE}/{first.checkpoint_id}" and first.code_version
    assert first.base_sha256 == base_digest(Path(rounds.run.base_model))
    rounds.play(2, MIXED, first.checkpoint_id)
    rounds.update(2)
    assert Path(rounds.trained[1].parent_folder, WEIGHTS_FILE).read_text() == first.checkpoint_id


@pytest.mark.parametrize("place", ["elsewhere", PLACE])
def test_a_checkpoint_made_before_the_store_was_another_is_not_made_again(rounds, tmp_path, place):
    rounds.play(1, MIXED, "run@0")
    row, booked = rounds.update(1), latest(rounds)
    place = place if "://" in place else str(tmp_path / place)
    rounds.settings = rounds.settings.model_copy(update={"checkpoint_store": place})
    assert rounds.update(1) == row and len(rounds.trained) == 1
    assert latest(rounds) == booked and not store.exists(f"{place}/{booked.checkpoint_id}")
    shutil.rmtree(booked.path)
    rounds.update(1)
    assert len(rounds.trained) == 2  # what is gone is made again


def test_altered_weights_of_a_parent_and_another_base_model_under_its_name_are_refused(rounds, tmp_path):
    rounds.play(1, MIXED, "run@0")
    rounds.update(1)
    parent = latest(rounds)
    rounds.play(2, MIXED, parent.checkpoint_id)
    weights = Path(parent.path) / WEIGHTS_FILE
    weights.write_text("altered")
    with pytest.raises(TrainingError, match="are not those of"):
        rounds.update(2)
    weights.write_text(parent.checkpoint_id)
    (tmp_path / "model.safetensors").write_bytes(b"weights of another")
    with pytest.raises(TrainingError, match="another model under the name"):
        rounds.update(2)
    (tmp_path / "model.safetensors").write_bytes(b"weights of the base")
    assert rounds.update(2)["updated"]


def test_a_deleted_parent_is_told_before_a_job_is_written_and_training_it_again_brings_it_back(rounds):
    rounds.play(1, MIXED, "run@0")
    rounds.update(1)
    parent = latest(rounds)
    rounds.play(2, MIXED, parent.checkpoint_id)
    store.delete(parent.path)
    with rounds.database.connect() as connection:
        connection.execute("UPDATE babylon_rl.checkpoints SET state = 'deleted', deleted_at = now() WHERE step = 1")
    with pytest.raises(TrainingError, match="were deleted"):
        rounds.update(2)
    with rounds.database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM babylon_rl.training_attempts").fetchone() == (1,)
    rounds.update(1)
    assert latest(rounds).state == "ready" and rounds.update(2)["updated"]
