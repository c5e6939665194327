"""Puts the parts together; nothing else."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from babylon_rl.defs.art_groups import art_groups
from babylon_rl.defs.checkpoint_evaluations import checkpoint_evaluations
from babylon_rl.defs.checks.data import data_checks
from babylon_rl.defs.checks.learning_is_steady import learning_is_steady
from babylon_rl.defs.checks.models import (
    checkpoint_evaluations_checks,
    market_evaluations_checks,
    online_evaluations_checks,
    replay_evaluations_checks,
    trained_checkpoints_checks,
)
from babylon_rl.defs.experiments import (
    experiment_watch,
    guard_what_is_served,
    look_at_experiments,
    served_watch,
)
from babylon_rl.defs.hourly_online_evaluation import hourly_online_evaluation
from babylon_rl.defs.hourly_window_sweep import hourly_window_sweep
from babylon_rl.defs.io_manager import PostgresIOManager
from babylon_rl.defs.jobs import (
    clean_up,
    evaluate_by_replay,
    evaluate_checkpoint,
    evaluate_in_market,
    evaluate_online,
    materialize_windows,
    promote_checkpoint,
    roll_back,
    train_checkpoint,
)
from babylon_rl.defs.judge_calibration import judge_calibration
from babylon_rl.defs.market_evaluations import market_evaluations
from babylon_rl.defs.market_outcomes import market_outcomes
from babylon_rl.defs.online_evaluations import online_evaluations
from babylon_rl.defs.replay_evaluations import replay_evaluations
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.defs.scored_trajectories import scored_trajectories
from babylon_rl.defs.staleness import staleness
from babylon_rl.defs.trained_checkpoints import trained_checkpoints
from babylon_rl.defs.training_due import training_due
from babylon_rl.defs.window_readiness import window_readiness
from babylon_rl.defs.windows import recorded_trajectories, windows


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions; a test or the loop puts its own resources in place of the default ones."""
    overrides = dict(resource_overrides or {})
    database = overrides.get("database", DatabaseResource())
    return dg.Definitions(
        assets=[
            recorded_trajectories,
            windows,
            market_outcomes,
            scored_trajectories,
            judge_calibration,
            art_groups,
            trained_checkpoints,
            checkpoint_evaluations,
            market_evaluations,
            replay_evaluations,
            online_evaluations,
        ],
        asset_checks=[
            *data_checks,
            trained_checkpoints_checks,
            learning_is_steady,
            checkpoint_evaluations_checks,
            market_evaluations_checks,
            replay_evaluations_checks,
            online_evaluations_checks,
        ],
        jobs=[
            materialize_windows,
            train_checkpoint,
            evaluate_checkpoint,
            evaluate_in_market,
            evaluate_by_replay,
            evaluate_online,
            promote_checkpoint,
            roll_back,
            clean_up,
            look_at_experiments,
            guard_what_is_served,
        ],
        sensors=[window_readiness, training_due, staleness, experiment_watch, served_watch],
        schedules=[hourly_window_sweep, hourly_online_evaluation],
        resources={
            "database": database,
            "postgres": PostgresIOManager(database=database),
            "trainer": dg.PipesSubprocessClient(),
            **overrides,
        },
        # A process of its own for each step costs seconds; training has one anyway.
        executor=dg.in_process_executor,
    )


defs = build_defs()
