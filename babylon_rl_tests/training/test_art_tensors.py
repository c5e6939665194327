"""What reaches the loss is what ART's own tokenizing and packing would hand to it."""

from pathlib import Path

import msgspec
import pytest

from babylon_rl.groups.art_types import batch_to_art
from babylon_rl.groups.snapshots import Snapshot, make_snapshot
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.backends.torch.balance import Balance
from babylon_rl.training.backends.torch.loss import Minibatch
from babylon_rl.training.backends.torch.rows import RowMaker
from babylon_rl.training.backends.torch.stored_rows import read_rows, store_rows
from babylon_rl.training.chat_tokens import for_art
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe
from babylon_rl_tests.training.batches import in_pairs, sampled_groups, valued

ALL_ACTIONS = Recipe(windows_per_update=3, minibatches=2, policy_exponent=1.0)
DRAWN = msgspec.structs.replace(ALL_ACTIONS, advantages="leave_one_out")


def batches(policy: Policy) -> dict[str, tuple[Recipe, list[Group]]]:
    groups = sampled_groups(policy, 3)
    return {
        "drawn": (DRAWN, groups),
        "centred by action": (msgspec.structs.replace(DRAWN, advantages="leave_one_out_action_centred"), groups),
        "several decisions": (DRAWN, [in_pairs(group, apart=False) for group in groups]),
        "decisions with their own": (DRAWN, [in_pairs(group, apart=True) for group in groups]),
        "all actions": (ALL_ACTIONS, valued(groups, lambda d: [1, -1, 0] if "ACME" in d.response else [-1, 1, 0])),
    }


Found = dict[tuple[int, ...], tuple[list[bool], list[float], list[float]]]


def of_art(policy: Policy, snapshot: Snapshot) -> Found:
    """Mask, weight * advantage and old log-probabilities of each row by its tokens, as ART makes them."""
    from art.preprocessing.pack import packed_tensors_from_tokenized_results
    from art.preprocessing.tokenize import tokenize_trajectory_groups

    groups = batch_to_art(snapshot.groups, policy.chat.answer)
    results = list(tokenize_trajectory_groups(for_art(policy.tokenizer), groups, False, False))
    longest = max(len(result.token_ids) for result in results)
    packed = packed_tensors_from_tokenized_results(results, longest, pack_results=False)
    weighed = packed["weights"] * packed["advantages"]
    columns = (packed[name].tolist() for name in ("tokens", "assistant_mask", "logprobs"))
    found: Found = {}
    for tokens, mask, logprobs, share in zip(*columns, weighed.tolist(), strict=True):
        end = len(mask) - mask[::-1].index(True)
        found[tuple(tokens[:end])] = (mask[:end], share[:end], [p for p, m in zip(logprobs, mask, strict=True) if m])
    assert len(found) == len(results), "rows of one batch differ, so that they are told apart by their tokens"
    return found


def of_ours(policy: Policy, snapshot: Snapshot, recipe: Recipe, folder: Path) -> Found:
    import torch

    folder.mkdir()
    maker = RowMaker(policy.chat, policy.context, None)
    stored = store_rows(snapshot.groups, len(snapshot.groups), recipe.minibatches, maker, folder)
    minibatch = Minibatch(policy, recipe, stored.scale, Balance([], 0.0))
    found: Found = {}
    for file in stored.minibatches:
        rows = read_rows(file)
        tensors = minibatch.tensors_of(rows, [torch.zeros(len(row.answer.tokens)) for row in rows])
        shares = tensors["weights"] * tensors["advantages"]
        for place, row in enumerate(rows):
            before = len(row.answer.prompt) - 1  # the tensors begin with the prompt's last token
            end = 1 + len(row.answer.tokens)
            mask = [False] * before + tensors["assistant_mask"][place, :end].tolist()
            share = [0.0] * before + shares[place, :end].tolist()
            old = tensors["logprobs"][place][tensors["assistant_mask"][place]].tolist()
            found[tuple(row.answer.prompt + row.answer.tokens)] = (mask, share, old)
    return found


@pytest.mark.parametrize("name", ["drawn", "centred by action", "several decisions", "decisions with their own",
                                  "all actions"])  # fmt: skip
def test_rows_masks_shares_and_old_logprobs_are_arts(policy: Policy, tmp_path: Path, name: str):
    recipe, groups = batches(policy)[name]
    snapshot = make_snapshot(groups, "run", recipe.as_json(), 0)
    art, ours = of_art(policy, snapshot), of_ours(policy, snapshot, recipe, tmp_path / "rows")
    assert set(ours) <= set(art)
    for tokens, (mask, share, old) in art.items():
        if tokens not in ours:  # ART's mean is not exactly 0, and so nothing of it is
            assert share == pytest.approx([0.0] * len(share), abs=1e-6)
            continue
        own_mask, own_share, own_old = ours[tokens]
        assert own_mask == mask
        assert own_share == pytest.approx(share, rel=1e-5, abs=1e-6)
        assert own_old == pytest.approx(old, rel=1e-6, abs=1e-9)
