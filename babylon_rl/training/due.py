"""Which updates of runs without an end are due, and which attempt at one comes next: what the training sensor asks.

One statement over small columns a run; no group is read. Nothing is written here.
"""

import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import msgspec
import psycopg

from babylon_rl.training.alarm_log import alarms_before
from babylon_rl.training.ledger import held_jobs, what_to_do, windows_of_job
from babylon_rl.training.lineage import new_groups, state_before, updates_of
from babylon_rl.training.runs import Checkpoint, TrainingRun, open_runs, run_of_window
from babylon_rl.training.updates import gathered
from babylon_rl.windows import shift_window, window_of

# How long after a failed attempt the next one is made; after the last there is none.
WAITS = (timedelta(minutes=10), timedelta(minutes=40))
MOST_ATTEMPTS = len(WAITS) + 1


class DueUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An update to be made by computing `trained_checkpoints` from the first to the last window.

    `key`: one for the same groups on top of the same parent. It names the first update in the range only, so that
    groups that gather while that one fails do not make another of it. `said`: what it is, for a person. `held`: why it
    waits for a person, where its job is in doubt or failed at a service.
    """

    training_run: str
    first: str
    last: str
    key: str
    said: str
    held: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was started for an update. `last`: the last window it computed; `ended`: None while it goes on."""

    number: int
    run_id: str
    last: str
    state: str  # running | done | failed | cancelled
    ended: datetime | None


def due_updates(
    connection: psycopg.Connection, now: datetime, first_partition: str
) -> tuple[list[DueUpdate], list[str]]:
    """Updates that are due at `now`, one a run at most, and why each other open run has none."""
    due, others = [], []
    newer: list[str] = []  # first windows of the runs without an end that were started later
    closed = shift_window(window_of(now), -1)
    runs = open_runs(connection)
    if not runs:
        others.append("No training run without an end: `babylon-rl train --from WINDOW --follow` starts one.")
    for run in runs:
        # A window is the newest run's: what comes after the start of a newer one is not this run's any more.
        end = min([closed, *(shift_window(window, -1) for window in newer)])
        newer.append(run.first_window)
        found = _due_of(connection, run, end, first_partition)
        (due if isinstance(found, DueUpdate) else others).append(found)  # type: ignore[arg-type]
    return due, others


def _due_of(connection: psycopg.Connection, run: TrainingRun, end: str, first_partition: str) -> DueUpdate | str:
    """The run's update, over windows up to `end`; or why there is none."""
    after = shift_window(end, 1)
    stopped = [alarm for alarm in alarms_before(connection, run, after) if alarm.response == "stop"]
    if stopped:
        return (
            f"{run.training_run}: alarms stopped it at {stopped[0].window_id}, see the check learning_is_steady; "
            "`babylon-rl train --from WINDOW --follow --name NAME` starts another run."
        )
    parent = state_before(connection, run, after)
    new = new_groups(connection, run, parent, end)
    said = f"{run.training_run}: {gathered(new, run)}"
    if len(new.digests) < run.recipe.windows_per_update:
        return f"{said}."
    updates = updates_of(connection, run)
    first = max(run.first_window, first_partition, shift_window(updates[-1], 1) if updates else "")
    # In order, the update is made where the last group that it needs is; late groups may all lie before the range.
    ends = _own_window(connection, run, max(first, list(new.digests)[run.recipe.windows_per_update - 1]))
    if ends > end:
        return f"{said}; the update is made in the hour {ends}, once it is over."
    batch = {window: digest for window, digest in new.digests.items() if window <= ends}
    return DueUpdate(
        training_run=run.training_run,
        first=first,
        last=max(ends, *new.digests),
        key=f"{run.training_run}:{ends}:{_digest(parent, batch)}",
        said=f"{said} since {parent.checkpoint_id}",
        held=_held(connection, parent, batch),
    )


def _held(connection: psycopg.Connection, parent: Checkpoint, batch: Collection[str]) -> str:
    """What a person has to do about a job of a service on top of the parent; empty where there is nothing.

    One in doubt holds up every update, for its step may still come. One that failed holds up its own windows alone.
    """
    for job in held_jobs(connection, parent.checkpoint_id):
        if job.state == "in_doubt" or set(windows_of_job(connection, job)) <= set(batch):
            return what_to_do(job)
    return ""


def _own_window(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> str:
    """The window, or the next that is not part of a newer run with an end."""
    while (owner := run_of_window(connection, window_id)) and owner.training_run != run.training_run:
        if owner.last_window is None:
            break
        window_id = shift_window(owner.last_window, 1)
    return window_id


def _digest(parent: Checkpoint, digests: dict[str, str]) -> str:
    text = "\n".join([parent.checkpoint_id, *(f"{window} {digest}" for window, digest in sorted(digests.items()))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def next_attempt(update: DueUpdate, attempts: Sequence[Attempt], now: datetime) -> str | int:
    """Number of the attempt that is to be made at `now`, from 1; or why none is."""
    if update.held:
        return f"{update.said}: {update.held}"
    if not attempts:
        return 1
    latest = max(attempts, key=lambda attempt: attempt.number)
    failures = sum(attempt.state == "failed" for attempt in attempts)
    where = f"run {latest.run_id[:8]}"
    by_hand = f"run the job train_checkpoint from {update.first} to {update.last}"
    if latest.ended is None:
        return f"{update.said}: {where} makes the update."
    if latest.state == "cancelled":
        return f"{update.said}: {where} was cancelled. To make the update, {by_hand}."
    if latest.state == "done":
        # It computed all there was and found nothing to train on; with later windows it may.
        if update.last > latest.last:
            return latest.number + 1
        return f"{update.said}: {where} ended without an update; the rows of trained_checkpoints say why."
    if failures >= MOST_ATTEMPTS:
        return f"{update.said}: failed {failures} times, last in {where}. See its log, mend the cause, and {by_hand}."
    at = latest.ended + WAITS[failures - 1]
    if now < at:
        return f"{update.said}: {where} failed; attempt {failures + 1} of {MOST_ATTEMPTS} after {at:%H:%M} UTC."
    return latest.number + 1
