"""What a hosted service is sent of a snapshot, what that costs by estimate, and what it cannot be asked for.

Nothing but the trained text leaves the house: the messages of each decision, the sampled tokens with their
log-probabilities, and the advantage. No names of agents, windows or checkpoints, no rewards and no goals beyond what
stands in the messages. The model there has the run's name.
"""

import hashlib
import math
import re
from typing import Any, NamedTuple

import msgspec

from babylon_rl.errors import TrainingError
from babylon_rl.groups.admitting import drawn_otherwise
from babylon_rl.groups.advantages import LEAVE_ONE_OUT
from babylon_rl.groups.art_types import batch_to_art
from babylon_rl.groups.snapshots import Snapshot
from babylon_rl.groups.trained_view import Member, VerbatimError, check_numbers
from babylon_rl.settings import Settings, without_user
from babylon_rl.training.recipe import Recipe

LONGEST_NAME = 100  # W&B takes 128 characters


class Submission(NamedTuple):
    """Groups as ART sends them, the settings of the loss, and how much it is."""

    groups: list[Any]
    config: dict[str, Any]
    windows: int
    trajectories: int
    tokens: int


def prepare_submission(snapshot: Snapshot, recipe: Recipe) -> Submission:
    """The snapshot as it is sent. TrainingError where the service could not train it as it is meant."""
    refuse_recipe(recipe)
    members = [member for group in snapshot.groups for member in group.members]
    for member in members:
        _check(member)
    groups = [group for group in batch_to_art(snapshot.groups) if _differ([t.reward for t in group.trajectories])]
    if not groups:
        raise TrainingError(
            "Nothing in the snapshot is trainable: the advantages of each window are equal. Nothing was sent. Record "
            "more windows, or with more exploration where every agent does the same."
        )
    for group in groups:
        _strip(group)
    tokens = sum(len(d.prompt_token_ids) + len(d.token_ids) for member in members for d in member.decisions)
    return Submission(groups, loss_config(recipe), len(snapshot.groups), len(members), tokens)


def model_name(training_run: str) -> str:
    """Name of the run's model at the service.

    There it also names an artifact, so it has letters, digits, `-`, `_` and `.` alone: `:` begins a version, and
    windows have one. A name that had to be changed ends with a digest, so that no two runs have one model.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", training_run)
    if name == training_run and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(training_run.encode()).hexdigest()[:8]}"


def refuse_recipe(recipe: Recipe) -> None:
    """TrainingError where the recipe asks for what the service does not do; it would be left out without a word."""
    wrong = {
        f'advantages="{recipe.advantages}"': recipe.advantages != LEAVE_ONE_OUT,
        "balanced_answers": recipe.balanced_answers is not None,
        "entropy_coefficient": recipe.entropy_coefficient != 0,
        "epochs": recipe.epochs != 1,
        "ess_floor": recipe.ess_floor is not msgspec.UNSET,
    }
    if any(wrong.values()):
        raise TrainingError(
            f"The hosted service cannot train with {', '.join(name for name, is_so in wrong.items() if is_so)}: it "
            "takes sampled answers with their log-probabilities, one advantage each, in one pass. Nothing was sent. "
            "Start a run with TRAINING_BACKEND=wandb, whose settings are made for it, or use TRAINING_BACKEND=torch."
        )


def loss_config(recipe: Recipe) -> dict[str, Any]:
    """ART's settings of the loss. Advantages are given as they are to be used, so nothing rescales them."""
    return {
        "learning_rate": recipe.learning_rate,
        "ppo": recipe.loss == "ppo",
        "scale_rewards": False,
        "importance_sampling_level": "token",
        "precalculate_logprobs": False,
    }


def _check(member: Member) -> None:
    """TrainingError unless every answer has the log-probability of each token, and every number is finite."""
    if member.loss == "weighted_supervised" or member.action_advantages is not None:
        raise TrainingError(
            f"Trajectory {member.trajectory_id} cannot be trained by the hosted service, which takes sampled answers "
            "with their log-probabilities only. Nothing was sent. Leave it out (BABYLON_RL_ADMIT), or use "
            "TRAINING_BACKEND=torch."
        )
    own = member.decision_advantages if isinstance(member.decision_advantages, list) else []
    if not all(map(math.isfinite, (member.advantage, member.reward, *own))):
        raise TrainingError(f"Trajectory {member.trajectory_id} has a reward or advantage that is no number.")
    for decision in member.decisions:
        if not decision.token_ids:
            raise VerbatimError(f"Call {decision.call_id} has no sampled tokens; leave its trajectory out.")
        if wrong := drawn_otherwise(decision):
            raise TrainingError(
                f"Call {decision.call_id} {wrong}, and the hosted service computes probabilities over all tokens at "
                "temperature 1. Nothing was sent. Use TRAINING_BACKEND=torch, which evaluates answers as they were "
                "drawn."
            )
        check_numbers(decision)


def _differ(rewards: list[float]) -> bool:
    """Whether a group's rewards differ by more than rounding, which ART would blow up to a full advantage."""
    return max(rewards) - min(rewards) > 1e-9 * max(map(abs, rewards))


def _strip(group: Any) -> None:
    """Take off what is not trained on."""
    group.metadata, group.metrics, group.logs = {}, {}, []
    for trajectory in group.trajectories:
        trajectory.metadata, trajectory.metrics, trajectory.logs = {}, {}, []


# --- cost ------------------------------------------------------------------------------------------


def estimate(tokens: int, settings: Settings) -> float:
    """Dollars that training on so many tokens costs, by BABYLON_RL_TRAINING_PRICE."""
    return tokens / 1e6 * settings.training_price


def cents(dollars: float) -> str:
    """The least limit in whole cents that the dollars are within."""
    rounded = round(dollars, 2)
    return f"{rounded if rounded >= dollars else rounded + 0.01:.2f}"


def cost_refused(submission: Submission, settings: Settings) -> str | None:
    """Why the submission is not sent, with what and how much it is; None where its cost was agreed to."""
    dollars = estimate(submission.tokens, settings)
    if settings.max_cost is not None and dollars <= settings.max_cost:
        return None
    limit = "no limit is set" if settings.max_cost is None else f"the limit is ${settings.max_cost:.2f}"
    return (
        f"Nothing was sent: {submission.windows} windows with {submission.trajectories} trajectories and "
        f"{submission.tokens:,} tokens would leave this machine for {without_user(settings.wandb_training_url)} (the "
        f"agents' prompts and answers, their tokens' log-probabilities, an advantage each), for about ${dollars:.2f} "
        f"by BABYLON_RL_TRAINING_PRICE, and {limit}. Agree with --max-cost {cents(dollars)} or BABYLON_RL_MAX_COST, "
        "or train here with TRAINING_BACKEND=torch."
    )
