"""Which checkpoints stay, by rule, and the deletion of the weights of the others. Rows of `checkpoints` always stay.

What stays: what is or was promoted, each run's best and its latest, and whatever somebody still trains on, steps back
to or evaluates. The row is booked as deleted before its weights go, so that none is ready without weights; what an
interruption leaves behind, the next call takes away.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg.rows import dict_row

from babylon_rl.database.connect import Database
from babylon_rl.errors import SettingsError, TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training.alarm_log import list_alarms
from babylon_rl.training.alarms import last_good
from babylon_rl.training.backends.torch.resume import left_behind, remove_work
from babylon_rl.training.checkpoint_store import cached, delete, is_remote, stored_bytes, working_folder
from babylon_rl.training.lineage import state_before
from babylon_rl.training.runs import Checkpoint, TrainingRun, base_checkpoint, list_checkpoints, list_runs

END_OF_TIME = "9999-12-31T23:00"  # a window after all

# After so long the state of an interrupted update is taken for abandoned; made again it comes to the same weights.
ABANDONED_SECONDS = 86400.0

DeleteHosted = Callable[[str, Sequence[int]], None]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint as it is listed. `why`: the reasons to keep it; empty where it may go.

    `bytes`: of its weights where they are; None where nobody knows, as of those that a service keeps (`hosted`).
    """

    checkpoint_id: str
    training_run: str
    step: int
    backend: str | None
    made: datetime
    state: str
    path: str | None
    hosted: bool
    bytes: int | None
    why: tuple[str, ...]


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What pruning did, or would do. `left`: deleted before, with weights that are still there; `failed`: what each
    store said that did not let go; `hosted`: prunable ones that a service keeps and that were left alone; `work`: the
    work folders of abandoned updates, with their bytes."""

    applied: bool
    gone: list[Standing]
    left: list[Standing]
    kept: list[Standing]
    hosted: list[Standing]
    failed: dict[str, str]
    work: dict[str, int] = {}

    @property
    def freed(self) -> int:
        """Bytes, as far as they are known."""
        weights = sum(one.bytes or 0 for one in (*self.gone, *self.left) if one.checkpoint_id not in self.failed)
        return weights + sum(size for path, size in self.work.items() if path not in self.failed)


# --- the rule --------------------------------------------------------------------------------------


def standings(connection: psycopg.Connection, keep: int, sized: bool = True) -> list[Standing]:
    """All checkpoints with weights, by run and step, with the reasons to keep them. `keep`: latest ones of a run."""
    checkpoints = [c for c in list_checkpoints(connection) if c.step > 0]
    why = reasons(connection, checkpoints, keep)
    made = dict(connection.execute("SELECT checkpoint_id, created_at FROM babylon_rl.checkpoints").fetchall())
    return [
        Standing(
            checkpoint_id=c.checkpoint_id,
            training_run=c.training_run,
            step=c.step,
            backend=c.backend,
            made=made[c.checkpoint_id],
            state=c.state,
            path=c.path,
            hosted=c.path is None,
            bytes=stored_bytes(c.path) if sized and c.path is not None else None,
            why=tuple(why.get(c.checkpoint_id, ())),
        )
        for c in checkpoints
    ]


def reasons(connection: psycopg.Connection, checkpoints: Sequence[Checkpoint], keep: int) -> dict[str, list[str]]:
    """Why each checkpoint that is not deleted stays; those without a reason are absent."""
    found: dict[str, list[str]] = defaultdict(list)
    for checkpoint_id, reason in _promoted(connection):
        found[checkpoint_id].append(reason)
    for checkpoint_id, reason in _best(connection, checkpoints):
        found[checkpoint_id].append(reason)
    by_run: dict[str, list[Checkpoint]] = defaultdict(list)
    for one in checkpoints:
        if one.state != "deleted":
            by_run[one.training_run].append(one)
    for own in by_run.values():
        for place, one in enumerate(reversed(own[-keep:] if keep else []), start=1):
            found[one.checkpoint_id].append("the latest of its run" if place == 1 else f"number {place} of the latest")
    for checkpoint_id, reason in _jobs(connection):
        found[checkpoint_id].append(reason)
    for run in list_runs(connection):
        if run.state == "running" and run.training_run in by_run:
            for checkpoint_id, reason in _of_running(connection, run, by_run[run.training_run]):
                found[checkpoint_id].append(reason)
    gone = {c.checkpoint_id for c in checkpoints if c.state == "deleted"}
    return {checkpoint_id: why for checkpoint_id, why in found.items() if checkpoint_id not in gone}


def _promoted(connection: psycopg.Connection) -> list[tuple[str, str]]:
    rows = connection.execute(
        """SELECT to_checkpoint, max(promotion_id) = (SELECT max(promotion_id) FROM babylon_rl.promotions)
           FROM babylon_rl.promotions GROUP BY to_checkpoint"""
    ).fetchall()
    return [(one, "promoted: it is what is served" if now else "was promoted") for one, now in rows]


def _best(connection: psycopg.Connection, checkpoints: Sequence[Checkpoint]) -> Iterable[tuple[str, str]]:
    """The best of each run: by its effect on test windows, else by its P&L on validation windows."""
    runs = {c.checkpoint_id: c.training_run for c in checkpoints if c.state != "deleted"}
    rows = connection.execute(
        """SELECT candidate, split, effect, candidate_pnl, baseline FROM babylon_rl.checkpoint_evaluations
           WHERE superseded_at IS NULL AND split IN ('test', 'validation') AND candidate = ANY(%s)""",
        (list(runs),),
    ).fetchall()
    rows = [row for row in rows if row[4] == base_checkpoint(runs[row[0]])]
    for split, place, what in (("test", 2, "effect on test windows"), ("validation", 3, "P&L on validation windows")):
        best: dict[str, tuple[float, str]] = {}
        for row in rows:
            if row[1] == split and (row[place], row[0]) > best.get(runs[row[0]], (float("-inf"), "")):
                best[runs[row[0]]] = (row[place], row[0])
        for run, (_, checkpoint_id) in best.items():
            if split == "test" or not any(runs[r[0]] == run and r[1] == "test" for r in rows):
                yield checkpoint_id, f"the best of its run by {what}"


def _jobs(connection: psycopg.Connection) -> Iterable[tuple[str, str]]:
    """Parents and results of jobs that have not ended."""
    rows = connection.execute(
        """SELECT a.job_id, a.state, a.parent_id, c.checkpoint_id
           FROM babylon_rl.training_attempts a LEFT JOIN babylon_rl.checkpoints c
             ON c.snapshot_id = a.snapshot_id AND c.parent_id = a.parent_id
           WHERE a.state NOT IN ('done', 'failed', 'cancelled')"""
    ).fetchall()
    for job, state, parent, result in rows:
        yield parent, f"job {job[:8]} trains on it ({state})"
        if result is not None:
            yield result, f"job {job[:8]} makes it ({state})"


def _of_running(
    connection: psycopg.Connection, run: TrainingRun, own: Sequence[Checkpoint]
) -> Iterable[tuple[str, str]]:
    """What a run that has not ended needs: the next parent, where an alarm would lead, what it is to evaluate."""
    state = state_before(connection, run, END_OF_TIME)
    yield state.checkpoint_id, f"the next update of {run.training_run} trains on it"
    parents = {c.checkpoint_id: c.parent_id for c in list_checkpoints(connection, run.training_run)}
    alarmed = {alarm.checkpoint_id for alarm in list_alarms(connection, run.training_run)}
    yield last_good(state.checkpoint_id, parents, alarmed), f"an alarm would lead {run.training_run} back to it"
    if "test" in run.schedule:
        last = max(c.step for c in own)
        for checkpoint in own:
            if 2 * checkpoint.step >= last:
                yield checkpoint.checkpoint_id, f"{run.training_run} is still to evaluate it"


# --- the deletion ----------------------------------------------------------------------------------


def prune(database: Database, settings: Settings, apply: bool, delete_hosted: DeleteHosted | None = None) -> Pruned:
    """Delete the weights of the checkpoints that no rule keeps; without `apply` only tell which.

    `delete_hosted`: asks the service to delete steps of a model; without it what a service keeps is left alone.
    """
    with database.connect() as connection:
        found = standings(connection, settings.keep_checkpoints)
        work = _abandoned(connection, settings)
    # Weights that a deletion left behind; of others nothing is there, or nobody knows.
    left = [one for one in found if one.state == "deleted" and one.bytes]
    may_go = [one for one in found if one.state != "deleted" and not one.why]
    gone = [one for one in may_go if not one.hosted or delete_hosted]
    pruned = Pruned(
        applied=apply,
        gone=gone,
        left=left,
        kept=[one for one in found if one.state != "deleted" and one.why],
        hosted=[one for one in may_go if one.hosted and not delete_hosted],
        failed={},
        work=work,
    )
    if not apply:
        return pruned
    booked = _book_deleted(database, settings, [one.checkpoint_id for one in gone])
    pruned = msgspec.structs.replace(pruned, gone=[one for one in gone if one.checkpoint_id in booked])
    for one in (*pruned.gone, *left):
        try:
            _remove(database, settings, one, delete_hosted)
        except Exception as error:  # each store has errors of its own, and the next one may still be deleted
            pruned.failed[one.checkpoint_id] = f"{type(error).__name__}: {error}"
    for path in work:
        try:
            remove_work(Path(path))
        except (OSError, TrainingError) as error:
            pruned.failed[path] = f"{type(error).__name__}: {error}"
    return pruned


def _abandoned(connection: psycopg.Connection, settings: Settings) -> dict[str, int]:
    """Work folders that no process holds and no open job needs, untouched for a day, and their bytes."""
    root = working_folder(settings, "any").parent
    # A checkpoint's id ends with the beginning of its job's.
    needed = connection.execute(
        "SELECT left(job_id, 8) FROM babylon_rl.training_attempts WHERE state NOT IN ('done', 'failed', 'cancelled')"
    ).fetchall()
    return {
        str(path): sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        for path in left_behind(root, ABANDONED_SECONDS)
        if not any(path.name.endswith(f"-{job}.work") for (job,) in needed)
    }


def _book_deleted(database: Database, settings: Settings, checkpoint_ids: Sequence[str]) -> set[str]:
    """Book those as deleted that no rule keeps now either; no job is opened and nothing promoted meanwhile."""
    with database.connect() as connection:
        connection.execute("LOCK TABLE babylon_rl.promotions, babylon_rl.training_attempts IN SHARE ROW EXCLUSIVE MODE")
        may_go = {
            one.checkpoint_id
            for one in standings(connection, settings.keep_checkpoints, sized=False)
            if one.state != "deleted" and not one.why
        }
        rows = connection.execute(
            """UPDATE babylon_rl.checkpoints SET state = 'deleted', deleted_at = now()
               WHERE checkpoint_id = ANY(%s) AND state <> 'deleted' RETURNING checkpoint_id""",
            ([one for one in checkpoint_ids if one in may_go],),
        ).fetchall()
    return {row[0] for row in rows}


def _remove(database: Database, settings: Settings, one: Standing, delete_hosted: DeleteHosted | None) -> None:
    if one.path is not None:
        delete(one.path)
        if is_remote(one.path):
            delete(str(cached(settings.home, one.checkpoint_id)))
    elif delete_hosted is not None:
        with database.connect() as connection:
            model, step = _remote_step(connection, one.checkpoint_id)
        try:
            delete_hosted(model, [step])
        except BaseException:
            # Nothing at the service says that it is deleted here; the row must not say so alone.
            with database.connect() as connection:
                connection.execute(
                    "UPDATE babylon_rl.checkpoints SET state = 'ready', deleted_at = NULL WHERE checkpoint_id = %s",
                    (one.checkpoint_id,),
                )
            raise


def _remote_step(connection: psycopg.Connection, checkpoint_id: str) -> tuple[str, int]:
    row = connection.execute(
        """SELECT a.remote_model_id, a.step_after FROM babylon_rl.checkpoints c JOIN babylon_rl.training_attempts a
             ON a.snapshot_id = c.snapshot_id AND a.parent_id = c.parent_id AND a.state = 'done'
           WHERE c.checkpoint_id = %s AND a.remote_model_id IS NOT NULL AND a.step_after IS NOT NULL
           ORDER BY a.finished_at DESC LIMIT 1""",
        (checkpoint_id,),
    ).fetchone()
    if row is None:
        raise TrainingError(f"The ledger does not say which step of which model of the service {checkpoint_id} is.")
    return row[0], row[1]


def hosted_deleter(settings: Settings) -> DeleteHosted:
    """Function that deletes steps of a model at the training service. SettingsError without a key."""
    if settings.wandb_api_key is None:
        raise SettingsError("To delete checkpoints at the service WANDB_API_KEY is needed; leave --hosted out else.")
    key = settings.wandb_api_key.get_secret_value()

    def delete_steps(model_id: str, steps: Sequence[int]) -> None:
        import asyncio
        import os

        # Art reads a .env at import, and litellm asks the network.
        os.environ["PYTHON_DOTENV_DISABLED"] = "1"
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        from art.serverless.client import Client

        async def ask() -> None:
            async with Client(api_key=key, base_url=settings.wandb_training_url) as client:
                await client.models.checkpoints.delete(model_id=model_id, steps=list(steps))

        asyncio.run(ask())

    return delete_steps


# --- one of them -----------------------------------------------------------------------------------


def find_checkpoint(connection: psycopg.Connection, named: str) -> Checkpoint:
    """The checkpoint of that id, or whose id begins so, or `promoted`. TrainingError where it is none or several."""
    if named == "promoted":
        row = connection.execute(
            "SELECT to_checkpoint FROM babylon_rl.promotions ORDER BY promotion_id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            raise TrainingError("Nothing is promoted yet; `babylon-rl checkpoints` lists what there is.")
        named = row[0]
    checkpoints = list_checkpoints(connection)
    # `run@3` means run@3-… before run@30-….
    for fits in (named.__eq__, lambda one: one.startswith(f"{named}-"), lambda one: one.startswith(named)):
        found = [c for c in checkpoints if fits(c.checkpoint_id)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(c.checkpoint_id for c in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise TrainingError(f"{named!r} may be {names}{more}. Write more of its id.")
    raise TrainingError(f"There is no checkpoint {named!r}. `babylon-rl checkpoints` lists what there is.")


def checkpoint_row(connection: psycopg.Connection, checkpoint_id: str) -> dict[str, Any]:
    """The checkpoint's row, all columns."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "SELECT * FROM babylon_rl.checkpoints WHERE checkpoint_id = %s", (checkpoint_id,)
        ).fetchone()
    assert row is not None
    return row
