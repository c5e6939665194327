"""An update's work between the ledger and the trainer's process: who makes it, and what is booked where it fails."""

import contextlib
from collections.abc import Callable, Iterator

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training.backends.hosted import result_of
from babylon_rl.training.checkpoint_store import keep, take_up
from babylon_rl.training.ledger import begin_local, failed, is_hosted, load_job, what_to_do
from babylon_rl.training.locks import working_on
from babylon_rl.training.trainer import TrainerRequest, TrainerResult

# Starts the trainer's process for a request and waits for its result.
Launch = Callable[[TrainerRequest], TrainerResult]


@contextlib.contextmanager
def trained(database: Database, settings: Settings, request: TrainerRequest, launch: Launch) -> Iterator[TrainerResult]:
    """The result of the request's job, which the block books; an update that is there starts no process.

    A job of a service is moved by the process that asks the service. A local one is this process's: whatever ends it
    before it is booked, a Ctrl-C too, leaves it `failed`, and the next attempt takes it up.
    """
    if is_hosted(request.backend):
        with database.connect() as connection:
            job = load_job(connection, request.job_id)
        if job.state in ("failed", "cancelled"):  # it waits for a person: a process would only say so
            raise TrainingError(what_to_do(job))
        yield result_of(job) if job.state == "done" else launch(request)
        return
    with working_on(database, request.job_id) as connection:
        job = begin_local(connection, request.job_id)
        if job.state not in ("running", "done"):
            raise TrainingError(what_to_do(job))
        try:
            yield keep(settings, request, take_up(settings, request) or launch(request))
        except BaseException as error:
            failed(connection, request.job_id, _said(error))
            raise


def _said(error: BaseException) -> str:
    if isinstance(error, Exception):
        return f"{type(error).__name__}: {error}"
    return f"interrupted ({type(error).__name__})"
