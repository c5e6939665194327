"""The trainer's bench without TRL: what it counts, what its parts say, and that both ways do the same work."""

import sys
from pathlib import Path

import pytest

from babylon_rl.bench import environments, trl_environment
from babylon_rl.bench.pairs import Compared, Limit
from babylon_rl.bench.trainer import (
    OURS,
    THEIRS,
    Case,
    Workload,
    gradient_difference,
    loss_step,
    made_answers,
    perturbed_policy,
    recorded,
    trainable,
)
from babylon_rl.bench.utilisation import SHAPES, make_random_model, measure_utilisation, operations, plain_step
from babylon_rl.errors import BabylonError, SettingsError


def case(ours: list[float], theirs: list[float], difference: float = 0.0) -> Case:
    seconds = {OURS: ours, THEIRS: theirs}
    compared = Compared(title="", rows=10, seconds=seconds, limits=[Limit(of=OURS, against=THEIRS, least=1.5)])
    return Case(
        workload="group",
        answers=2,
        useful=10,
        computed=30,
        padded=60,
        compared=compared,
        processor=seconds,
        difference=difference,
        most_difference=1e-4,
    )


def test_a_case_is_reached_by_its_median_pair_and_an_equal_gradient():
    assert case([1, 1, 1], [1.4, 1.6, 1.7]).reached
    assert not case([1, 1, 1], [1.4, 1.4, 1.7]).reached
    assert not case([1], [9], difference=2e-4).reached
    found = case([2.0], [4.0]).as_json()
    assert (found["ratio"], found["useful_tokens_a_second"][OURS], found["answers_a_second"][THEIRS]) == (2, 5, 0.5)


def test_useful_computed_and_padded_tokens_are_counted_alike_for_both_ways():
    answers = made_answers(0, 8, 300, 60, 16, 49_152)
    work = Workload(name="", answers=answers, advantages=[0.0] * 8, logprobs=[[0.0] * 16] * 8)
    # The last token of an answer predicts nothing.
    assert (work.useful, work.computed, work.padded) == (8 * 16, 300 + 8 * (60 + 15), 8 * (300 + 60 + 16))


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    make_random_model(SHAPES["test"], folder, 0)
    return folder


def test_the_packed_step_has_the_loss_and_gradient_of_the_plain_loop(random_model: Path, tmp_path: Path):
    from safetensors.torch import save_file

    policy = perturbed_policy(random_model, "cpu", None, 1, 0)
    work = recorded(policy, "", made_answers(0, 4, 40, 7, 9, 2_000), 0)
    loss = plain_step(policy, work)
    named = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.requires_grad}
    save_file(named, tmp_path / "plain.safetensors")
    assert loss_step(policy, work) == pytest.approx(loss, rel=1e-4)
    assert 0 < gradient_difference(policy, tmp_path / "plain.safetensors") <= 1e-4
    for parameter in trainable(policy):
        parameter.grad *= 1.01
    assert gradient_difference(policy, tmp_path / "plain.safetensors") == pytest.approx(0.01, rel=0.05)


def test_operations_count_two_a_weight_and_token_each_way(random_model: Path):
    policy = perturbed_policy(random_model, "cpu", None, 1, 0)
    weights = sum(
        p.numel()
        for name, p in policy.model.get_base_model().model.layers.named_parameters()
        if "base_layer.weight" in name or ("proj.weight" in name)
    )
    head = policy.model.get_output_embeddings().weight.numel()
    # Two layers forward and one backward; the head both ways.
    assert operations(policy, 5, 3, 1) == pytest.approx(2 * 5 * weights * 1.5 + 4 * 3 * head)


def test_a_shape_that_there_is_none_of_is_refused():
    with pytest.raises(SettingsError, match="0.5b, 1.5b"):
        measure_utilisation("7b", "cpu", None, 1, 1, 0, print)


def test_torch_is_installed_before_trl_and_without_the_name_of_a_build():
    first, then = trl_environment.requirements()
    assert len(first) == 1 and first[0].startswith("torch==") and "+" not in first[0]
    assert then[0] == trl_environment.TRL and first[0] in then


def test_what_pip_said_is_in_the_error():
    with pytest.raises(SettingsError, match="no such index.*PIP_INDEX_URL"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('no such index')"], "trl", "2 GB")


def test_a_process_that_ends_says_why(tmp_path: Path):
    with pytest.raises(BabylonError, match="missing.json"):
        with trl_environment.trl_process(Path(sys.executable), tmp_path / "missing.json", 1):
            pass
