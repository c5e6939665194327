"""Backend `wandb`: an update made by the hosted service through ART's own client, submitted at most once.

ART's `train` loses a job's id on an error and polls for ever, so its client is asked for each call by itself and the
ledger is told before the next. Whatever is not known afterwards is settled by the one thing that the service keeps: the
model's step.
"""

import asyncio
import itertools
import math
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.settings import Settings
from babylon_rl.training import ledger
from babylon_rl.training.backends.hosted_service import (
    Remote,
    Unsure,
    closing,
    events_of,
    opened_service,
    patiently,
    question,
    step_of,
    submit,
)
from babylon_rl.training.backends.submission import Submission, cost_refused, model_name, prepare_submission
from babylon_rl.training.ledger import Job
from babylon_rl.training.locks import working_on
from babylon_rl.training.runs import load_checkpoint
from babylon_rl.training.trainer import Report, TrainerRequest, TrainerResult

STEP_OF = re.compile(r":step(\d+)$")
ENDS = ("training_ended", "training_failed")


# --- entry -----------------------------------------------------------------------------------------


def train_hosted(request: TrainerRequest, database: Database, settings: Settings, report: Report) -> TrainerResult:
    """The update of the request, whose job is in the ledger: submitted, followed, adopted, or handed out again.

    TrainingError says what is known and what to do: nothing was sent, the job failed, or it is in doubt.
    """
    with database.connect() as connection:
        job = ledger.load_job(connection, request.job_id)
    if job.state == "done":
        return result_of(job)
    with working_on(database, request.job_id) as connection, opened_service(settings) as remote:
        job = asyncio.run(closing(remote, _attempt(remote, connection, request, settings, report)))
    return result_of(job)


def settle(database: Database, settings: Settings, job_id: str, actor: str) -> Job:
    """Compare the remote model's step with the job's, now: adopted where it advanced by one, else as it was."""
    with working_on(database, job_id) as connection, opened_service(settings) as remote:

        async def look() -> Job:
            job = ledger.load_job(connection, job_id)
            connection.commit()
            assert job.remote_model_id is not None
            step = await patiently(remote, partial(step_of, remote, str(job.remote_model_id)), "read the model's step")
            if step == job.step_before + 1:
                return ledger.done(connection, job_id, step, actor)
            return ledger.noted(connection, job_id, _stands(job, step))

        return asyncio.run(closing(remote, look()))


def _stands(job: Job, step: int) -> str:
    if step == job.step_before:
        return f"the model still stands at step {step}: it was not trained until {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return (
        f"the model went from step {job.step_before} to {step}: whether one of these steps is this job's is not known"
    )


def result_of(job: Job) -> TrainerResult:
    """The checkpoint of a job that is done, from the ledger alone."""
    steps = [values for _, values in job.steps]
    url, _, path = (job.remote_model or " ").partition(" ")
    return TrainerResult(
        folder=None,
        weights_sha256=None,
        metrics=_means(steps),
        steps=steps,
        inference_url=url,
        inference_name=f"wandb-artifact:///{path}:step{job.step_after}",
        step=job.step_after,
    )


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for values in steps for name in values})
    found = {name: [values[name] for values in steps if name in values] for name in names}
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


# --- one attempt -----------------------------------------------------------------------------------


async def _attempt(
    remote: Remote, connection: psycopg.Connection, request: TrainerRequest, settings: Settings, report: Report
) -> Job:
    """Whatever the ledger says of the job, go on from there; the job when it is done, else TrainingError."""
    job = ledger.load_job(connection, request.job_id)
    parent_step = remote_step_of(connection, request.parent_id)
    snapshot = load_snapshot(connection, request.snapshot_id) if job.state == "written" else None
    connection.commit()
    submission = None
    if snapshot is not None:
        submission = prepare_submission(snapshot, request.recipe)
        if refused := cost_refused(submission, settings):
            ledger.noted(connection, job.job_id, refused)
            raise TrainingError(refused)
    name = (settings.wandb_entity, settings.wandb_project, model_name(request.training_run), request.base_model)
    return await take_up(remote, connection, request.job_id, submission, ModelName(*name), parent_step, report)


class ModelName(NamedTuple):
    """The model at the service: whose it is, in which project, and what it was made from."""

    entity: str | None
    project: str
    name: str
    base_model: str


def remote_step_of(connection: psycopg.Connection, checkpoint_id: str) -> int:
    """Step of the remote model at a checkpoint; 0 for the base model. TrainingError for one that is not there."""
    checkpoint = load_checkpoint(connection, checkpoint_id)
    if checkpoint.step == 0:
        return 0
    found = STEP_OF.search(checkpoint.inference_name or "")
    if found is None:
        raise TrainingError(
            f"The parent {checkpoint_id} was made by {checkpoint.backend or 'another backend'}, and the hosted service "
            "trains only what it holds itself. Start a run of another name with `babylon-rl train --name NAME`."
        )
    return int(found[1])


async def take_up(
    remote: Remote,
    connection: psycopg.Connection,
    job_id: str,
    submission: Submission | None,
    name: ModelName,
    parent_step: int,
    report: Report,
) -> Job:
    """Submit a job that is `written`, follow one that is under way, look after one in doubt."""
    job = ledger.load_job(connection, job_id)
    connection.commit()
    if job.state == "written":
        assert submission is not None
        job = await _submit(remote, connection, job, submission, name, parent_step)
    if job.state in ("submitting", "running"):
        job = await _follow(remote, connection, job, report)
    elif job.state == "in_doubt":
        step = await patiently(remote, partial(step_of, remote, str(job.remote_model_id)), "read the model's step")
        if step == job.step_before + 1:
            job = ledger.done(connection, job_id, step)
    if job.state != "done":
        raise TrainingError(ledger.what_to_do(job))
    return job


async def _submit(
    remote: Remote,
    connection: psycopg.Connection,
    job: Job,
    submission: Submission,
    name: ModelName,
    parent_step: int,
) -> Job:
    """The job after its submission: `running`, or `submitting` where it may have arrived; else TrainingError."""
    import art

    model = art.TrainableModel(
        name=name.name, project=name.project, entity=name.entity, base_model=name.base_model, report_metrics=[]
    )
    await patiently(remote, partial(remote.backend.register, model), "register the model")
    model_id = str(model.id)
    step = await patiently(remote, partial(step_of, remote, model_id), "read the model's step")
    remote_model = f"{remote.url} {model.entity}/{name.project}/{name.name}"
    if step != parent_step:
        said = (
            f"{remote_model} stands at step {step}, and the parent is its step {parent_step}: someone else trained it, "
            "or the run was led back. The service trains on a model's latest step alone; nothing was sent. Start a run "
            "of another name with `babylon-rl train --name NAME`."
        )
        ledger.noted(connection, job.job_id, said)
        raise TrainingError(said)
    deadline = datetime.now(UTC) + timedelta(seconds=remote.limits.deadline)
    ledger.before_submitting(connection, job.job_id, remote_model, model_id, step, deadline)
    try:
        remote_job_id = await submit(remote, model_id, submission)
    except TrainingError as refused:
        ledger.not_accepted(connection, job.job_id, str(refused))
        raise
    except Unsure as unsure:
        return ledger.noted(connection, job.job_id, str(unsure))
    return ledger.accepted(connection, job.job_id, remote_job_id)


# --- following -------------------------------------------------------------------------------------


async def _follow(remote: Remote, connection: psycopg.Connection, job: Job, report: Report) -> Job:
    """Wait for the job's end, at most until its deadline: done, failed or in doubt.

    Its end is the model's step. Events alone end nothing but a failure: one may be lost, or come before the step.
    """
    failure, ended, quiet = None, False, 0
    while True:
        late = job.deadline is None or datetime.now(UTC) >= job.deadline  # and it is looked at once more
        events = await question(remote, partial(events_of, remote, job)) if job.remote_job_id else []
        if events:
            job = _read(connection, job, events, report)
            failure = next((_why(event) for event in events if event.type == "training_failed"), failure)
            ended = ended or any(event.type == "training_ended" for event in events)
        step = await question(remote, partial(step_of, remote, str(job.remote_model_id)))
        if step is not None:
            job = _ended(connection, job, step, failure)
        if job.state not in ("submitting", "running"):
            return job
        if late:
            return ledger.in_doubt(connection, job.job_id, _doubt(job, step, ended))
        quiet = 0 if step is not None else min(quiet + 1, 3)
        await asyncio.sleep(remote.limits.poll * 2**quiet)


def _ended(connection: psycopg.Connection, job: Job, step: int, failure: str | None) -> Job:
    """What the model's step says of the job."""
    if step == job.step_before:
        return ledger.failed(connection, job.job_id, failure) if failure else job
    if step == job.step_before + 1 and not failure:
        return ledger.done(connection, job.job_id, step)
    why = _stands(job, step) if not failure else f"the job failed ({failure}), and yet the model is at step {step}"
    return ledger.in_doubt(connection, job.job_id, why)


def _doubt(job: Job, step: int | None, ended: bool) -> str:
    known = "could not be read" if step is None else f"is still {step}"
    if ended:
        return f"the service says that it ended, and the model's step {known} after the deadline"
    sent = f"{job.error}, and " if job.remote_job_id is None and job.error else ""
    return f"{sent}the model's step {known} at the deadline {job.deadline:%Y-%m-%d %H:%M} UTC"


def _read(connection: psycopg.Connection, job: Job, events: list[Any], report: Report) -> Job:
    """Book the events, and tell of those gradient steps that were not known.

    The cursor stays before an end, so that who takes the job up reads it again.
    """
    known = {name for name, _ in job.steps}
    steps = {event.id: _numbers(event.data) for event in events if event.type == "gradient_step"}
    before = list(itertools.takewhile(lambda event: event.type not in ENDS, events))
    if set(steps) - known or before:
        cursor = before[-1].id if before else job.cursor
        job = ledger.progress(connection, job.job_id, cursor, list(steps.items()))
    for name, values in steps.items():
        if name not in known:
            report({**values, "step": float(len(known) + 1)})
            known.add(name)
    return job


def _numbers(data: Any) -> dict[str, float]:
    """What of an event's data is a finite number, under ART's names where those differ."""
    found = data.items() if isinstance(data, dict) else ()
    return {
        str(name): float(value)
        for name, value in found
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _why(event: Any) -> str:
    data = event.data if isinstance(event.data, dict) else {}
    return str(data.get("error_message") or "the service does not say why")[: ledger.MOST_SAID]
