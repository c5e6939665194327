"""ART as it is installed against what we rely on, part by part; and that a part that moves is named."""

import asyncio
import re
import tomllib

import pytest

from babylon_rl.bench.training_books import TRAINING_CONFIG
from babylon_rl.bench.training_service import training_service
from babylon_rl.settings import REPOSITORY
from babylon_rl.training.backends import art_contract
from babylon_rl.training.backends.art_contract import CONTRACT, VERSION, difference, explanation, moved

PARTS = {part.name: part for part in CONTRACT}


@pytest.fixture(autouse=True)
def _quiet_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "1")


@pytest.mark.parametrize("name", PARTS)
def test_art_is_what_this_version_speaks(name):
    assert difference(PARTS[name]) is None


def test_the_pin_is_the_version_that_the_contract_was_read_from():
    pinned = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"openpipe-art=={VERSION}" in pinned


def test_a_signature_that_moves_is_named_with_both_versions(monkeypatch):
    from art.serverless.client import TrainingJobs

    async def create(self, *, model_id, groups):
        raise NotImplementedError

    monkeypatch.setattr(TrainingJobs, "create", create)
    monkeypatch.setattr(art_contract, "version", lambda package: "0.5.19")
    assert [said.partition(":")[0] for said in moved()] == [
        "version",
        "parameters of art.serverless.client.TrainingJobs.create",
    ]
    said = explanation()
    assert said is not None and said.startswith("ART 0.5.19 is installed, 0.5.18 is what this version speaks")
    assert "(self, *, model_id, groups)" in said and "experimental_config" in said


def test_a_name_that_is_gone_and_a_default_that_moves_are_named(monkeypatch):
    import art.loss
    from art.serverless.backend import ServerlessBackend

    real = art.loss.loss_fn

    def narrower(inputs, new_logprobs, ref_logprobs, entropies, experimental_config, reduction="mean"):
        config = {"epsilon_high": 3.0, **experimental_config}
        return real(inputs, new_logprobs, ref_logprobs, entropies, config, reduction)

    monkeypatch.setattr(art.loss, "loss_fn", narrower)
    monkeypatch.delattr(ServerlessBackend, "_get_step")
    said = moved()
    assert [one.partition(":")[0] for one in said] == [
        "parameters of art.serverless.backend.ServerlessBackend._get_step",
        "ratios that the CISPO loss lets through",
        "ratios that the PPO loss lets through",
    ]
    assert "AttributeError" in said[0] and "(0.0, 4.0)" in said[1]


def test_nothing_is_explained_where_nothing_moved():
    assert moved() == [] and explanation() is None


def test_the_paths_on_the_wire_are_those_of_the_contract(monkeypatch):
    """Registering, training and deleting by ART's own backend: each request is one that the contract and the service
    know, and a submission is made once and never again by the client itself."""
    import art
    import openai
    from art.serverless.backend import ServerlessBackend

    from babylon_rl_tests.bench.test_training_service import group

    async def go(service) -> None:
        backend = ServerlessBackend(base_url=service.base_url, api_key=service.api_key)
        model = art.TrainableModel(name="agent", project="p", base_model="base", base_path="/nowhere")
        object.__setattr__(model, "_get_wandb_run", lambda: None)
        await model.register(backend)
        with pytest.raises(openai.InternalServerError):
            await backend.train(model, [group()])
        assert (await backend.train(model, [group()])).step == 1
        await backend._delete_checkpoint_files(model, [])
        await backend.delete(model)
        await backend.close()

    with training_service(["refused_500"]) as service:
        asyncio.run(go(service))
    by_path = {re.sub(r"(model|job)-\d+", "*", path) for _, path in service.requests}
    known = {f"/v1{re.sub('{.*?}', '*', path)}" for path in PARTS["paths of art.serverless.client"].expected}
    assert by_path == known - {"/v1/preview/models/*/log", "/v1/preview/sft-training-jobs"}
    assert [path for _, path in service.requests].count("/v1/preview/training-jobs") == 2
    assert set(PARTS["fields of art.serverless.client.ExperimentalTrainingConfig"].expected) == TRAINING_CONFIG
