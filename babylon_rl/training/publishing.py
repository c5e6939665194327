"""Publishing: the application's `trained_models` and `training_batches` are told of finished checkpoints.

Off unless BABYLON_RL_PUBLISH_URL names the database. All of it is one transaction that needs SELECT, INSERT and UPDATE
on these two tables and nothing else; a second time it finds nothing to change and writes nothing. Publishers wait for
each other, and each reads our tables after it waited, so that the last word is the latest state.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import pandas as pd
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import checkpoint_evaluations
from babylon_rl.database.urls import redacted
from babylon_rl.errors import DatabaseError, PublishingError, Unreachable
from babylon_rl.groups.snapshots import stream_groups
from babylon_rl.recording.rows import snowflake
from babylon_rl.training.published_rows import (
    DEPLOYED,
    READY,
    Row,
    Trained,
    batch_row,
    changed,
    model_row,
    moment,
    next_version,
    snapshot_columns,
)
from babylon_rl.training.runs import promoted

MODELS, BATCHES = "trained_models", "training_batches"
KEYS = {MODELS: "modelId", BATCHES: "batchId"}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One row that was written. `columns`: those that changed; all that were set, of one that was inserted."""

    table: str
    key: str
    version: str
    status: str
    inserted: bool
    columns: tuple[str, ...]


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What publishing came to. `simulated`: checkpoints of the simulated market that nobody named."""

    changes: tuple[Change, ...]
    unchanged: int
    simulated: int
    dry_run: bool


def publish(
    database: Database, url: str, now: datetime, checkpoint_id: str | None = None, dry_run: bool = False
) -> Published:
    """Tell the application's database at `url` of all finished checkpoints, or of one; all or nothing.

    Runs of the simulated market are told of only by name, or where they were before. `now`: aware. `dry_run`: writes
    and takes it back. PublishingError, with nothing written, where that does not work.
    """
    # Twice: inside for the statements, outside for reaching the server and the commit.
    with _told(url), Database(url, embedded=False).connect() as target, _told(url):
        target.execute("SELECT pg_advisory_xact_lock(hashtextextended('babylon_rl.publish', 0))")
        there = {table: _standing(target, table) for table in KEYS}
        wanted = _read_ours(database, there, checkpoint_id, now)
        written = _write(target, there, wanted, now)
        if dry_run:
            target.rollback()
    return Published(
        changes=tuple(written),
        unchanged=sum(len(rows) for rows in wanted.rows.values()) - len(written),
        simulated=wanted.simulated,
        dry_run=dry_run,
    )


# --- what should be there --------------------------------------------------------------------------


class _Wanted(msgspec.Struct, frozen=True):
    """Rows by table; `new` has the further columns of rows that are not there yet, by table and key."""

    rows: dict[str, list[Row]]
    new: dict[tuple[str, str], Row]
    simulated: int


def _read_ours(
    database: Database, there: dict[str, dict[str, Row]], checkpoint_id: str | None, now: datetime
) -> _Wanted:
    try:
        with database.connect() as ours:
            return _wanted(ours, there, checkpoint_id, now)
    except (DatabaseError, psycopg.Error) as error:
        raise PublishingError(f"Nothing was published: our own tables cannot be read. {error}") from error


def _wanted(
    ours: psycopg.Connection, there: dict[str, dict[str, Row]], checkpoint_id: str | None, now: datetime
) -> _Wanted:
    served = promoted(ours)
    now_served = served["to_checkpoint"] if served else None
    found = _finished(ours)
    chosen, simulated = _chosen(found, there, checkpoint_id)
    evaluations = _evaluations(ours, [t.checkpoint_id for t in chosen if t.checkpoint_id])
    versions = _Versions(there)
    wanted = _Wanted(rows={MODELS: [], BATCHES: []}, new={}, simulated=simulated)
    for trained in chosen:
        version = versions.of(trained)
        if trained.job_id is not None:
            wanted.rows[BATCHES].append(batch_row(trained, version))
            if trained.job_id not in there[BATCHES]:
                assert trained.snapshot_id is not None
                columns = snapshot_columns(stream_groups(ours, trained.snapshot_id))
                wanted.new[BATCHES, trained.job_id] = {**columns, "createdAt": moment(trained.started_at)}
        if trained.checkpoint_id is not None:
            own = evaluations.get(trained.checkpoint_id, [])
            standing = there[MODELS].get(trained.checkpoint_id)
            wanted.rows[MODELS].append(model_row(trained, version, now_served, standing, own, now))
            wanted.new[MODELS, trained.checkpoint_id] = {"createdAt": moment(trained.trained_at)}
    _retire(wanted, there, {t.checkpoint_id for t in found}, now_served)
    return wanted


def _retire(wanted: _Wanted, there: dict[str, dict[str, Row]], ours: set[str | None], served: str | None) -> None:
    """At most one model is deployed: what was, is ready again. Others' models stay where we serve none there."""
    rows = wanted.rows[MODELS]
    named = {row["modelId"] for row in rows}
    takes_over = served in named or there[MODELS].get(served or "", {}).get("status") == DEPLOYED
    for key, row in there[MODELS].items():
        if row["status"] == DEPLOYED and key not in named and key != served and (key in ours or takes_over):
            rows.append({"modelId": key, "version": row["version"], "status": READY})


class _Versions:
    """A version for each batch and its model: what stands there, else the next one."""

    def __init__(self, there: dict[str, dict[str, Row]]) -> None:
        self.models = {key: row["version"] for key, row in there[MODELS].items()}
        self.batches = {key: row["modelVersion"] for key, row in there[BATCHES].items()}
        self.known = {*self.models.values(), *self.batches.values()}

    def of(self, trained: Trained) -> str:
        version = (
            self.models.get(trained.checkpoint_id or "")
            or self.batches.get(trained.job_id or "")
            or next_version(self.known)
        )
        self.known.add(version)
        return version


def _chosen(
    found: list[Trained], there: dict[str, dict[str, Row]], checkpoint_id: str | None
) -> tuple[list[Trained], int]:
    """What is told, and how many checkpoints of the simulated market are not."""
    if checkpoint_id is not None:
        named = [t for t in found if t.checkpoint_id == checkpoint_id]
        if not named:
            raise PublishingError(
                f"There is no trained checkpoint {checkpoint_id!r}; a base model is not published. In SQL: "
                "SELECT checkpoint_id FROM babylon_rl.checkpoints WHERE step > 0."
            )
        return named, 0
    chosen = []
    simulated = 0
    for trained in found:
        standing = trained.checkpoint_id in there[MODELS] or trained.job_id in there[BATCHES]
        # Weights that are gone are no news to who never knew of them.
        if standing or not (trained.simulated or trained.checkpoint_state == "deleted"):
            chosen.append(trained)
        else:
            simulated += trained.simulated and trained.checkpoint_id is not None
    return chosen, simulated


def _finished(ours: psycopg.Connection) -> list[Trained]:
    """Attempts that ended, with their checkpoints, in the order in which they ended; one statement, one snapshot."""
    with ours.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """SELECT coalesce(c.training_run, parent.training_run) AS training_run,
                   c.checkpoint_id, coalesce(c.path, c.inference_name) AS path, c.state AS checkpoint_state, c.metrics,
                   c.created_at AS trained_at,
                   a.job_id, a.snapshot_id, a.state, a.error, a.created_at AS started_at, a.finished_at,
                   coalesce(c.base_model, parent.base_model) AS base_model, s.window_ids,
                   coalesce(r.schedule <> '{}' AND NOT jsonb_exists(r.schedule, 'batches'), false) AS simulated,
                   (SELECT max(p.promoted_at) FROM babylon_rl.promotions p
                    WHERE p.to_checkpoint = c.checkpoint_id) AS promoted_at
               FROM (SELECT * FROM babylon_rl.checkpoints WHERE step > 0) c
               FULL JOIN (SELECT * FROM babylon_rl.training_attempts WHERE state IN ('done', 'failed')) a
                   ON a.snapshot_id = c.snapshot_id AND a.parent_id = c.parent_id
               LEFT JOIN babylon_rl.checkpoints parent ON parent.checkpoint_id = a.parent_id
               LEFT JOIN babylon_rl.snapshots s ON s.snapshot_id = a.snapshot_id
               LEFT JOIN babylon_rl.training_runs r ON r.training_run = coalesce(c.training_run, parent.training_run)
               ORDER BY coalesce(c.created_at, a.created_at), coalesce(c.checkpoint_id, a.job_id)"""
        ).fetchall()
    return [msgspec.convert(row, Trained) for row in rows]


def _evaluations(ours: psycopg.Connection, checkpoints: list[str]) -> dict[str, list[Row]]:
    frame: pd.DataFrame = read_frame(
        ours, current_rows(checkpoint_evaluations).where(checkpoint_evaluations.c.candidate.in_(checkpoints))
    )
    own: dict[str, list[Row]] = {}
    for row in frame.to_dict("records"):
        own.setdefault(row["candidate"], []).append(row)
    return own


# --- the application's tables ----------------------------------------------------------------------


_STANDING = {
    MODELS: """SELECT "modelId", version, "baseModel", "trainingBatch", status, "deployedAt", "archivedAt",
                   "storagePath", "avgReward", "evalMetrics"
               FROM trained_models ORDER BY "modelId" FOR UPDATE""",
    BATCHES: """SELECT "batchId", "scenarioId", "baseModel", "modelVersion", "trainingLoss", status, error,
                   "startedAt", "completedAt"
                FROM training_batches ORDER BY "batchId" """,
}


def _standing(target: psycopg.Connection, table: str) -> dict[str, Row]:
    with target.cursor(row_factory=dict_row) as cursor:
        return {row[KEYS[table]]: row for row in cursor.execute(_STANDING[table]).fetchall()}


def _write(
    target: psycopg.Connection, there: dict[str, dict[str, Row]], wanted: _Wanted, now: datetime
) -> list[Change]:
    """Insert what is missing and update what differs: batches first, which models name."""
    changes = []
    for table in (BATCHES, MODELS):
        # `updatedAt` has no default there; `training_batches` has no such column.
        stamp = {"updatedAt": moment(now)} if table == MODELS else {}
        for row in wanted.rows[table]:
            key = row[KEYS[table]]
            standing = there[table].get(key)
            if standing is None:
                columns = {"id": snowflake(f"{table}:{key}"), **row, **wanted.new[table, key], **stamp}
                _insert(target, table, columns)
            else:
                columns = changed(standing, row)
                if not columns:
                    continue
                _update(target, table, key, {**columns, **stamp})
            changes.append(
                Change(
                    table=table,
                    key=key,
                    version=row["version"] if table == MODELS else row["modelVersion"],
                    status=row["status"],
                    inserted=standing is None,
                    columns=tuple(columns),
                )
            )
    return changes


def _insert(target: psycopg.Connection, table: str, row: Row) -> None:
    target.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join([sql.Placeholder()] * len(row)),
        ),
        [_value(value) for value in row.values()],
    )


def _update(target: psycopg.Connection, table: str, key: str, row: Row) -> None:
    target.execute(
        sql.SQL("UPDATE {} SET {} WHERE {} = %s").format(
            sql.Identifier(table),
            sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in row),
            sql.Identifier(KEYS[table]),
        ),
        [*(_value(value) for value in row.values()), key],
    )


def _value(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict) else value


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever the application's database refuses, as a PublishingError with what to do."""
    try:
        yield
    except DatabaseError as error:
        what = error.what if isinstance(error, Unreachable) else str(error)
        raise PublishingError(
            f"Nothing was published. {what} BABYLON_RL_PUBLISH_URL names it: see that the server runs and that the URL "
            "is right, or leave the variable empty."
        ) from None
    except psycopg.Error as error:
        said = (str(error).strip().splitlines() or ["no detail"])[0]
        raise PublishingError(f"Nothing was published to {redacted(url)}: {said}. {_remedy(error)}") from error


def _remedy(error: psycopg.Error) -> str:
    match error:
        case psycopg.errors.ReadOnlySqlTransaction():
            return (
                "The role of BABYLON_RL_PUBLISH_URL, or that server, only reads: name the primary server and have the "
                "owner run ALTER ROLE … RESET default_transaction_read_only, or name another role."
            )
        case psycopg.errors.InsufficientPrivilege():
            return (
                "Have the owner run GRANT SELECT, INSERT, UPDATE ON trained_models, training_batches TO the role of "
                "BABYLON_RL_PUBLISH_URL; no other right is needed."
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn() | psycopg.errors.InvalidSchemaName():
            return (
                "BABYLON_RL_PUBLISH_URL must name the application's database, with its schema as Prisma does "
                "(?schema=…) where that is not public."
            )
        case psycopg.IntegrityError() | psycopg.DataError():
            return "The application's tables are not those of the Prisma schema that is known here; report it."
    return "All is as it was; `babylon-rl publish` tries again."
