"""The `torch` backend: ART's `LocalBackend` with our `ModelService`.

ART keeps its tokenizing, advantages, weights, loss, step counting and checkpoint layout; see `service` for the step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.art_types import batch_to_art
from babylon_rl.groups.snapshots import Snapshot, minibatch_of
from babylon_rl.groups.trained_view import Decision
from babylon_rl.training.admission import CONTROL_TOKENS, PROMPT_TOO_LONG, has_control_tokens, is_too_long
from babylon_rl.training.chat_tokens import for_art
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.service import OPTIMIZER_FILE, RowPlan, TorchService

PROJECT = "babylon_rl"


class Update(msgspec.Struct, frozen=True):
    """What ART returned: the folder of the new checkpoint, and the metrics averaged over the steps."""

    folder: Path
    metrics: dict[str, float]


def row_plans(snapshot: Snapshot, policy: Policy) -> list[tuple[list[int], RowPlan]]:
    """For each answer of the snapshot: its tokens (prompt, then answer), and what ART's tensors do not carry."""
    shares = minibatch_of(snapshot.groups, int(snapshot.settings.get("minibatches", 1)))
    plans = []
    for group, minibatch in zip(snapshot.groups, shares, strict=True):
        for member in group.members:
            for decision in member.decisions:
                _check(decision, policy)
                choices = decision.choices and [policy.chat.answer(text) for text in decision.choices]
                pair = opposite_tokens(decision.choices or [], choices or [], snapshot.settings.get("balanced_answers"))
                every = member.action_advantages is not None
                plan = RowPlan(len(decision.prompt_token_ids), choices, decision.temperature, minibatch, pair, every)
                answers = (choices or []) if every else [decision.token_ids]
                plans += [(decision.prompt_token_ids + tokens, plan) for tokens in answers]
    return plans


def opposite_tokens(texts: list[str], choices: list[list[int]], balanced: list[str] | None) -> tuple[int, int] | None:
    """First tokens of the two answers that are held in balance; None where the choices do not have exactly those."""
    firsts = [
        {tokens[0] for text, tokens in zip(texts, choices, strict=True) if text.split()[:1] == [word]}
        for word in balanced or ()
    ]
    if len(firsts) != 2 or any(len(first) != 1 for first in firsts) or firsts[0] == firsts[1]:
        return None
    return firsts[0].pop(), firsts[1].pop()


def _check(decision: Decision, policy: Policy) -> None:
    """TrainingError for what a snapshot leaves out: nothing is cut to fit, and no text becomes a control token."""
    if is_too_long(decision, policy.context):
        raise TrainingError(
            f"{PROMPT_TOO_LONG}: call {decision.call_id} has {len(decision.prompt_token_ids)} tokens of prompt and "
            f"{len(decision.token_ids)} of answer, and the model's context holds {policy.context}. Take a base model "
            "with a longer context, or leave the trajectory out."
        )
    if has_control_tokens(decision, policy.chat):
        raise TrainingError(
            f"{CONTROL_TOKENS}: in call {decision.call_id} text of a message was encoded as control tokens by the "
            "endpoint that it was recorded from. Leave the trajectory out, and play with `babylon-rl serve`."
        )


async def update(
    snapshot: Snapshot,
    recipe: Recipe,
    base_folder: Path,
    parent_folder: Path | None,
    parent_step: int,
    work: Path,
    device: str,
    report: Callable[[dict[str, float]], None],
) -> Update:
    """Train the snapshot on top of the parent (None: the base model) inside `work`, an empty folder.

    Deterministic on a CPU for a snapshot, parent and number of threads.
    """
    import random

    import art

    random.seed(snapshot.seed)  # ART shuffles and draws ids from the global state
    policy = Policy(base_folder, device)
    if parent_folder is None:
        policy.add_fresh_adapter(recipe, snapshot.seed)
    else:
        policy.add_adapter(parent_folder, trainable=True)
    backend = _local_backend(work, base_folder, policy)
    model = art.TrainableModel(
        name=snapshot.training_run, project=PROJECT, base_model=str(base_folder), base_path=str(work)
    )
    await backend.register(model)
    output = work / PROJECT / "models" / snapshot.training_run
    # ART counts steps by the folders that are there.
    (output / "checkpoints" / f"{parent_step:04d}").mkdir(parents=True, exist_ok=True)
    plans = row_plans(snapshot, policy)
    backend.service = TorchService(
        policy,
        recipe,
        plans,
        parent_step,
        parent_folder / OPTIMIZER_FILE if parent_folder else None,
        str(output),
        report,
    )
    longest = max(len(tokens) for tokens, _ in plans)
    result = await backend.train(
        model,
        batch_to_art(snapshot.groups, policy.chat.answer),
        learning_rate=recipe.learning_rate,
        loss_fn=recipe.loss,
        scale_rewards=False,
        packed_sequence_length=longest,
    )
    if result.step != parent_step + 1 or not result.metrics.get("choosing_tokens"):
        raise TrainingError("Nothing was trainable in the snapshot; the parent checkpoint stays.")
    return Update(output / "checkpoints" / f"{result.step:04d}", dict(result.metrics))


def _local_backend(work: Path, base_folder: Path, policy: Policy) -> Any:
    from art.local import LocalBackend

    class TorchBackend(LocalBackend):
        """`LocalBackend` whose service and tokens are ours; it packs to the longest row, not to multiples of 2048."""

        service: TorchService

        def __init__(self) -> None:
            super().__init__(in_process=True, path=str(work))
            self._packed_sequence_length_requires_chunk_alignment = False
            # By base model and configured chat template, of which there is none.
            self._tokenizers[str(base_folder), None] = for_art(policy.tokenizer)

        async def _get_service(self, model: Any) -> Any:
            return self.service

    return TorchBackend()
