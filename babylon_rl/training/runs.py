"""Training runs and checkpoints as the database knows them: what is trained, from what, and what is promoted."""

from typing import Any, Literal

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.errors import TrainingError
from babylon_rl.training.recipe import Recipe


class TrainingRun(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is trained over a range of windows; without a `last_window` on all that come.

    `schedule`: how a demo lays out its windows.
    """

    training_run: str
    base_model: str
    seed: int
    recipe: Recipe
    schedule: dict[str, Any]
    first_window: str
    last_window: str | None
    state: str
    backend: str = "torch"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a model. `path` is None for step 0, the base model itself, and where a service keeps the weights.

    `backend`: where it was made; `base_sha256`, `tokenizer_sha256`: of what it was trained on; `inference_url`,
    `inference_name`: where a service answers with this very step.
    """

    checkpoint_id: str
    training_run: str
    parent_id: str | None
    snapshot_id: str | None
    base_model: str
    step: int
    path: str | None
    weights_sha256: str | None
    last_window: str | None
    metrics: dict[str, Any]
    state: str
    backend: str | None = None
    base_sha256: str | None = None
    tokenizer_sha256: str | None = None
    inference_url: str | None = None
    inference_name: str | None = None
    code_version: str | None = None


def start_run(connection: psycopg.Connection, run: TrainingRun) -> None:
    """Store a run and its step 0; a run of that name that is already there stays as it is."""
    connection.execute(
        """INSERT INTO babylon_rl.training_runs
           (training_run, base_model, seed, settings, schedule, first_window, last_window, state,
            backend)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (training_run) DO NOTHING""",
        (
            run.training_run,
            run.base_model,
            run.seed,
            Jsonb(run.recipe.as_json()),
            Jsonb(run.schedule),
            run.first_window,
            run.last_window,
            run.state,
            run.backend,
        ),
    )
    save_checkpoint(connection, base_of(run))


def base_of(run: TrainingRun) -> Checkpoint:
    """Step 0 of a run, whether or not it is stored: the base model itself."""
    return Checkpoint(
        checkpoint_id=base_checkpoint(run.training_run),
        training_run=run.training_run,
        parent_id=None,
        snapshot_id=None,
        base_model=run.base_model,
        step=0,
        path=None,
        weights_sha256=None,
        last_window=None,
        metrics={},
        state="ready",
    )


def precision_of_run(run: TrainingRun) -> Literal["float32", "bfloat16"]:
    """Precision in which the run's trainer computes, and in which what it trains is served."""
    return "bfloat16" if run.recipe.precision == "bfloat16" else "float32"


def base_checkpoint(training_run: str) -> str:
    """Id of a run's step 0."""
    return f"{training_run}@0"


def finish_run(connection: psycopg.Connection, training_run: str) -> None:
    """Mark the run finished: its demo has ended with a decision."""
    connection.execute(
        "UPDATE babylon_rl.training_runs SET state = 'finished' WHERE training_run = %s", (training_run,)
    )


_RUN = "SELECT *, settings AS recipe FROM babylon_rl.training_runs"


def _runs(connection: psycopg.Connection, query: str, parameters: tuple) -> list[TrainingRun]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    return [msgspec.convert({key: row[key] for key in TrainingRun.__struct_fields__}, TrainingRun) for row in rows]


def load_run(connection: psycopg.Connection, training_run: str) -> TrainingRun | None:
    """The run of that name."""
    return next(iter(_runs(connection, _RUN + " WHERE training_run = %s", (training_run,))), None)


def list_runs(connection: psycopg.Connection) -> list[TrainingRun]:
    """All runs, the newest first."""
    return _runs(connection, _RUN + " ORDER BY created_at DESC, training_run DESC", ())


def open_runs(connection: psycopg.Connection) -> list[TrainingRun]:
    """Runs without an end that go on, the newest first."""
    return _runs(
        connection, _RUN + " WHERE last_window IS NULL AND state = 'running' ORDER BY created_at DESC, training_run", ()
    )


def run_of_window(connection: psycopg.Connection, window_id: str) -> TrainingRun | None:
    """The run whose range holds the window; the newest where several do."""
    query = _RUN + (
        " WHERE first_window <= %s AND (last_window IS NULL OR last_window >= %s) ORDER BY created_at DESC LIMIT 1"
    )
    return next(iter(_runs(connection, query, (window_id, window_id))), None)


def save_checkpoint(connection: psycopg.Connection, checkpoint: Checkpoint) -> None:
    """Store a checkpoint; one of that id stays as it is, but that one whose weights were deleted has them again."""
    connection.execute(
        """INSERT INTO babylon_rl.checkpoints (checkpoint_id, training_run, parent_id, snapshot_id, base_model, step,
           path, weights_sha256, last_window, metrics, state, backend, base_sha256, tokenizer_sha256, inference_url,
           inference_name, code_version)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
           ON CONFLICT (checkpoint_id) DO UPDATE SET (path, weights_sha256, state, code_version, deleted_at)
               = (excluded.path, excluded.weights_sha256, excluded.state, excluded.code_version, NULL)
               WHERE checkpoints.state = 'deleted'""",
        (
            checkpoint.checkpoint_id,
            checkpoint.training_run,
            checkpoint.parent_id,
            checkpoint.snapshot_id,
            checkpoint.base_model,
            checkpoint.step,
            checkpoint.path,
            checkpoint.weights_sha256,
            checkpoint.last_window,
            Jsonb(checkpoint.metrics),
            checkpoint.state,
            checkpoint.backend,
            checkpoint.base_sha256,
            checkpoint.tokenizer_sha256,
            checkpoint.inference_url,
            checkpoint.inference_name,
            checkpoint.code_version,
        ),
    )


def load_checkpoint(connection: psycopg.Connection, checkpoint_id: str) -> Checkpoint:
    """The checkpoint of that id; TrainingError where there is none."""
    found = [c for c in list_checkpoints(connection) if c.checkpoint_id == checkpoint_id]
    if not found:
        raise TrainingError(
            f"There is no checkpoint {checkpoint_id!r}. The asset trained_checkpoints shows each under "
            "the window that ended its update; in SQL: SELECT checkpoint_id FROM babylon_rl.checkpoints."
        )
    return found[0]


def list_checkpoints(connection: psycopg.Connection, training_run: str | None = None) -> list[Checkpoint]:
    """Checkpoints by run and step; of one run where it is named."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """SELECT * FROM babylon_rl.checkpoints WHERE %(run)s::text IS NULL OR training_run = %(run)s
               ORDER BY training_run, step, created_at""",
            {"run": training_run},
        ).fetchall()
    return [msgspec.convert({key: row[key] for key in Checkpoint.__struct_fields__}, Checkpoint) for row in rows]


def promote(
    connection: psycopg.Connection,
    training_run: str,
    checkpoint_id: str,
    who: str,
    why: str,
    evidence: dict[str, Any],
    again: bool = False,
    kind: Literal["promotion", "rollback"] = "promotion",
    experiment_id: str | None = None,
) -> bool:
    """Serve the checkpoint from now on; whether that was booked. `experiment_id`: the experiment that decided it.

    A run's decision that is booked is not booked again, so that a demo that is run again promotes nothing. With `again`
    it is, as a person asks for it who goes back to an earlier checkpoint; not where it is what is served.
    """
    lock_promotions(connection)
    served = promoted(connection)
    before = served["to_checkpoint"] if served else None
    if before == checkpoint_id:
        return False
    if load_checkpoint(connection, checkpoint_id).state == "deleted":
        raise TrainingError(f"The weights of {checkpoint_id} were deleted; promote another checkpoint.")
    booked = connection.execute(
        """INSERT INTO babylon_rl.promotions (training_run, from_checkpoint, to_checkpoint, who, why, evidence,
                                              kind, experiment_id)
           SELECT %(run)s, %(before)s, %(to)s, %(who)s, %(why)s, %(evidence)s, %(kind)s, %(experiment)s
           WHERE %(again)s OR NOT EXISTS (
               SELECT 1 FROM babylon_rl.promotions WHERE training_run = %(run)s AND to_checkpoint = %(to)s)""",
        {
            "run": training_run,
            "before": before,
            "to": checkpoint_id,
            "who": who,
            "why": why,
            "evidence": Jsonb(evidence),
            "again": again,
            "kind": kind,
            "experiment": experiment_id,
        },
    )
    return booked.rowcount == 1


def lock_promotions(connection: psycopg.Connection) -> None:
    """Until the transaction's end nobody else promotes: two at once must not both go on from what is served now."""
    connection.execute("LOCK TABLE babylon_rl.promotions IN SHARE ROW EXCLUSIVE MODE")


def promoted(connection: psycopg.Connection, training_run: str | None = None) -> dict[str, Any] | None:
    """The latest promotion (of a run, where named) as a row of `promotions`."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """SELECT * FROM babylon_rl.promotions WHERE %(run)s::text IS NULL OR training_run = %(run)s
               ORDER BY promotion_id DESC LIMIT 1""",
            {"run": training_run},
        ).fetchone()
