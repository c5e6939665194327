"""An update that is killed at any moment is continued, and ends in the weights of one that was not."""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import Snapshot, make_snapshot, save_snapshot
from babylon_rl.training import trainer
from babylon_rl.training.backends.torch import loss, resume
from babylon_rl.training.backends.torch import update as updating
from babylon_rl.training.backends.torch.update import Update
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import TrainerRequest, train_update, weights_digest
from babylon_rl_tests.training.batches import sampled_groups, update_on

# Six steps, in which the rate rises, and then falls.
RECIPE = Recipe(
    windows_per_update=3, minibatches=3, epochs=2, lora_layers=1, warmup_steps=3, decay_steps=6, adam_betas=(0.9, 0.99),
    advantages="leave_one_out",
)  # fmt: skip
STEPS = 6


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def snapshot(tiny: Path) -> Snapshot:
    use_threads(1)
    return make_snapshot(sampled_groups(Policy(tiny), 3), "run", RECIPE.as_json(), 0)


@pytest.fixture(scope="module")
def parent(tiny: Path, snapshot: Snapshot, tmp_path_factory) -> Path:
    """A checkpoint with moments and steps taken, to go on from."""
    return update_on(snapshot, RECIPE, tiny, tmp_path_factory.mktemp("parent")).folder


@pytest.fixture
def attempt(tiny: Path, snapshot: Snapshot, parent: Path, tmp_path: Path, monkeypatch) -> Callable[..., Update]:
    """Update in a work folder of that name; `cut`: the process ends after that many steps, their state saved."""
    use_threads(1)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)

    def run(name: str, cut: int | None = None) -> Update | None:
        taken = 0

        def report(_: dict) -> None:
            nonlocal taken
            taken += 1
            if taken == cut:
                raise Killed

        with contextlib.suppress(Killed):
            return update_on(snapshot, RECIPE, tiny, tmp_path / name, parent=parent, step=1, report=report, key="key")
        return None

    return run


def moments(made: Update) -> dict[tuple[int, str], torch.Tensor]:
    saved = torch.load(made.folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    return {(index, name): value for index, state in saved.items() for name, value in state.items()}


def same_weights(one: Update, other: Update) -> bool:
    return weights_digest(one.folder) == weights_digest(other.folder)


# --- The seven defects that go unnoticed ---


def test_the_moments_go_on_and_are_not_zeroed(attempt):
    whole = attempt("whole")
    attempt("cut", cut=4)
    resumed = attempt("cut")
    assert {key: value.tolist() for key, value in moments(resumed).items()} == {
        key: value.tolist() for key, value in moments(whole).items()
    }
    assert same_weights(resumed, whole)


@pytest.fixture
def batches(monkeypatch) -> list[str]:
    """The first call of each minibatch that is trained, in order."""
    seen: list[str] = []
    backward = loss.Minibatch.backward

    def spy(self, rows):
        seen.append(str(hash(tuple(token for row in rows for token in row.answer.prompt))))
        return backward(self, rows)

    monkeypatch.setattr(loss.Minibatch, "backward", spy)
    return seen


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_no_batch_is_trained_twice_or_left_out(attempt, batches, cut):
    attempt("cut", cut=cut)
    made = attempt("cut")
    assert sorted(Counter(batches).values()) == [RECIPE.epochs] * RECIPE.minibatches
    assert len(made.steps) == STEPS


@pytest.mark.parametrize("cut", [1, 4])
def test_the_remainder_comes_in_the_order_of_a_run_that_was_not_cut(attempt, batches, cut):
    attempt("whole")
    whole = batches.copy()
    batches.clear()
    attempt("cut", cut=cut)
    attempt("cut")
    assert batches == whole and len(set(whole)) == RECIPE.minibatches


@pytest.mark.parametrize("moment", [1, 3])
def test_the_state_is_never_ahead_of_its_cursor(attempt, tmp_path, monkeypatch, moment):
    kept: list[dict] = []
    save, replace = resume.save_state, os.replace

    def spy(folder, key, state):
        kept.append(state | {"steps": list(state["steps"])})
        save(folder, key, state)

    monkeypatch.setattr(resume, "save_state", spy)
    whole = attempt("whole")
    by_steps = {len(state["steps"]): state for state in kept}
    saves = 0

    def cut(source, target):
        nonlocal saves
        saves += 1
        if saves > moment:
            raise Killed  # the state is written, and has not its name yet
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    attempt("cut")
    monkeypatch.setattr(os, "replace", replace)
    left = resume.load_state(tmp_path / "cut", "key")
    assert left is not None and len(left["steps"]) == moment
    expected = by_steps[moment]
    assert left["taken"] == expected["taken"] == STEPS + moment
    assert all(torch.equal(left["weights"][name], value) for name, value in expected["weights"].items())
    assert same_weights(attempt("cut"), whole)


def test_what_can_be_resumed_is_not_deleted_by_an_attempt_that_fails(database, request_of, monkeypatch):
    whole = train_update(request_of("whole"), database, lambda _: None)
    request = request_of("cut")
    train_until(request, database, 2)

    def broken(*_, **__):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(updating, "Policy", broken)
        train_update(request, database, lambda _: None)
    steps: list[dict] = []
    assert train_update(request, database, steps.append).weights_sha256 == whole.weights_sha256
    assert len(steps) == STEPS - 2


def test_the_schedule_goes_on_and_does_not_restart(attempt, monkeypatch):
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self, *given):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    attempt("cut", cut=2)
    attempt("cut")
    # The parent took as many before.
    assert rates == [RECIPE.learning_rate * RECIPE.rate_at(STEPS + 1 + taken) for taken in range(STEPS)]


def test_random_numbers_go_on_and_are_not_used_again(attempt, monkeypatch):
    """A model with random numbers in it, as dropout would be: Python's, numpy's and torch's."""
    evaluate = Policy.evaluate
    drawn: list[float] = []

    def noisy(self, *given) -> Iterator:
        for members, results in evaluate(self, *given):
            noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
            drawn.extend(noise)
            yield members, [dataclasses.replace(r, logprobs=r.logprobs * (1 + sum(noise))) for r in results]

    monkeypatch.setattr(Policy, "evaluate", noisy)
    whole, numbers = attempt("whole"), drawn.copy()
    drawn.clear()
    attempt("cut", cut=3)
    random.random(), np.random.rand(), torch.rand(3)  # whatever the process did meanwhile
    resumed = attempt("cut")
    assert drawn == numbers and len(set(numbers)) == len(numbers)
    assert same_weights(resumed, whole)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_a_parent_without_its_moments_is_refused_and_not_trained_from_zeroed_ones(
    tiny, snapshot, parent, tmp_path, damage
):
    copy = Path(shutil.copytree(parent, tmp_path / "parent"))
    damage(copy / "optimizer.pt")
    with pytest.raises(TrainingError, match="optimizer's moments .* Put the file back"):
        update_on(snapshot, RECIPE, tiny, tmp_path / "work", parent=copy, step=1)


# --- Whose state it is ---


def test_a_damaged_state_means_a_restart_from_the_parent(attempt, tmp_path):
    whole = attempt("whole")
    attempt("cut", cut=3)
    state = tmp_path / "cut" / resume.STATE_FILE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert resume.load_state(tmp_path / "cut", "key") is None
    assert same_weights(attempt("cut"), whole)


@pytest.fixture
def request_of(
    database, snapshot: Snapshot, tiny: Path, tmp_path: Path, monkeypatch
) -> Callable[[str], TrainerRequest]:
    """Requests for the same update, whose checkpoints have that name."""
    use_threads(1)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
    return lambda name: TrainerRequest(
        checkpoint_id="run@1",
        snapshot_id=snapshot.snapshot_id,
        parent_id="run@0",
        parent_folder=None,
        parent_step=0,
        base_folder=str(tiny),
        folder=str(tmp_path / "checkpoints" / name),
        recipe=RECIPE,
        device="cpu",
        threads=1,
    )


def train_until(request: TrainerRequest, database, steps: int) -> None:
    """The process ends after so many steps."""

    def report(metrics: dict) -> None:
        if metrics["step"] == steps:
            raise Killed

    with pytest.raises(Killed):
        train_update(request, database, report)


def work_of(request: TrainerRequest) -> Path:
    folder = Path(request.folder)
    return folder.with_name(f".{folder.name}.work")


def test_the_state_of_another_request_is_not_continued(database, request_of):
    request = request_of("cut")
    train_until(request, database, 2)
    other = msgspec.structs.replace(request, recipe=msgspec.structs.replace(RECIPE, learning_rate=2e-3))
    steps: list[dict] = []
    train_update(other, database, steps.append)
    assert len(steps) == STEPS


def test_the_work_folder_goes_when_the_checkpoint_is_there_or_the_update_is_refused(database, request_of, monkeypatch):
    request = request_of("done")
    train_update(request, database, lambda _: None)
    assert [path.name for path in Path(request.folder).parent.iterdir()] == ["done"]
    refused = msgspec.structs.replace(request_of("refused"), recipe=msgspec.structs.replace(RECIPE, ess_floor=1.0))
    with pytest.raises(TrainingError, match="effective sample size"):
        train_update(refused, database, lambda _: None)
    assert not work_of(refused).exists()


def test_the_work_folder_of_a_live_process_is_left_alone(database, request_of):
    request = request_of("held")
    train_until(request, database, 2)
    with resume.work_folder(work_of(request)) as held:
        with pytest.raises(TrainingError, match="Another process"):
            train_update(request, database, lambda _: None)
        assert (held / resume.STATE_FILE).exists()


def test_a_full_disk_keeps_what_can_be_resumed(database, request_of, monkeypatch):
    request = request_of("full")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match="free some disk space"):
        patched.setattr("peft.PeftModel.save_pretrained", full)
        train_update(request, database, lambda _: None)
    steps: list[dict] = []
    train_update(request, database, steps.append)
    assert steps == []  # all were taken, and their state was kept


# --- Killed ---


def test_killed_between_the_checkpoint_and_its_name_it_ends_in_the_same_bytes(database, request_of, monkeypatch):
    whole = train_update(request_of("whole"), database, lambda _: None)
    request = request_of("cut")

    def killed(_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer, "weights_digest", killed)
        train_update(request, database, lambda _: None)
    result = train_update(request, database, lambda _: None)
    assert result.weights_sha256 == whole.weights_sha256
    assert result.steps == whole.steps and result.metrics == whole.metrics


KILLED = """
import os, signal, sys
import msgspec
from babylon_rl.database.connect import Database
from babylon_rl.training.backends.torch import resume
from babylon_rl.training.trainer import TrainerRequest, train_update
resume.SAVE_SECONDS = 0.0
request = msgspec.json.decode(sys.argv[1], type=TrainerRequest)
def report(metrics):
    if metrics["step"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
train_update(request, Database(sys.argv[2], embedded=True), report)
"""


def test_a_process_that_is_killed_after_a_step_is_continued_to_the_same_bytes(database, request_of):
    whole = train_update(request_of("whole"), database, lambda _: None)
    request = request_of("cut")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, msgspec.json.encode(request).decode(), database.url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (work_of(request) / resume.STATE_FILE).exists()
    steps: list[dict] = []
    result = train_update(request, database, steps.append)
    assert [step["step"] for step in steps] == [2, 3, 4, 5, 6]
    assert result.weights_sha256 == whole.weights_sha256
