"""Checks on the five data assets: expected states are warnings, corruption stops what comes after."""

from babylon_rl.defs.checks.results import Check, all_windows_computed, checks_of, in_ours, rows_are_current
from babylon_rl.groups.advantages import SPREAD_TOLERANCE
from babylon_rl.groups.verification import alarming, altered_groups, not_trainable
from babylon_rl.outcomes.windows import provisional
from babylon_rl.recording.accounting import not_ready, unaccounted
from babylon_rl.scoring.verification import not_finite, set_aside, without_spread

WINDOWS = (
    Check(
        "window_is_ready",
        "The hour is over and enough agents finished in it.",
        in_ours(not_ready),
        "Nothing, mostly: thin hours are no error, and late data bring another run. MIN_AGENTS_PER_WINDOW sets how "
        "many agents it takes; rejected_trajectories says why runs were not used.",
    ),
    Check(
        "trajectories_accounted_for",
        "Used and rejected rows together are what the database counts as recorded.",
        in_ours(unaccounted),
        "Rows went missing between the recording and its books: do not train on these windows. Materialize windows "
        "again; where it stays so, report it with the window's rows of trajectories and rejected_trajectories.",
        corruption=True,
    ),
    all_windows_computed("windows"),
)

MARKET_OUTCOMES = (
    Check(
        "outcomes_are_settled",
        "Prices of the closed hour and resolutions of its questions are final.",
        in_ours(provisional),
        "Wait until the questions resolve: the hourly sweep then materializes these windows again, and "
        "`babylon-rl outcomes sync` brings their outcomes at once. BABYLON_RL_OUTCOME_WAIT_HOURS is how long the "
        "readiness sensor waits before it takes a window as it is.",
    ),
    all_windows_computed("market_outcomes"),
)

SCORED_TRAJECTORIES = (
    Check(
        "rewards_have_spread",
        "The rewards of a window differ, so that agents can be told apart by them.",
        lambda recordings, window_ids: without_spread(recordings.ours, window_ids, SPREAD_TOLERANCE),
        "Nothing for single windows: they are left out of training. Where it is most of them, every agent does the "
        "same; play with more exploration.",
    ),
    Check(
        "rewards_are_finite",
        "Each reward is a finite number.",
        in_ours(not_finite),
        "Correct or reject the recording of these trajectories, then materialize the data assets of the windows again.",
        corruption=True,
    ),
    all_windows_computed("scored_trajectories"),
    rows_are_current("scored_trajectories"),
)

JUDGE_CALIBRATION = (
    Check(
        "judge_holds_its_floors",
        "No judge of these windows is set aside: each agrees with alpha and with itself as far as it must, or is "
        "unproven.",
        in_ours(set_aside),
        "Nothing must be done: the groups of these windows take the rewards of alpha. To use a judge, change its model "
        "or rubric (JUDGE_MODEL, BABYLON_RL_JUDGE_RUBRIC); the floors are BABYLON_RL_JUDGE_FLOOR and "
        "BABYLON_RL_JUDGE_REPEAT_FLOOR.",
    ),
    all_windows_computed("judge_calibration"),
    rows_are_current("judge_calibration"),
)

ART_GROUPS = (
    Check(
        "group_is_trainable",
        "The window is ready and its group has members with rewards that differ.",
        in_ours(not_trainable),
        "Nothing, mostly: such a window is left out of training. `left out` in the asset's metadata says who and why.",
    ),
    Check(
        "agents_act",
        "The window's agents do not all hold, pay more in fees than trading can earn, or answer with no action.",
        in_ours(alarming),
        "Nothing for single windows: they are trained on as they are. Where it is most of them, the policy collapses: "
        "`learning_is_steady` of trained_checkpoints says what the run does about it.",
    ),
    Check(
        "trained_text_is_recorded",
        "The stored groups match their digests and are the recorded calls byte for byte.",
        altered_groups,
        "The stored rows were changed: do not train on them. Materialize art_groups of these windows again, and find "
        "out who writes to babylon_rl.art_groups.",
        corruption=True,
    ),
    all_windows_computed("art_groups"),
    rows_are_current("art_groups"),
)

DATA_CHECKS: dict[str, tuple[Check, ...]] = {
    "windows": WINDOWS,
    "market_outcomes": MARKET_OUTCOMES,
    "scored_trajectories": SCORED_TRAJECTORIES,
    "judge_calibration": JUDGE_CALIBRATION,
    "art_groups": ART_GROUPS,
}
data_checks = [checks_of(asset, *checks) for asset, checks in DATA_CHECKS.items()]
