"""The commands `babylon-rl jobs …`: what the ledger of training jobs knows, and what a person decides about one."""

import getpass
import json
import os
import signal
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, print_table, settings_for
from babylon_rl.errors import TrainingError

app = typer.Typer(help="Training jobs: where each stands, and what to do about it.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its first characters.")]
CUT = 12  # characters of an id that are shown


@app.callback(invoke_without_command=True)
def jobs(
    context: typer.Context,
    most: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many.")] = 20,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List training jobs, the newest first, with what is to be done about each."""
    if context.invoked_subcommand is not None:
        return
    from babylon_rl.training.ledger import list_jobs, what_to_do
    from babylon_rl.training.locks import worker_of

    with _opened(database).connect() as connection:
        found = [(job, worker_of(connection, job.job_id)) for job in list_jobs(connection, most)]
    if as_json:
        print(json.dumps([_told(job, worker) for job, worker in found]))
        return
    if not found:
        console.print("No training job was ever written down. `babylon-rl train` makes one.")
        return
    table = Table(box=SIMPLE, padding=(0, 1))
    for name in ("job", "state", "age", "backend", "remote id", "what to do"):
        table.add_column(name, no_wrap=name not in ("what to do", "remote id"))
    now = datetime.now(UTC)
    for job, worker in found:
        to_do = "" if job.state == "done" else "a process works on it" if worker else what_to_do(job)
        cells = (job.job_id[:CUT], job.state, _age(now, job.created_at), job.backend, job.remote_job_id or "", to_do)
        table.add_row(*map(escape, cells))
    print_table(table)


@app.command("show")
def show(job: IdArgument, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """All that is known of a job: what it trains, every move with its time, and what to do."""
    from babylon_rl.training.ledger import find_job, moves_of, what_to_do, windows_of_job
    from babylon_rl.training.locks import worker_of

    with _opened(database).connect() as connection:
        found = find_job(connection, job)
        worker = worker_of(connection, found.job_id)
        moves = moves_of(connection, found.job_id)
        windows = windows_of_job(connection, found)
    if as_json:
        print(json.dumps({**_told(found, worker), "windows": windows, "moves": msgspec.to_builtins(moves)}))
        return
    about = {
        "job": found.job_id,
        "state": found.state,
        "backend": found.backend,
        "parent": found.parent_id,
        "snapshot": found.snapshot_id,
        "windows": f"{len(windows)}, from {windows[0]} to {windows[-1]}" if windows else "none",
        "remote model": found.remote_model,
        "remote job": found.remote_job_id,
        "step": f"{found.step_before} before, {'-' if found.step_after is None else found.step_after} after",
        "submitted": f"{found.submissions} times" if found.hosted else None,
        "deadline": None if found.deadline is None else f"{found.deadline:%Y-%m-%d %H:%M} UTC",
        "works on it": None if worker is None else f"process {worker.pid} on {worker.host}",
        "error": found.error,
    }
    for name, value in about.items():
        if value is not None:
            console.print(f"{name:<13} {escape(str(value))}", soft_wrap=True)
    for move in moves:
        detail = f": {move['detail']}" if move["detail"] else ""
        line = f"{move['at']:%Y-%m-%d %H:%M:%S} {move['before'] or '-'} -> {move['after']} by {move['actor']}{detail}"
        console.print(f"  {escape(line)}", soft_wrap=True)
    console.print(what_to_do(found), soft_wrap=True, markup=False)


@app.command("settle")
def settle(
    job: IdArgument,
    not_trained: Annotated[
        bool, typer.Option("--not-trained", help="Book your word that the service never trained it.")
    ] = False,
    database: DatabaseOption = None,
) -> None:
    """End a doubt: compare the remote model's step now; where it advanced by one, adopt the job and its checkpoint.

    `--not-trained` asks nobody: look into the service's own pages before.

    Were it trained all the same, the next job of that model would find another step than it expects, and be refused.
    """
    from babylon_rl.training.backends.hosted import settle as compare
    from babylon_rl.training.booking import book_adopted
    from babylon_rl.training.ledger import failed

    settings, opened = settings_for(database), _opened(database)
    found = _of_a_service(opened, job, ("submitting", "running", "in_doubt"))
    _alone(opened, found)
    if not_trained:
        with opened.connect() as connection:
            who = _person()
            failed(connection, found.job_id, f"{who} says that it was never trained", actor=who)
        console.print(
            f"Booked: job {found.job_id[:CUT]} was never trained. Next: babylon-rl jobs retry {found.job_id[:CUT]} "
            "submits it once more; a run of another name (babylon-rl train --name NAME) does without it.",
            soft_wrap=True,
        )
        return
    settled = compare(opened, settings, found.job_id, _person())
    if settled.state == "done":
        with opened.connect() as connection:
            booked = book_adopted(connection, settled)
        console.print(f"Adopted: step {settled.step_after} of {settled.remote_model} is this job's.", soft_wrap=True)
        if booked is not None:
            console.print(f"Booked: checkpoint {booked.checkpoint_id}, of {booked.last_window}.", soft_wrap=True)
        console.print(
            f"Next: {_again(opened, settled)}, which goes on from its checkpoint and sends nothing.", soft_wrap=True
        )
        return
    console.print(
        f"Job {settled.job_id[:CUT]} stays {settled.state}: {settled.error}. Look again later, or, where the service's "
        f"own pages show that it never ran: babylon-rl jobs settle {settled.job_id[:CUT]} --not-trained",
        soft_wrap=True,
        markup=False,
    )
    raise typer.Exit(1)


@app.command("retry")
def retry(job: IdArgument, database: DatabaseOption = None) -> None:
    """Have a job that failed or was cancelled made once more: at a service it costs once more."""
    from babylon_rl.training.ledger import find_job
    from babylon_rl.training.ledger import retry as write_again

    opened = _opened(database)
    with opened.connect() as connection:
        found = write_again(connection, find_job(connection, job).job_id, _person())
    console.print(f"Job {found.job_id[:CUT]} is written down again. Next: {_again(opened, found)}", soft_wrap=True)


@app.command("cancel")
def cancel(job: IdArgument, database: DatabaseOption = None) -> None:
    """End a job that is trained here or was not sent yet; its process as well, where it runs on this machine.

    What was sent to a hosted service cannot be cancelled: there is no such request.
    """
    from babylon_rl.training.ledger import cancel as end
    from babylon_rl.training.ledger import find_job
    from babylon_rl.training.locks import worker_of

    opened = _opened(database)
    with opened.connect() as connection:
        found = find_job(connection, job)
        worker = worker_of(connection, found.job_id)
        if found.hosted and found.state in ("submitting", "running", "in_doubt"):
            raise TrainingError(
                f"Job {found.job_id[:CUT]} was sent to {found.remote_model}, and the service has no way to cancel a "
                "job: it is trained there to its end, and costs what it costs. Its step is adopted when it comes. "
                "Ending the process that waits here changes nothing there; the next run goes on waiting."
            )
        if worker is not None and not worker.here:
            raise TrainingError(
                f"Job {found.job_id[:CUT]} is trained by process {worker.pid} on {worker.host or 'another machine'}. "
                "Terminate its run in Dagster's UI, or run this command there; nothing was changed."
            )
        end(connection, found.job_id, _person())
    if worker is not None and worker.pid:
        # Its lock is held, so it is that very process; it ends as with Ctrl-C.
        try:
            os.kill(worker.pid, signal.SIGINT)
            console.print(f"Cancelled; process {worker.pid} was told to end.")
        except OSError as error:  # another user's, in another container, or gone this moment
            console.print(
                f"Cancelled; process {worker.pid} could not be told ({error.strerror}): what it makes is not booked. "
                "Terminate its run in Dagster's UI, should it go on.",
                soft_wrap=True,
            )
    else:
        console.print("Cancelled; no process was at work on it.")
    console.print(f"Next: babylon-rl jobs retry {found.job_id[:CUT]}, should it be made after all.", soft_wrap=True)


def _opened(database: str | None) -> Any:
    from babylon_rl.database.connect import open_materialized

    return open_materialized(settings_for(database))


def _of_a_service(opened: Any, beginning: str, states: tuple[str, ...]) -> Any:
    """The job; TrainingError where nothing about it can be settled."""
    from babylon_rl.training.ledger import find_job, what_to_do

    with opened.connect() as connection:
        found = find_job(connection, beginning)
    if found.hosted and found.state in states:
        return found
    where = "" if found.hosted else "It is trained on this machine, so that nothing about it is in doubt. "
    raise TrainingError(f"There is nothing to settle. {where}{what_to_do(found)}")


def _alone(opened: Any, job: Any) -> None:
    """TrainingError where a process works on the job, and will settle it."""
    from babylon_rl.training.locks import worker_of

    with opened.connect() as connection:
        worker = worker_of(connection, job.job_id)
    if worker is not None:
        raise TrainingError(
            f"Process {worker.pid} on {worker.host} works on job {job.job_id[:CUT]} and waits for its end; it settles "
            "it by itself."
        )


def _again(opened: Any, job: Any) -> str:
    """How the job's update is computed again, for a person."""
    from babylon_rl.training.ledger import windows_of_job

    with opened.connect() as connection:
        windows = windows_of_job(connection, job)
    last = f" with {windows[-1]}" if windows else ""
    return f"run the command that trained its windows again (or in the UI the job train_checkpoint{last})"


def _told(job: Any, worker: Any) -> dict[str, Any]:
    from babylon_rl.training.ledger import what_to_do

    return {
        **msgspec.to_builtins(job),
        "works_on_it": None if worker is None else {"pid": worker.pid, "host": worker.host},
        "what_to_do": what_to_do(job),
    }


def _person() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "a person"


def _age(now: datetime, then: datetime) -> str:
    minutes = int((now - then).total_seconds() // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} d"
