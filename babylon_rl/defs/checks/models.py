"""Checks on the model assets: what was trained on, what came out of it, and whether both still stand."""

from babylon_rl.defs.checks.results import Check, all_windows_computed, checks_of, in_ours, rows_are_current
from babylon_rl.evaluation.replay import checkpoints_that_saw
from babylon_rl.training.verification import altered_snapshots, altered_weights

trained_checkpoints_checks = checks_of(
    "trained_checkpoints",
    Check(
        "snapshot_rebuilds",
        "The snapshots of the updates rebuild, through their types, to the digest that is their id.",
        in_ours(altered_snapshots),
        "The snapshot's row was changed or deleted: its checkpoint cannot be traced. Restore babylon_rl.snapshots from "
        "a backup, or train the update again from its art_groups.",
        corruption=True,
    ),
    Check(
        "weights_match",
        "The weights of the updates' checkpoints are there and have the hash that was booked.",
        in_ours(altered_weights),
        "Do not serve these checkpoints. Restore their folders from a backup, or delete them and train the updates "
        "again.",
        corruption=True,
    ),
    all_windows_computed("trained_checkpoints"),
    rows_are_current("trained_checkpoints"),
)

checkpoint_evaluations_checks = checks_of(
    "checkpoint_evaluations",
    all_windows_computed("checkpoint_evaluations"),
    rows_are_current("checkpoint_evaluations"),
)

market_evaluations_checks = checks_of(
    "market_evaluations",
    all_windows_computed("market_evaluations"),
    rows_are_current("market_evaluations"),
)

replay_evaluations_checks = checks_of(
    "replay_evaluations",
    Check(
        "windows_are_later",
        "No checkpoint was asked about a window at or before the end of its training, or within the embargo after it.",
        in_ours(checkpoints_that_saw),
        "Use none of these comparisons: the checkpoint was told what it was asked. Materialize replay_evaluations for "
        "these windows, which leaves it out.",
        corruption=True,
    ),
    all_windows_computed("replay_evaluations"),
    rows_are_current("replay_evaluations"),
)

online_evaluations_checks = checks_of(
    "online_evaluations",
    all_windows_computed("online_evaluations"),
    rows_are_current("online_evaluations"),
)
