"""The canary set: computed by the trainer, afterwards from stored weights, and kept with the weights they are of."""

from pathlib import Path

import msgspec
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import make_snapshot, save_snapshot
from babylon_rl.settings import Settings
from babylon_rl.training import canary_process
from babylon_rl.training.canaries import (
    CANARIES,
    LIKELIEST,
    Canaries,
    Likely,
    canary_logprobs,
    load_canaries,
    save_canaries,
)
from babylon_rl.training.canary_process import ensure_canaries
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import load_checkpoint, save_checkpoint
from babylon_rl.training.trainer import TrainerRequest, train_update, weights_digest
from babylon_rl_tests.training import rounds
from babylon_rl_tests.training.batches import sampled_groups, update_on
from babylon_rl_tests.training.lineages import start
from babylon_rl_tests.training.rounds import MIXED, Rounds

RECIPE = Recipe(windows_per_update=2, minibatches=1, lora_layers=1)


@pytest.fixture(scope="module")
def snapshot(tiny: Path):
    use_threads(1)
    return make_snapshot(sampled_groups(Policy(tiny), 2), "run", RECIPE.as_json(), 0)


@pytest.fixture(scope="module")
def made(snapshot, tiny: Path, tmp_path_factory):
    """An update that was made on the CPU."""
    return update_on(snapshot, RECIPE, tiny, tmp_path_factory.mktemp("work"))


@pytest.fixture
def settings(tiny: Path) -> Settings:
    return Settings().model_copy(update={"home": tiny.parents[1], "device": "cpu", "threads": 1})


def one(checkpoint_id: str, value: float, weights: str | None) -> Canaries:
    prompts = [Likely([1, 2], ["a", "b\0c"], [value, value - 1])] * len(CANARIES)
    return Canaries(
        checkpoint_id=checkpoint_id, precision="float32", prompts=prompts, made_by="trainer", weights_sha256=weights
    )


def test_the_trainer_hands_out_what_the_weights_that_it_wrote_say(made, tiny):
    again = Policy(tiny)
    again.add_adapter(made.folder)
    assert made.canaries == canary_logprobs(again, "default")
    assert made.canaries != canary_logprobs(again, None)
    assert [len(likely.ids) for likely in made.canaries] == [LIKELIEST] * len(CANARIES)
    assert all(likely.logprobs == sorted(likely.logprobs, reverse=True) for likely in made.canaries)


def test_canaries_are_the_log_probabilities_of_the_plain_model(policy):
    import torch

    found = canary_logprobs(policy, None)
    for messages, likely in zip(CANARIES, found, strict=True):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([policy.chat.prompt(messages)])).logits[0, -1]
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        assert likely.logprobs == pytest.approx(logprobs[likely.ids].tolist(), abs=2e-5)
        assert logprobs.exp().sum().item() == pytest.approx(1)


def test_a_killed_trainers_canaries_are_found_again_with_its_checkpoint(database, snapshot, tiny, tmp_path):
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
    request = TrainerRequest(
        checkpoint_id="run@1", snapshot_id=snapshot.snapshot_id, parent_id="run@0", parent_folder=None, parent_step=0,
        base_folder=str(tiny), folder=str(tmp_path / "run@1"), recipe=RECIPE, device="cpu", threads=1,
    )  # fmt: skip
    first = train_update(request, database, lambda _: None)
    assert first.canaries is not None and train_update(request, database, lambda _: None).canaries == first.canaries


def test_an_update_books_its_canaries_with_its_checkpoint(database, tmp_path, monkeypatch):
    said = one("", -0.5, None).prompts

    def trained(request):
        return msgspec.structs.replace(plain(request), canaries=said)

    plain = rounds.trained
    monkeypatch.setattr(rounds, "trained", trained)
    played = Rounds(database, tmp_path, rounds=1)
    played.play(1, MIXED, "run@0")
    checkpoint_id = played.update(1)["checkpoint_id"]
    with database.connect() as connection:
        booked = load_canaries(connection, checkpoint_id)
    assert booked is not None and booked.made_by == "trainer"
    assert booked.prompts == [msgspec.structs.replace(likely, texts=["a", "bc"]) for likely in said]


def test_those_of_other_weights_are_not_handed_out_and_are_replaced(database):
    with database.connect() as connection:
        start(connection)
        save_canaries(connection, one("run@0", -0.5, "others"))
        assert load_canaries(connection, "run@0") is None
        save_canaries(connection, one("run@0", -0.7, None))
        save_canaries(connection, one("run@0", -0.9, None))  # the same weights: what is there stays
        found = load_canaries(connection, "run@0")
        assert found is not None and found.prompts[0].logprobs[0] == -0.7
        assert load_canaries(connection, "run@0", "bfloat16") is None


def test_what_is_missing_is_computed_afterwards_once_from_base_and_stored_weights(
    database, made, settings, tiny, monkeypatch
):
    with database.connect() as connection:
        start(connection)
        step = msgspec.structs.replace(
            load_checkpoint(connection, "run@0"), checkpoint_id="run@1", parent_id="run@0", step=1,
            path=str(made.folder), weights_sha256=weights_digest(made.folder), backend="torch",
        )  # fmt: skip
        save_checkpoint(connection, step)
        hosted = msgspec.structs.replace(
            step, checkpoint_id="run@h", path=None, weights_sha256=None, inference_name="x"
        )
        save_checkpoint(connection, hosted)
        altered = msgspec.structs.replace(step, checkpoint_id="run@a", weights_sha256="0" * 64)
        save_checkpoint(connection, altered)
    found = ensure_canaries(database, settings, "run@1")
    assert found is not None and found.made_by == "afterwards"
    assert [likely.ids for likely in found.prompts] == [likely.ids for likely in made.canaries]
    assert ensure_canaries(database, settings.model_copy(update={"home": Path("/none")}), "run@1") == found  # as stored
    asked: list[tuple] = []
    monkeypatch.setattr(
        canary_process, "_in_a_process", lambda *given: asked.append(given) or one("", -0.5, None).prompts
    )
    base = ensure_canaries(database, settings, "run@0")
    assert base is not None and base.weights_sha256 is None and asked == [(tiny, None, "float32", "cpu", 1)]
    assert ensure_canaries(database, settings, "run@h") is None
    with pytest.raises(TrainingError, match="hash"):
        ensure_canaries(database, settings, "run@a")
