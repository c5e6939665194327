"""Jobs: one per human task, named after it."""

import dagster as dg

from babylon_rl.defs.partitions import HOURS

DATA_ASSETS = ("windows", "market_outcomes", "scored_trajectories", "art_groups")

materialize_windows = dg.define_asset_job(
    "materialize_windows",
    selection=list(DATA_ASSETS),
    partitions_def=HOURS,
    description="From recorded runs to the group that will be trained, for a window or a range.",
)

train_and_evaluate = dg.define_asset_job(
    "train_and_evaluate",
    selection=["trained_checkpoints", "checkpoint_evaluations"],
    partitions_def=HOURS,
    description="The updates and comparisons that are due in a window or a range.",
)
