"""Jobs: one per human task, named after it, with what it does, when to use it and what it asks for."""

import dagster as dg

from babylon_rl.defs.clean_up import clean
from babylon_rl.defs.partitions import HOURS
from babylon_rl.defs.promotion import go_back, promote

DATA_ASSETS = ("windows", "market_outcomes", "scored_trajectories", "judge_calibration", "art_groups")

# Without training: its sensor would hold the trainer's slot for each late row, and training takes whole batches.
materialize_windows = dg.define_asset_job(
    "materialize_windows",
    selection=list(DATA_ASSETS),
    partitions_def=HOURS,
    description=(
        "A window from its recorded runs to the group that will be trained: the five data assets. For a window after a "
        "fix, or a range after a change of the scorer; unchanged windows write nothing. No configuration."
    ),
)

train_checkpoint = dg.define_asset_job(
    "train_checkpoint",
    selection=["trained_checkpoints"],
    partitions_def=HOURS,
    description=(
        "The updates that are due in a window or a range, in order. For one that the sensor training_due gave up, or "
        "to train again on corrected groups, which starts a branch and leaves later checkpoints as they are. What is "
        "trained already is not trained again. No configuration; `babylon-rl train` starts training runs."
    ),
)

evaluate_checkpoint = dg.define_asset_job(
    "evaluate_checkpoint",
    selection=["checkpoint_evaluations"],
    partitions_def=HOURS,
    description=(
        "The comparisons of checkpoints whose evaluation ends in a window or a range, from the games recorded for it. "
        "After evaluation games were recorded or corrected. No configuration."
    ),
)


evaluate_in_market = dg.define_asset_job(
    "evaluate_in_market",
    selection=["market_evaluations"],
    partitions_def=HOURS,
    description=(
        "The checkpoints whose update ended in a window or a range play the simulated market, beside their base model, "
        "their parent, what is promoted and fixed policies. Before an experiment is worth its hours. Starts an "
        "endpoint and takes minutes; the same is not played twice. Configuration: hours and seed, with defaults."
    ),
)

evaluate_by_replay = dg.define_asset_job(
    "evaluate_by_replay",
    selection=["replay_evaluations"],
    partitions_def=HOURS,
    description=(
        "Checkpoints answer the recorded prompts of a window or a range again, valued at what the market then did: "
        "what is promoted, the experiment's candidate, the newest. Only windows later than all that one was trained "
        "on. Starts an endpoint. Configuration: further checkpoints, none by default."
    ),
)

evaluate_online = dg.define_asset_job(
    "evaluate_online",
    selection=["online_evaluations"],
    partitions_def=HOURS,
    description=(
        "What each checkpoint did in a window or a range that agents played with it: P&L, reward, legal actions, "
        "drawdown, latency. From recorded runs alone, in seconds; unchanged windows write nothing. No configuration."
    ),
)


@dg.job(
    description=(
        "Serves a checkpoint from now on and books who decided it and why. For a candidate whose evaluation says "
        "promote; going against the evaluation takes despite_evidence. Asks for checkpoint, who, why."
    )
)
def promote_checkpoint() -> None:
    promote()


@dg.job(
    description=(
        "Goes back to what was served before the promotion that stands now, or further with `to`, and books who "
        "decided it and why. For a checkpoint that does harm; its promotion and evidence stay on record. Asks for who "
        "and why."
    )
)
def roll_back() -> None:
    go_back()


@dg.job(
    description=(
        "Deletes old runs with their events, old ticks, and rows that were replaced long ago. For a storage that "
        "grows; says only what would go until dry_run is false. Kept: what runs, the latest materialization or failure "
        "of each partition, current rows, rows that a snapshot was made from. Asks for days, all with defaults."
    )
)
def clean_up() -> None:
    clean()
