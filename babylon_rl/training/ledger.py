"""The ledger of training jobs: at most one for a snapshot, a parent and settings, and what is known of each.

A job is written down before anything is sent, `submitting` before it is sent, and its remote id before it is polled, so
that whoever takes it up after a crash knows what may have happened. Each move is one transaction of its own that
expects the state it comes from; a trigger in the database refuses all others and books each.
"""

import hashlib
import os
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.errors import TrainingError

# Backends whose jobs run at a service: what happened there is not known from here, and costs money twice.
HOSTED = frozenset({"wandb"})
MOST_SAID = 500  # characters of an error that are kept

Steps = Sequence[tuple[str, dict[str, float]]]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger. `steps`: metrics of each gradient step by the event's id, as far as events were read.

    `window_id`: the window that ends its update.
    """

    job_id: str
    snapshot_id: str
    parent_id: str
    settings_digest: str
    backend: str
    state: str
    step_before: int
    submissions: int
    created_at: datetime
    remote_model: str | None = None
    remote_model_id: str | None = None
    remote_job_id: str | None = None
    cursor: str | None = None
    deadline: datetime | None = None
    step_after: int | None = None
    window_id: str | None = None
    metrics: dict[str, Any] | None = None
    error: str | None = None
    actor: str | None = None
    finished_at: datetime | None = None

    @property
    def hosted(self) -> bool:
        """Whether it runs at a service."""
        return is_hosted(self.backend)

    @property
    def steps(self) -> list[tuple[str, dict[str, float]]]:
        """Id and metrics of each gradient step, in the order in which they were read."""
        return [(name, dict(values)) for name, values in (self.metrics or {}).get("steps", ())]


def is_hosted(backend: str) -> bool:
    """Whether the backend's jobs run at a service, which then moves them in the ledger by itself."""
    return backend in HOSTED


def job_id_of(parent_id: str, snapshot_id: str, settings_digest: str) -> str:
    """The job's key: one for the same training set and settings on top of the same parent."""
    return hashlib.sha256(f"{parent_id}\n{snapshot_id}\n{settings_digest}".encode()).hexdigest()


def this_process() -> str:
    """Who makes a move, where no person is named."""
    return f"process {os.getpid()} on {socket.gethostname()}"


# --- reading ---------------------------------------------------------------------------------------

_JOB = """SELECT job_id, snapshot_id, parent_id, settings_digest, backend, state, step_before, submissions, created_at,
       remote_model, remote_model_id, remote_job_id, cursor, deadline, step_after, window_id, metrics, error, actor,
       finished_at
FROM babylon_rl.training_attempts """
_BY_ID = _JOB + "WHERE job_id = %s"
_BY_ID_FOR_UPDATE = _BY_ID + " FOR UPDATE"
_BY_PREFIX = _JOB + "WHERE starts_with(job_id, %s) ORDER BY job_id LIMIT 3"
_NEWEST = _JOB + "ORDER BY created_at DESC, job_id LIMIT %s"
_IN_THE_WAY = _JOB + "WHERE remote_model = %s AND job_id <> %s AND state IN ('submitting', 'running', 'in_doubt')"
_ON_PARENT = _JOB + "WHERE parent_id = %s AND backend = ANY(%s) AND state IN ('failed', 'cancelled', 'in_doubt')"


def _jobs(connection: psycopg.Connection, query: str, parameters: tuple) -> list[Job]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return [msgspec.convert(row, Job) for row in cursor.execute(query, parameters).fetchall()]


def load_job(connection: psycopg.Connection, job_id: str) -> Job:
    """The job of that id; TrainingError where there is none."""
    found = _jobs(connection, _BY_ID, (job_id,))
    if not found:
        raise TrainingError(f"The ledger has no job {job_id[:12]}. `babylon-rl jobs` lists what there is.")
    return found[0]


def find_job(connection: psycopg.Connection, beginning: str) -> Job:
    """The one job whose id begins so; TrainingError where there is none, or more than one."""
    found = _jobs(connection, _BY_PREFIX, (beginning.strip().lower(),)) if beginning.strip() else []
    if len(found) == 1:
        return found[0]
    several = f"begins the ids {', '.join(job.job_id[:16] for job in found)}" if found else "is no job's id"
    raise TrainingError(f"{beginning!r} {several}. `babylon-rl jobs` lists what there is.")


def list_jobs(connection: psycopg.Connection, most: int = 50) -> list[Job]:
    """Jobs, the newest first."""
    return _jobs(connection, _NEWEST, (most,))


def held_jobs(connection: psycopg.Connection, parent_id: str) -> list[Job]:
    """Jobs of services on top of the parent that wait for a person: in doubt, failed there, or cancelled."""
    return _jobs(connection, _ON_PARENT, (parent_id, list(HOSTED)))


def windows_of_job(connection: psycopg.Connection, job: Job) -> list[str]:
    """Windows that the job's snapshot holds, in order."""
    found = connection.execute(
        "SELECT window_ids FROM babylon_rl.snapshots WHERE snapshot_id = %s", (job.snapshot_id,)
    ).fetchone()
    return sorted(found[0]) if found else []


def what_to_do(job: Job) -> str:
    """Where the job stands, for a person, with the command that goes on from there."""
    short, why = job.job_id[:12], job.error or "no error is known"
    match job.state:
        case "in_doubt":
            return (
                f"Job {short} is in doubt: {why}. It is not sent again by itself. `babylon-rl jobs settle {short}` "
                "compares the model's step again; with --not-trained it books your word that it never ran."
            )
        case "failed" if job.hosted:
            return (
                f"Job {short} failed at the service: {why}. The parent stays. `babylon-rl jobs retry {short}` has it "
                "submitted once more; a run of another name (`babylon-rl train --name NAME`) does without it."
            )
        case "cancelled" if job.hosted:
            return f"Job {short} was cancelled. `babylon-rl jobs retry {short}` has it submitted."
        case "failed" | "cancelled":
            return f"Job {short} is {job.state}: {why}. Computing trained_checkpoints of its windows takes it up."
        case "written":
            said = f" {job.error}" if job.error else ""
            return f"Job {short} is written down.{said} Computing trained_checkpoints of its windows begins it."
        case "done":
            return f"Job {short} is done."
    return (
        f"Job {short} is {job.state}. Where no process works on it, computing trained_checkpoints of its windows goes "
        f"on with it{', and nothing is sent twice' if job.hosted else ''}."
    )


def moves_of(connection: psycopg.Connection, job_id: str) -> list[dict[str, Any]]:
    """The job's moves as they were booked, the first one first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """SELECT at, before, after, remote_job_id, actor, detail FROM babylon_rl.training_attempt_log
               WHERE job_id = %s ORDER BY move_id""",
            (job_id,),
        ).fetchall()


# --- moves -----------------------------------------------------------------------------------------


def open_job(
    connection: psycopg.Connection,
    snapshot_id: str,
    parent_id: str,
    settings_digest: str,
    backend: str,
    step_before: int,
    window_id: str | None = None,
) -> Job:
    """Write the job down in the caller's transaction, or hand out the one that is there.

    A local one that failed or was cancelled is taken up. One of a service is not: that would train, and cost, again.
    """
    job_id = job_id_of(parent_id, snapshot_id, settings_digest)
    with connection.transaction():
        connection.execute(
            """INSERT INTO babylon_rl.training_attempts
               (job_id, snapshot_id, parent_id, settings_digest, backend, state, step_before, actor, window_id)
               VALUES (%s, %s, %s, %s, %s, 'written', %s, %s, %s) ON CONFLICT (job_id) DO NOTHING""",
            (job_id, snapshot_id, parent_id, settings_digest, backend, step_before, this_process(), window_id),
        )
        job = _locked(connection, job_id)
        if job.state in ("failed", "cancelled") and not job.hosted:
            job = _save(connection, job, state="written", error=None, finished_at=None)
    return job


def begin_local(connection: psycopg.Connection, job_id: str) -> Job:
    """This process trains the job now; also where one that died was at it. One that is done stays so."""
    return _move(connection, job_id, ("written",), "running", stays=("running", "done"))


def before_submitting(
    connection: psycopg.Connection,
    job_id: str,
    remote_model: str,
    remote_model_id: str,
    step_before: int,
    deadline: datetime,
) -> Job:
    """The job leaves for the service now. Committed when this returns: what comes after may have reached the service.

    TrainingError where another job writes that model, for then a step could not be told to be one's or the other's.
    """
    _by_itself(connection)
    try:
        with connection.transaction():
            job = _locked(connection, job_id)
            _expect(job, ("written",), "submitting")
            return _save(
                connection,
                job,
                state="submitting",
                submissions=job.submissions + 1,
                remote_model=remote_model,
                remote_model_id=remote_model_id,
                remote_job_id=None,
                cursor=None,
                metrics=None,
                step_before=step_before,
                deadline=deadline,
                error=None,
            )
    except psycopg.errors.UniqueViolation:
        others = _jobs(connection, _IN_THE_WAY, (remote_model, job_id))
        connection.commit()
        raise TrainingError(_in_the_way(remote_model, others)) from None


def _in_the_way(remote_model: str, others: list[Job]) -> str:
    if not others:  # it ended in between
        return f"Another job wrote {remote_model} just now. Run the command again."
    other = others[0]
    return (
        f"Job {other.job_id[:12]} ({other.state}) writes {remote_model}, and one job at a time may. "
        f"`babylon-rl jobs settle {other.job_id[:12]}` compares the model's step and ends it, once that can be told; "
        "then run this again. Nothing was sent."
    )


def accepted(connection: psycopg.Connection, job_id: str, remote_job_id: str) -> Job:
    """The service took the job under that id. Committed when this returns, before anything is polled."""
    _by_itself(connection)
    with connection.transaction():
        job = _locked(connection, job_id)
        # Somebody may have doubted while the answer was under way; the id is worth keeping all the same.
        _expect(job, ("submitting", "in_doubt"), "running")
        state = "running" if job.state == "submitting" else job.state
        return _save(connection, job, state=state, remote_job_id=remote_job_id)


def progress(connection: psycopg.Connection, job_id: str, cursor: str | None, steps: Steps) -> Job:
    """Events that were read: the last one's id, and the gradient steps among them. One that is there stays as it is."""
    with connection.transaction():
        job = _locked(connection, job_id)
        known = {name for name, _ in job.steps}
        fresh = [[name, values] for name, values in dict(steps).items() if name not in known]
        metrics = {**(job.metrics or {}), "steps": [*(job.metrics or {}).get("steps", ()), *fresh]}
        return _save(connection, job, cursor=cursor or job.cursor, metrics=metrics if fresh else job.metrics)


def done(connection: psycopg.Connection, job_id: str, step_after: int, actor: str | None = None) -> Job:
    """The step is there; also where that was found out after a doubt. A job that is done stays as it is."""
    before = ("submitting", "running", "in_doubt")
    return _move(
        connection, job_id, before, "done", stays=("done",), actor=actor, ends=True, step_after=step_after, error=None
    )


def failed(connection: psycopg.Connection, job_id: str, error: str, actor: str | None = None) -> Job:
    """It is known that no step came of it. What ended otherwise in the meantime stays."""
    before = ("written", "submitting", "running", "in_doubt")
    stays = ("failed", "cancelled", "done")
    return _move(connection, job_id, before, "failed", stays=stays, actor=actor, ends=True, error=error)


def not_accepted(connection: psycopg.Connection, job_id: str, error: str) -> Job:
    """The service is known not to have taken it: it may be submitted again."""
    return _move(connection, job_id, ("submitting",), "written", error=error, deadline=None)


def in_doubt(connection: psycopg.Connection, job_id: str, reason: str) -> Job:
    """It may have been trained or still be: nothing submits it again by itself."""
    return _move(connection, job_id, ("submitting", "running"), "in_doubt", stays=("in_doubt",), error=reason)


def noted(connection: psycopg.Connection, job_id: str, error: str) -> Job:
    """Why the job stands where it stands, without a move."""
    with connection.transaction():
        return _save(connection, _locked(connection, job_id), error=error)


def cancel(connection: psycopg.Connection, job_id: str, actor: str) -> Job:
    """End a job that was not sent, or that is trained here. TrainingError where it was sent."""
    with connection.transaction():
        job = _locked(connection, job_id)
        if job.hosted and job.state != "written":
            _expect(job, (), "cancelled")
        _expect(job, ("written", "running"), "cancelled")
        return _save(connection, job, actor=actor, ends=True, state="cancelled", error=f"cancelled by {actor}")


def retry(connection: psycopg.Connection, job_id: str, actor: str) -> Job:
    """A person has a job that failed or was cancelled submitted again; the log keeps what was known of it."""
    return _move(
        connection,
        job_id,
        ("failed", "cancelled"),
        "written",
        actor=actor,
        error=None,
        remote_job_id=None,
        cursor=None,
        deadline=None,
        metrics=None,
        finished_at=None,
    )


def _move(
    connection: psycopg.Connection,
    job_id: str,
    before: tuple[str, ...],
    after: str,
    *,
    stays: tuple[str, ...] = (),
    actor: str | None = None,
    ends: bool = False,
    **values: Any,
) -> Job:
    """The job in its new state; TrainingError unless it comes from one of `before`. In one of `stays` nothing moves."""
    with connection.transaction():
        job = _locked(connection, job_id)
        if job.state in stays:
            return job
        _expect(job, before, after)
        return _save(connection, job, actor=actor, ends=ends, state=after, **values)


def _expect(job: Job, before: tuple[str, ...], after: str) -> None:
    if job.state not in before:
        raise TrainingError(
            f"Job {job.job_id[:12]} is {job.state} and cannot become {after}. "
            f"`babylon-rl jobs show {job.job_id[:12]}` says what was done with it and what can be."
        )


def _locked(connection: psycopg.Connection, job_id: str) -> Job:
    found = _jobs(connection, _BY_ID_FOR_UPDATE, (job_id,))
    return found[0] if found else load_job(connection, job_id)


def _save(
    connection: psycopg.Connection, job: Job, *, actor: str | None = None, ends: bool = False, **values: Any
) -> Job:
    """Write the locked row with these values; a job that `ends` gets its time."""
    if isinstance(values.get("error"), str):
        values["error"] = values["error"][:MOST_SAID]
    changed = msgspec.structs.replace(job, **values, actor=actor or this_process())
    row = {name: getattr(changed, name) for name in Job.__struct_fields__}
    connection.execute(
        """UPDATE babylon_rl.training_attempts SET state = %(state)s, step_before = %(step_before)s,
               submissions = %(submissions)s, remote_model = %(remote_model)s, remote_model_id = %(remote_model_id)s,
               remote_job_id = %(remote_job_id)s, cursor = %(cursor)s, deadline = %(deadline)s,
               step_after = %(step_after)s, metrics = %(metrics)s, error = %(error)s, actor = %(actor)s,
               finished_at = CASE WHEN %(ends)s THEN now() ELSE %(finished_at)s END
           WHERE job_id = %(job_id)s""",
        {**row, "metrics": None if changed.metrics is None else Jsonb(changed.metrics), "ends": ends},
    )
    return changed


def _by_itself(connection: psycopg.Connection) -> None:
    """What others must be able to read before the next thing happens is not part of a longer transaction."""
    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise RuntimeError("a transaction is open, and this move must be committed when it returns")
