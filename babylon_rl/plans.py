"""How large a demo is and with which recipe it trains, by base model; and the plan that a run was started with."""

import hashlib
from pathlib import Path

import msgspec

from babylon_rl.evaluation.schedule import schedule_of
from babylon_rl.training.base_models import TINY
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import TrainingRun


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Size of a demo: rounds of play and update, windows of each evaluation, the recipe, and the seed by default."""

    seed: int
    rounds: int
    validation: int
    test: int
    unseen: int
    agents: int
    recipe: Recipe


PLANS = {
    TINY: Plan(
        seed=1,
        rounds=3,
        validation=24,
        test=96,
        unseen=16,
        agents=4,
        recipe=Recipe(
            windows_per_update=96,
            minibatches=12,
            epochs=2,
            learning_rate=2e-3,
            decay_steps=72,
            policy_exponent=1.0,
            max_grad_norm=100,
            adam_betas=(0.9, 0.99),
            balance_rate=0.1,
            lora_layers=1,
        ),
    ),
    "smollm2-135m": Plan(seed=1, rounds=5, validation=24, test=64, unseen=48, agents=4, recipe=Recipe(decay_steps=40)),
}


def plan_of(base_model: str) -> Plan:
    """The plan for a base model; a folder gets that of SmolLM2."""
    return PLANS.get(base_model, PLANS["smollm2-135m"])


def plan_behind(run: TrainingRun) -> Plan | None:
    """The plan that the run was started with, with its own seed; None where it was started without one."""
    schedule = schedule_of(run)
    if schedule is None:
        return None
    return Plan(
        seed=run.seed,
        rounds=len(schedule.windows("train")) // run.recipe.windows_per_update,
        validation=len(schedule.windows("validation")),
        test=len(schedule.windows("test")),
        unseen=len(schedule.windows("unseen")),
        agents=schedule.agents,
        recipe=run.recipe,
    )


def plan_digest(plan: Plan) -> str:
    """SHA-256 of all that a plan says but its seed; one for runs that may be measured together."""
    said = msgspec.to_builtins(plan)
    del said["seed"]
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def demo_name(base_model: str, seed: int) -> str:
    """Name of the demo's training run."""
    return f"demo-{Path(base_model).name}-seed{seed}"
