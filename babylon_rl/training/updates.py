"""From trainable groups to checkpoints, window by window: when an update is due, and its one job in the ledger.

An update is due at every `windows_per_update`-th window of a run's training range and consumes the groups since the
last one. In a run without an end it is due once as many new groups have gathered. Its job is in the ledger before it
starts (`ledger`); a second attempt finds it and never trains twice. A batch that raises an alarm may be answered by a
step back instead of an update.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.database.tables import trained_checkpoints
from babylon_rl.database.window_rows import OF_THE_WHOLE, WindowError, WindowRows, waiting_for, write_rows
from babylon_rl.errors import TrainingError
from babylon_rl.groups.provenance import Admission
from babylon_rl.groups.snapshots import Origin, SnapshotHeader, Source, build_snapshot
from babylon_rl.groups.statuses import TRAINABLE
from babylon_rl.groups.stored import group_rows, sources_of, stream_trainable
from babylon_rl.groups.trained_view import Group
from babylon_rl.settings import Settings
from babylon_rl.training.admission import Checker
from babylon_rl.training.alarm_log import Checked, alarms_before, check_batch, save_alarms
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.batches import batch_ending
from babylon_rl.training.booking import book, id_after
from babylon_rl.training.checkpoint_store import booked_folder, check_base, local_folder, refuse_deleted, working_folder
from babylon_rl.training.earlier_format import kept_update
from babylon_rl.training.ledger import done, is_hosted, job_id_of, open_job
from babylon_rl.training.lineage import NewGroups, lineage_at, new_groups, state_before, updates_of
from babylon_rl.training.runs import Checkpoint, TrainingRun, load_checkpoint, run_of_window
from babylon_rl.training.tracking import track
from babylon_rl.training.trainer import TrainerRequest
from babylon_rl.training.working import Launch, trained
from babylon_rl.windows import parse_window_id, shift_window, window_range

DATA = ("windows", "market_outcomes", "scored_trajectories", "judge_calibration", "art_groups")


def update_checkpoints(
    database: Database,
    settings: Settings,
    window_ids: Sequence[str],
    launch: Launch,
    keep: Callable[[WindowRows], None] | None = None,
) -> WindowRows:
    """Rows of `trained_checkpoints` for the windows, in order; updates that are due are made through `launch`.

    Each window goes on from the one before, so the first that fails ends it: `keep` is given the rows until there and
    the failure, then the error is raised.
    """
    rows: list[dict[str, Any]] = []
    ordered = sorted(window_ids)
    for window_id in ordered:
        try:
            with database.connect() as connection:
                run = run_of_window(connection, window_id)
            rows.append(_row_of(database, settings, run, window_id, launch))
        except OF_THE_WHOLE:
            raise
        except Exception as error:
            if keep is not None:
                until = (*(row["window_id"] for row in rows), window_id)
                keep(WindowRows(pd.DataFrame(rows), until, {window_id: WindowError.of(error)}))
            raise
    return WindowRows(pd.DataFrame(rows), tuple(ordered))


def keep_rows(database: Database, rows: WindowRows) -> None:
    """Write the rows, and why the others are not there."""
    with database.connect() as connection:
        write_rows(connection, trained_checkpoints, rows)


def _row_of(
    database: Database, settings: Settings, run: TrainingRun | None, window_id: str, launch: Launch
) -> dict[str, Any]:
    if run is None:
        return _row(window_id, None, None, "no training run covers this window; `babylon-rl train` starts one")
    with database.connect() as connection:
        parent = state_before(connection, run, window_id)
        stops = [alarm for alarm in alarms_before(connection, run, window_id) if alarm.response == "stop"]
    windows = windows_since(run, window_id)
    if windows is None:
        return _row(window_id, run, parent, "after the run's training windows: nothing is trained here")
    if stops:
        return _row(window_id, run, parent, f"alarms stopped the run at {stops[0].window_id}: nothing is trained here")
    batch = batch_ending(run, window_id)
    if batch:
        return _update(database, settings, run, parent, window_id, batch, launch)
    if batch is not None:
        return _row(window_id, run, parent, "no update of the run ends with this window")
    if run.last_window is None:
        return _row_of_open_run(database, settings, run, parent, window_id, launch)
    if len(windows) < run.recipe.windows_per_update:
        reason = f"window {len(windows)} of {run.recipe.windows_per_update}: the update comes with the last"
        return _row(window_id, run, parent, reason)
    return _update(database, settings, run, parent, window_id, windows, launch)


def _row_of_open_run(
    database: Database, settings: Settings, run: TrainingRun, parent: Checkpoint, window_id: str, launch: Launch
) -> dict[str, Any]:
    """Row of a window of a run without an end: the update over all new groups, once there are enough."""
    with database.connect() as connection:
        new = new_groups(connection, run, parent, window_id)
        updates = updates_of(connection, run)
    said = gathered(new, run)
    if len(new.digests) < run.recipe.windows_per_update:
        return _row(window_id, run, parent, said)
    if updates and window_id < updates[-1] and window_id not in updates:
        # Late groups must not move the updates that are there: they would be trained on in two places of one line.
        return _row(window_id, run, parent, f"{said}; those that came late wait for the update after {updates[-1]}")
    return _update(database, settings, run, parent, window_id, list(new.digests), launch)


def gathered(new: NewGroups, run: TrainingRun) -> str:
    """How far the next update of a run without an end is, for a person."""
    said = f"{len(new.digests)} of {run.recipe.windows_per_update} new groups"
    others = f"; of {new.not_admitted} more no loss takes a member: too old, or no better than the others"
    return said + (others if new.not_admitted else "")


def windows_since(run: TrainingRun, window_id: str) -> list[str] | None:
    """Windows from the last update's end up to `window_id`; None after the run's training range."""
    train_last = run.schedule.get("train", [None, None])[1]
    if train_last is not None and window_id > train_last:
        return None
    hours = int((parse_window_id(window_id) - parse_window_id(run.first_window)).total_seconds() // 3600)
    into = hours % run.recipe.windows_per_update
    return list(window_range(shift_window(window_id, -into), window_id))


def _update(
    database: Database,
    settings: Settings,
    run: TrainingRun,
    parent: Checkpoint,
    window_id: str,
    windows: list[str],
    launch: Launch,
) -> dict[str, Any]:
    """Row of the window with which an update over `windows` ends."""
    with database.connect() as connection:
        rows, failed = _groups(connection, windows)
        consumed = {w: None for w in windows} | dict(zip(rows["window_id"], rows["group_digest"], strict=True))
        looked_at = {"group_digests": consumed}
        checked = check_batch(connection, run, parent, window_id, windows, rows)
        if checked.response.checkpoint is not None:
            save_alarms(connection, run, window_id, checked.rows)
            state = load_checkpoint(connection, checked.response.checkpoint)
            return {**_row(window_id, run, state, _answer(checked)), "metrics": checked.as_metrics(), **looked_at}
        former = kept_update(connection, run, parent.checkpoint_id, window_id, consumed)
        if former is not None:
            save_alarms(connection, run, window_id, checked.rows)
            return former
        refuse_deleted(parent)
        try:
            snapshot = _snapshot_of(connection, settings, run, parent, window_id, windows, rows, failed)
        except TrainingError as error:
            save_alarms(connection, run, window_id, checked.rows)
            reason = f"{_answer(checked)}. {error}" if checked.rows else str(error)
            return {**_row(window_id, run, parent, reason), "metrics": checked.as_metrics(), **looked_at}
        digest = run.recipe.digest()
        job = open_job(
            connection, snapshot.snapshot_id, parent.checkpoint_id, digest, run.backend, parent.step, window_id
        )
        checkpoint_id = id_after(run.training_run, parent, job.job_id)
        place = booked_folder(connection, checkpoint_id) or working_folder(settings, checkpoint_id)
    request = _request(settings, run, parent, snapshot, checkpoint_id, place)
    with trained(database, settings, request, launch) as result, database.connect() as connection:
        book(connection, run, parent, snapshot.snapshot_id, request.checkpoint_id, result, window_id)
        save_alarms(connection, run, window_id, checked.rows)
        if not is_hosted(run.backend):
            done(connection, request.job_id, parent.step + 1)
        checkpoint = load_checkpoint(connection, request.checkpoint_id)
    track(database, settings, run, checkpoint, result, Path(request.folder) if result.folder else None)
    left_out = len(windows) - snapshot.groups
    return {
        **_row(window_id, run, checkpoint, f"update over {snapshot.groups} of {len(windows)} windows"),
        **looked_at,
        "updated": True,
        "parent_id": parent.checkpoint_id,
        "snapshot_id": snapshot.snapshot_id,
        "groups_trained": snapshot.groups,
        "groups_left_out": left_out,
        "metrics": {
            "mean": result.metrics,
            "steps": result.steps,
            "left_out": snapshot.left_out,
            **checked.as_metrics(),
        },
    }


@contextlib.contextmanager
def planned(
    connection: psycopg.Connection,
    settings: Settings,
    run: TrainingRun,
    parent: Checkpoint,
    window_id: str,
    windows: list[str],
) -> Iterator[SnapshotHeader]:
    """What the update that ends with the window would be trained on: made, to be read inside, and taken back.

    The run need not be stored. TrainingError where nothing is trainable.
    """
    with connection.transaction(force_rollback=True):
        rows, failed = _groups(connection, windows)
        yield _snapshot_of(connection, settings, run, parent, window_id, windows, rows, failed)


def _groups(connection: psycopg.Connection, windows: list[str]) -> tuple[pd.DataFrame, int]:
    """Rows of the batch (`groups.stored.group_rows`), and how many windows it goes without.

    These are the windows where an earlier asset failed: what is stored of them is from before the failure.
    """
    rows = group_rows(connection, windows)
    failed = waiting_for(connection, DATA, windows)
    return rows[~rows["window_id"].isin(list(failed))].reset_index(drop=True), len(failed)


def _snapshot_of(
    connection: psycopg.Connection,
    settings: Settings,
    run: TrainingRun,
    parent: Checkpoint,
    window_id: str,
    windows: list[str],
    rows: pd.DataFrame,
    failed: int,
) -> SnapshotHeader:
    """The update's training set, made and saved group by group; TrainingError where nothing is trainable."""
    sources = sources_of(rows)
    left_out = Counter({status: count for status, count in Counter(rows["status"]).items() if status != TRAINABLE})
    left_out += Counter(not_computed=failed, not_materialized=len(windows) - len(rows) - failed)
    refused: dict[str, list[str]] = {}
    # What was set aside is not of this lineage, though its step may be.
    lineage = lineage_at(connection, run, parent, window_id)
    recipe = {**run.recipe.as_json(), "backend": run.backend, "last_window": max(sources, default=window_id)}
    checker = Checker(tokenizer_folder(settings, run), lineage, Admission.of(recipe))
    return build_snapshot(
        connection,
        _trainable(connection, sources, checker, left_out, refused),
        run.training_run,
        {**recipe, "unchecked": checker.unchecked} if checker.unchecked else recipe,
        run.seed,
        lineage=lineage,
        left_out=left_out,
        origin=Origin(windows=windows, sources=sources, refused=refused),
    )


def _trainable(
    connection: psycopg.Connection,
    sources: dict[str, Source],
    checker: Checker,
    left_out: Counter[str],
    refused: dict[str, list[str]],
) -> Iterator[Group]:
    """The batch's groups by window, without the members that the base model cannot be trained on.

    These are counted in `left_out` and named in `refused`, by window.
    """
    for groups in stream_trainable(connection, sources):
        for whole in groups:
            group = checker.kept(whole, left_out)
            staying = {member.trajectory_id for member in group.members}
            gone = [one.trajectory_id for one in whole.members if one.trajectory_id not in staying]
            if gone:
                refused[whole.window_id] = gone
            yield group


def tokenizer_folder(settings: Settings, run: TrainingRun) -> Path | None:
    """Folder of the base model, or of what is known of a service's; None where that is nothing."""
    if is_hosted(run.backend):
        return settings.wandb_tokenizer
    return prepare_base_model(run.base_model, settings.home, run.seed)


def _answer(checked: Checked) -> str:
    """What was done about the alarms, as the row's reason."""
    said = ", ".join(f"{row.kind} ({row.detail})" for row in checked.rows)
    response = checked.response
    if response.kind == "stop":
        return f"{said}: alarms again and again, the run is stopped with {response.checkpoint}"
    back = f"back to {response.checkpoint}, " if response.checkpoint else ""
    return f"{said}: {back}exploration {response.exploration:g} in the next round"


def _row(window_id: str, run: TrainingRun | None, state: Checkpoint | None, reason: str) -> dict[str, Any]:
    return {
        "window_id": window_id,
        "training_run": run.training_run if run else None,
        "updated": False,
        "reason": reason,
        "checkpoint_id": state.checkpoint_id if state else None,
        "parent_id": state.parent_id if state else None,
        "snapshot_id": None,
        "step": state.step if state else None,
        "groups_trained": 0,
        "groups_left_out": 0,
        "metrics": {},
        "group_digests": None,
    }


def _request(
    settings: Settings, run: TrainingRun, parent: Checkpoint, snapshot: SnapshotHeader, checkpoint_id: str, place: Path
) -> TrainerRequest:
    base_folder = tokenizer_folder(settings, run)
    if base_folder is not None and not is_hosted(run.backend):
        check_base(parent, base_folder, settings.home)
    return TrainerRequest(
        checkpoint_id=checkpoint_id,
        snapshot_id=snapshot.snapshot_id,
        parent_id=parent.checkpoint_id,
        parent_folder=str(local_folder(parent, settings.home)) if parent.path else None,
        parent_step=parent.step,
        base_folder=str(base_folder or ""),
        folder=str(place),
        recipe=run.recipe,
        device=settings.device,
        threads=settings.threads,
        backend=run.backend,
        job_id=job_id_of(parent.checkpoint_id, snapshot.snapshot_id, run.recipe.digest()),
        training_run=run.training_run,
        base_model=run.base_model,
    )
