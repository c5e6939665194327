"""Backend `art-local`: ART's real LocalBackend from the request to the checkpoint; its GPU service alone is replaced
by one that takes a real gradient step on the CPU."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import make_snapshot, save_snapshot
from babylon_rl.settings import get_settings
from babylon_rl.training.backends import art_local
from babylon_rl.training.backends.seam import train_on
from babylon_rl.training.backends.torch import resume
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import TrainerRequest, weights_digest
from babylon_rl_tests.training.batches import sampled_groups

RECIPE = Recipe(
    windows_per_update=2,
    minibatches=1,
    advantages="leave_one_out",
    balanced_answers=None,
    learning_rate=0.01,
    lora_rank=4,
)


class CpuService:
    """A ModelService as small as can be: one gradient step of ART's loss over all rows, on the CPU.

    It keeps to what ART's own service does: continues from the last step's adapter, writes the next step's folder.
    """

    def __init__(self, base_model: str, output_dir: str) -> None:
        self.base_model, self.output_dir = base_model, output_dir

    async def start_openai_server(self, config: Any) -> tuple[str, int]:
        return "127.0.0.1", 0

    async def vllm_engine_is_sleeping(self) -> bool:
        return False

    async def train(
        self, disk_packed_tensors: Any, config: Any, _config: Any, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        import torch
        from art.local.checkpoints import get_last_checkpoint_dir
        from art.loss import loss_fn
        from art.preprocessing.pack import packed_tensors_from_dir
        from art.utils.get_model_step import get_step_from_dir
        from art.utils.output_dirs import get_step_checkpoint_dir
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(self.base_model)
        parent = get_last_checkpoint_dir(self.output_dir)
        if parent is None:
            model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        else:
            model = PeftModel.from_pretrained(base, parent, is_trainable=True)
        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        used = int(tensors["assistant_mask"].any(0).nonzero().max()) + 2  # rows are padded to 2048
        rows = {key: value[:, :used] for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=config.learning_rate)
        logits = model(rows["tokens"]).logits[:, :-1].log_softmax(-1)
        taken = logits.gather(-1, rows["tokens"][:, 1:, None])[..., 0]
        new = torch.nn.functional.pad(taken, (0, 1))
        loss = loss_fn(rows, new, None, None, _config).policy_loss
        loss.backward()
        optimizer.step()
        model.save_pretrained(get_step_checkpoint_dir(self.output_dir, get_step_from_dir(self.output_dir) + 1))
        yield {"loss/train": float(loss.detach()), "data/step_num_gradient_steps": 1.0}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """ART's backend with that service, on a machine that lacks nothing; the models that asked for it."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from art.local import LocalBackend
    from art.utils.output_dirs import get_model_dir

    asked: list[Any] = []

    async def get_service(self, model):
        asked.append(model)
        return CpuService(model.base_model, get_model_dir(model, self._path))

    monkeypatch.setattr(LocalBackend, "_get_service", get_service)
    monkeypatch.setattr(art_local, "missing", list)
    return asked


def free_answers(policy, choices: bool = False) -> list:
    """Groups of answers that were drawn from all tokens, or out of choices."""
    groups = sampled_groups(policy, 2, exploration=0.0)
    if choices:
        return groups
    return [
        msgspec.structs.replace(
            group,
            members=[
                msgspec.structs.replace(
                    member, decisions=[msgspec.structs.replace(d, choices=None) for d in member.decisions]
                )
                for member in group.members
            ],
        )
        for group in groups
    ]


@pytest.fixture
def request_for(database, policy, tiny: Path, tmp_path: Path) -> TrainerRequest:
    return made_request(database, free_answers(policy), tiny, tmp_path)


def made_request(database, groups: list, tiny: Path, folder: Path) -> TrainerRequest:
    snapshot = make_snapshot(groups, "run", RECIPE.as_json(), 0)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
    return TrainerRequest(
        checkpoint_id="run@1",
        snapshot_id=snapshot.snapshot_id,
        parent_id="run@0",
        parent_folder=None,
        parent_step=0,
        base_folder=str(tiny),
        folder=str(folder / "checkpoints" / "run@1"),
        recipe=RECIPE,
        device="auto",
        threads=1,
        backend="art-local",
        training_run="run",
    )


def test_an_update_goes_through_arts_backend_to_a_checkpoint_that_peft_loads(database, request_for, runtime, tiny):
    told: list[dict] = []
    result = train_on("art-local")(request_for, database, get_settings(), told.append)
    folder = Path(request_for.folder)
    assert result.folder == str(folder) and result.weights_sha256 == weights_digest(folder)
    assert result.steps[0]["loss/train"] == told[0]["loss/train"] and told[0]["step"] == 1
    assert result.metrics["data/step_trainer_tokens"] > 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["request"]["snapshot_id"] == request_for.snapshot_id
    assert manifest["result"] == msgspec.to_builtins(result)
    assert list(folder.parent.iterdir()) == [folder]  # nothing of the work is left
    assert runtime[0]._internal_config["peft_args"] == {"r": 4, "lora_alpha": 8}

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    moved = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert moved and any(float(p.abs().max()) > 0 for p in moved)


def test_the_next_update_continues_the_parents_adapter(database, request_for, runtime, tmp_path):
    train = train_on("art-local")
    first = train(request_for, database, get_settings(), lambda _: None)
    child = msgspec.structs.replace(
        request_for,
        checkpoint_id="run@2",
        parent_id="run@1",
        parent_folder=first.folder,
        parent_step=1,
        folder=str(tmp_path / "checkpoints" / "run@2"),
    )
    second = train(child, database, get_settings(), lambda _: None)
    fresh = msgspec.structs.replace(request_for, folder=str(tmp_path / "checkpoints" / "again"))
    assert train(fresh, database, get_settings(), lambda _: None).weights_sha256 == first.weights_sha256
    assert second.weights_sha256 != first.weights_sha256
    assert Path(first.folder, "manifest.json").is_file()  # the parent stays as it was


def test_a_second_attempt_is_answered_from_the_first_ones_checkpoint(database, request_for, runtime):
    first = train_on("art-local")(request_for, database, get_settings(), lambda _: None)
    asked = len(runtime)
    assert train_on("art-local")(request_for, database, get_settings(), lambda _: None) == first
    assert len(runtime) == asked


def test_the_work_folder_of_a_live_process_is_left_alone(database, request_for, runtime):
    folder = Path(request_for.folder)
    with resume.work_folder(folder.with_name(f".{folder.name}.work")) as work:
        (work / "step").touch()
        with pytest.raises(TrainingError, match="Another process"):
            train_on("art-local")(request_for, database, get_settings(), lambda _: None)
        assert (work / "step").exists() and not runtime


def test_a_machine_without_gpu_and_unsloth_is_told_what_is_missing_and_how_to_get_it(
    database, request_for, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ART_VLLM_RUNTIME_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(art_local.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TrainingError) as refused:
        train_on("art-local")(request_for, database, get_settings(), lambda _: None)
    said = str(refused.value)
    for part in ("unsloth", "openpipe-art[backend]==0.5.18", "NVIDIA GPU", "install uv", "TRAINING_BACKEND=torch"):
        assert part in said
    assert not Path(request_for.folder).parent.exists()


def test_a_runtime_that_is_named_and_not_there_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("ART_VLLM_RUNTIME_BIN", str(tmp_path / "no-program"))
    assert any("ART_VLLM_RUNTIME_BIN" in said for said in art_local.missing())
    program = tmp_path / "cache" / "hash" / ".venv" / "bin" / "art-vllm-runtime-server"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.delenv("ART_VLLM_RUNTIME_BIN")
    monkeypatch.setenv("ART_VLLM_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not any("vLLM" in said for said in art_local.missing())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"advantages": "all_actions"}, "all_actions"),
        ({"balanced_answers": ("BUY", "SELL")}, "balanced_answers"),
        ({"entropy_coefficient": 0.01}, "entropy_coefficient"),
        ({"epochs": 2}, "epochs"),
        ({"decay_steps": 10}, "decay_steps"),
        ({"ess_floor": 0.5}, "ess_floor"),
    ],
)
def test_what_arts_trainer_does_not_do_is_refused_by_name(change, named):
    with pytest.raises(TrainingError, match=named):
        art_local.refuse_recipe(msgspec.structs.replace(RECIPE, **change))


def test_answers_drawn_out_of_choices_are_refused_before_anything_starts(database, policy, tiny, tmp_path, runtime):
    request = made_request(database, free_answers(policy, choices=True), tiny, tmp_path)
    with pytest.raises(TrainingError, match="out of given choices"):
        train_on("art-local")(request, database, get_settings(), lambda _: None)
    assert not runtime


def test_a_runtime_that_dies_is_an_error_with_the_end_of_its_log(database, request_for, runtime, monkeypatch):
    from art.local import LocalBackend

    async def dies(self, model):
        log = Path(self._path) / "babylon_rl" / "models" / "run" / "logs" / "vllm-runtime.log"
        log.parent.mkdir(parents=True)
        log.write_text("loading\nCUDA error: no kernel image\n")
        await asyncio.sleep(0)
        raise RuntimeError("vLLM runtime exited with code 1")

    monkeypatch.setattr(LocalBackend, "_get_service", dies)
    with pytest.raises(TrainingError, match="no kernel image") as failed:
        train_on("art-local")(request_for, database, get_settings(), lambda _: None)
    assert "exited with code 1" in str(failed.value) and "run@0 stays" in str(failed.value)
    assert not list(Path(request_for.folder).parent.iterdir())
