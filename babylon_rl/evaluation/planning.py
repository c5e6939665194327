"""The plan of an experiment, made before it starts: what is compared, for how long, and what that can find."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import EmptyWindowError, SettingsError
from babylon_rl.evaluation.arms import Metric
from babylon_rl.evaluation.experiments import (
    RUNNING,
    Experiment,
    candidates_tried,
    check_arms,
    check_design,
    next_id,
    save_experiment,
)
from babylon_rl.evaluation.guardrails import Limits
from babylon_rl.evaluation.noise import Plan, measure_noise
from babylon_rl.evaluation.observations import by_hour, past_agents
from babylon_rl.evaluation.power import MOST_HOURS, PATHS, WEEK, Forecast, forecast
from babylon_rl.evaluation.sequential import LEAST_BLOCKS, deflated_alpha
from babylon_rl.serving.routing import Design
from babylon_rl.settings import Settings
from babylon_rl.windows import parse_window_id, shift_window, window_of

# The candidate is loaded and attested before its first window; one that is nearer than this is left to the baseline.
LEAD = timedelta(minutes=2)
SAMPLE_RATIO_ALPHA = 0.01


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for. `share`: 0 to 1; `effect`: in the metric's unit; `hours`: how long at most.

    `baseline` None: what is promoted. `effect` None: what the hours can find; `hours` None: what the effect needs, or a
    week. `metric` None: reward where past windows have the current scorer's, else P&L over capital. `seed` None: the
    experiment's number.
    """

    candidate: str
    baseline: str | None = None
    share: float = 0.5
    design: Design = "paired-by-window"
    effect: float | None = None
    hours: int | None = None
    metric: Metric | None = None
    seed: int | None = None


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment as it would start. `forecast`: None where there are too few past windows, which `unknown` says."""

    experiment: Experiment
    forecast: Forecast | None
    unknown: str | None


def plan(
    connection: psycopg.Connection, asked: Asked, who: str, settings: Settings, now: datetime, paths: int = PATHS
) -> Planned:
    """The experiment that is asked for, with its forecast; nothing is stored.

    ServingError, TrainingError where the two checkpoints cannot be compared; SettingsError where design, share, effect
    and hours do not go together, or the effect is too small to be found in half a year.
    """
    block, burn_in = settings.experiment_block_hours, settings.experiment_burn_in
    check_design(asked.design, asked.share, block, burn_in)
    if not who.strip():
        raise SettingsError("An experiment is kept with who started it. Give a name.")
    candidate, baseline = check_arms(connection, asked.candidate, asked.baseline)
    tried = candidates_tried(connection, baseline.checkpoint_id) + 1
    experiment_id = next_id(connection)
    seed = int(experiment_id[1:]) if asked.seed is None else asked.seed
    agents = past_agents(connection, window_of(now), settings.scorer)
    metric = asked.metric or ("reward" if any(one.reward is not None for one in agents) else "return")
    power = Plan(design=asked.design, block_hours=block, burn_in=burn_in, alpha=settings.experiment_alpha, tried=tried)
    known, unknown = None, None
    try:
        noise = measure_noise(by_hour(agents, metric), power, seed)
        known = forecast(noise, power, asked.effect, seed, paths)
    except EmptyWindowError as error:
        unknown = str(error)
    horizon = _horizon(asked, power, known, unknown)
    effect = asked.effect
    if effect is None and known is not None:
        effect = known.detectable.get(horizon)
    experiment = Experiment(
        experiment_id=experiment_id,
        candidate=candidate.checkpoint_id,
        baseline=baseline.checkpoint_id,
        design=asked.design,
        share=asked.share,
        seed=seed,
        first_window=first_window(now),
        horizon=horizon,
        settings=_declared(settings, metric, tried, effect),
        forecast={"unknown": unknown} if known is None else msgspec.to_builtins(known),
        tried=tried,
        state=RUNNING,
        reason="it runs",
        who=who,
    )
    return Planned(experiment=experiment, forecast=known, unknown=unknown)


def start(connection: psycopg.Connection, planned: Planned, now: datetime | None = None) -> Experiment:
    """Start what was planned, in the caller's transaction.

    What may have changed since is looked at again; where its hour has begun meanwhile it starts with the next one.
    """
    moment = now or datetime.now(UTC)
    wanted = planned.experiment
    check_arms(connection, wanted.candidate, wanted.baseline)
    return save_experiment(
        connection, msgspec.structs.replace(wanted, first_window=max(wanted.first_window, first_window(moment)))
    )


def first_window(now: datetime) -> str:
    """The first window of an experiment that is started now: the next hour's that leaves time to load the candidate."""
    following = shift_window(window_of(now), 1)
    return following if parse_window_id(following) - now >= LEAD else shift_window(following, 1)


def share_of(told: float) -> float:
    """A share as a person writes it, as 0 to 1: 50 and 0.5 are half. From 1 on it is a percentage."""
    if not math.isfinite(told) or not 0 < told < 100:
        raise SettingsError(f"A share of {told:g} leaves an arm without agents. Write 50 for half of the agents.")
    return told / 100 if told >= 1 else told


def _declared(settings: Settings, metric: Metric, tried: int, effect: float | None) -> dict[str, Any]:
    """What is fixed before the start, so that nobody chooses it by the result."""
    return {
        "metric": metric,
        "scorer": settings.scorer,
        "alpha": deflated_alpha(settings.experiment_alpha, tried),
        "alpha_family": settings.experiment_alpha,
        "alpha_harm": settings.experiment_alpha,
        "sample_ratio_alpha": SAMPLE_RATIO_ALPHA,
        "block_hours": settings.experiment_block_hours,
        "burn_in_hours": settings.experiment_burn_in,
        "effect": effect,
        "guardrails": msgspec.to_builtins(Limits.of(settings)),
    }


def _horizon(asked: Asked, power: Plan, known: Forecast | None, unknown: str | None) -> int:
    """Windows at most, whole observations of them."""
    one = power.hours_an_observation
    if asked.hours is not None:
        least = LEAST_BLOCKS * one
        if not least <= asked.hours <= MOST_HOURS:
            raise SettingsError(
                f"An experiment of {asked.hours} hours can show nothing: it takes {LEAST_BLOCKS} observations of {one} "
                f"hours each, so {least} to {MOST_HOURS} hours (BABYLON_RL_EXPERIMENT_BLOCK_HOURS)."
            )
        hours = asked.hours
    elif known is None:
        raise SettingsError(f"{unknown} Or say yourself for how many hours it shall run at most: --hours 168.")
    elif asked.effect is None:
        hours = max(WEEK, LEAST_BLOCKS * one)
    elif known.hours is None:
        week = known.detectable.get(WEEK)
        found = "" if week is None else f" A week finds {week:.3g} or more."
        raise SettingsError(
            f"An effect of {asked.effect:g} is not found within {MOST_HOURS} hours.{found} Look for a larger one, or "
            "have more agents play."
        )
    else:
        hours = known.hours
    return math.ceil(hours / one) * one
