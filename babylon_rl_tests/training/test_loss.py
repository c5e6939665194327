"""The weighted supervised loss, and the effective sample size of importance ratios."""

import math
from pathlib import Path

import msgspec
import pytest
import torch

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import Snapshot, make_snapshot
from babylon_rl.groups.trained_view import Decision, Member
from babylon_rl.training.backends.torch.balance import Balance
from babylon_rl.training.backends.torch.loss import EffectiveSize, Minibatch
from babylon_rl.training.backends.torch.rows import Row, RowMaker, trajectories_of
from babylon_rl.training.backends.torch.stored_rows import read_rows, store_rows
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl.training.recipe import Recipe
from babylon_rl_tests.training.batches import sampled_groups, update_on, valued

RECIPE = Recipe(windows_per_update=3, minibatches=1, lora_layers=1, advantages="leave_one_out", balanced_answers=None)


@pytest.fixture(scope="module")
def drawn(tiny: Path) -> Snapshot:
    use_threads(1)
    return make_snapshot(sampled_groups(Policy(tiny), 3), "run", RECIPE.as_json(), 0)


def with_members(snapshot: Snapshot, change) -> Snapshot:
    groups = [
        msgspec.structs.replace(group, members=[change(member) for member in group.members])
        for group in snapshot.groups
    ]
    return msgspec.structs.replace(snapshot, groups=tuple(groups))


def text_alone(decision: Decision) -> Decision:
    return msgspec.structs.replace(
        decision, token_ids=[], logprobs=[], prompt_token_ids=[], choices=None, temperature=0.7
    )


def imitated(member: Member) -> Member:
    return msgspec.structs.replace(
        member, loss="weighted_supervised", label="no_logprobs", decisions=[text_alone(d) for d in member.decisions]
    )


def rows_of(policy: Policy, snapshot: Snapshot, folder: Path) -> tuple[list[Row], object]:
    folder.mkdir()
    maker = RowMaker(policy.chat, policy.context, None)
    stored = store_rows(snapshot.groups, len(snapshot.groups), 1, maker, folder)
    return read_rows(stored.minibatches[0]), stored.scale


@pytest.mark.parametrize("name", ["cispo", "ppo"])
def test_the_supervised_loss_is_the_weighted_log_probability_of_what_did_better(policy, drawn, tmp_path, name):
    policy.add_fresh_adapter(RECIPE, 0)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    rows, _ = rows_of(policy, with_members(drawn, imitated), tmp_path / "rows")
    better = [member for group in drawn.groups for member in group.members if member.advantage > 0]
    assert sorted(row.advantage for row in rows) == sorted(member.advantage for member in better)
    assert {(row.kind, row.answer.temperature) for row in rows} == {("imitated", 1.0)}

    _, scale = rows_of(policy, with_members(drawn, imitated), tmp_path / "again")
    minibatch = Minibatch(policy, msgspec.structs.replace(RECIPE, loss=name), scale, Balance(parameters, 0.0))
    metrics = minibatch.backward(rows)
    gradient = [p.grad.clone() for p in parameters]
    policy.model.zero_grad()
    mean = math.fsum(row.advantage for row in rows) / len(rows)
    tokens = math.fsum(len(row.answer.tokens) for row in rows) / len(rows)
    total = 0.0
    for members, results in policy.evaluate([row.answer for row in rows]):
        for place, result in zip(members, results, strict=True):
            # Every answer counts once; on average a token has weight 1 and the batch an absolute advantage of 1.
            share = rows[place].advantage / mean * tokens / len(result.logprobs)
            total = total - share * result.logprobs.sum() / len(rows)
    total.backward()
    for mine, parameter in zip(gradient, parameters, strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-3, atol=1e-6)
    assert "ratio" not in metrics and "ess" not in metrics


def test_a_batch_of_texts_alone_trains_and_raises_their_probability(tiny, drawn, tmp_path):
    snapshot = with_members(drawn, imitated)
    recipe = msgspec.structs.replace(RECIPE, epochs=4, learning_rate=3e-3)
    made = update_on(snapshot, recipe, tiny, tmp_path / "work")
    losses = [step["loss"] for step in made.steps]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert "ess" not in made.metrics


def test_a_text_that_did_not_better_is_no_row_and_a_mixed_batch_keeps_its_tokens_apart(policy, drawn, tmp_path):
    def every_second(member: Member) -> Member:
        return imitated(member) if int(member.agent_id[-1]) % 2 else member

    rows, scale = rows_of(policy, with_members(drawn, every_second), tmp_path / "rows")
    assert {row.kind for row in rows} == {"drawn", "imitated"}
    assert all(row.advantage > 0 for row in rows if row.kind == "imitated")
    assert any(row.advantage < 0 for row in rows if row.kind == "drawn")
    weighed = [row.weight * scale.weight for row in rows for _ in row.answer.tokens]
    assert math.fsum(weighed) / len(weighed) == pytest.approx(1)


def test_decisions_of_a_text_have_their_own_advantage_over_their_number(drawn):
    member = imitated(drawn.groups[0].members[0])
    member = msgspec.structs.replace(member, decisions=member.decisions * 2, decision_advantages=[0.5, -0.1])
    assert trajectories_of(member) == [([member.decisions[0]], 0.25)]


# --- Effective sample size ---


def test_the_effective_sample_size_is_that_of_the_ratios_also_where_they_overflow():
    ratios = [0.5, 1.0, 3.0]
    found = EffectiveSize()
    found.add([math.log(ratio) + 1000 for ratio in ratios])
    assert found.share == pytest.approx(sum(ratios) ** 2 / (3 * sum(ratio**2 for ratio in ratios)))
    first, second = EffectiveSize(), EffectiveSize()
    first.add([math.log(0.5), math.log(1.0)])
    second.add([math.log(3.0)])
    assert first.joined(second).share == pytest.approx(found.share)
    assert EffectiveSize().joined(first).share == pytest.approx(first.share)
    assert EffectiveSize(first.state).share == first.share
    assert EffectiveSize().share is None


def stale(member: Member) -> Member:
    """Drawn by a policy that would hardly have given one of the answers."""
    (decision,) = member.decisions
    if member.trajectory_id == "trajectory-0000":
        decision = msgspec.structs.replace(decision, logprobs=[p - 8 for p in decision.logprobs])
    return msgspec.structs.replace(member, label="stale", decisions=[decision])


def test_a_batch_that_few_answers_would_decide_is_refused_before_its_first_step(tiny, drawn, tmp_path):
    steps: list[dict] = []
    with pytest.raises(TrainingError, match="effective sample size is 0.04"):
        update_on(with_members(drawn, stale), RECIPE, tiny, tmp_path / "a", report=steps.append)
    assert steps == []
    admitted = msgspec.structs.replace(RECIPE, ess_floor=0.01)
    made = update_on(with_members(drawn, stale), admitted, tiny, tmp_path / "b")
    assert made.metrics["ess"] == pytest.approx(1 / 24, rel=0.05)


def test_on_policy_the_size_is_that_of_the_first_epoch_and_about_one(tiny, drawn, tmp_path):
    recipe = msgspec.structs.replace(RECIPE, epochs=2)
    made = update_on(drawn, recipe, tiny, tmp_path / "a")
    measured = update_on(drawn, msgspec.structs.replace(recipe, ess_floor=0.1), tiny, tmp_path / "b")
    assert made.metrics["ess"] == pytest.approx(measured.metrics["ess"], rel=1e-6)
    assert 0.9 < made.metrics["ess"] <= 1
    assert ["ess" in step for step in made.steps] == [True, False]


def test_where_all_actions_are_trained_there_is_no_effective_sample_size(tiny, policy, tmp_path):
    recipe = Recipe(windows_per_update=2, minibatches=1, lora_layers=1, ess_floor=0.5)
    groups = valued(sampled_groups(policy, 2), lambda d: [1, -1, 0] if "ACME" in d.response else [-1, 1, 0])
    made = update_on(make_snapshot(groups, "run", recipe.as_json(), 0), recipe, tiny, tmp_path / "work")
    assert "ess" not in made.metrics and "ratio" in made.metrics
