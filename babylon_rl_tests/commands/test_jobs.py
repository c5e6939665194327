"""`babylon-rl jobs …`: what a person reads of the ledger, and what the commands do to it."""

import json
import os
import signal
import socket
from datetime import UTC, datetime

import pytest

from babylon_rl.bench.training_service import API_KEY, training_service
from babylon_rl.errors import TrainingError
from babylon_rl.settings import Settings
from babylon_rl.training import ledger
from babylon_rl.training.booking import book_adopted
from babylon_rl.training.locks import working_on
from babylon_rl.training.runs import list_checkpoints
from babylon_rl.training.working import trained
from babylon_rl_tests.training.jobs import MODEL, request_of, written_job

LATER = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def jobs(run, database):
    """Function that runs `babylon-rl jobs …` on the test's database."""

    def jobs(*arguments: str, **environment: str):
        return run("jobs", *arguments, BABYLON_RL_DATABASE_URL=database.url, **environment)

    return jobs


def state_of(database, job: ledger.Job) -> str:
    with database.connect() as connection:
        return ledger.load_job(connection, job.job_id).state


def in_doubt(
    database, model_id: str = "model-1", remote_model: str = MODEL, window_id: str | None = None
) -> ledger.Job:
    job = written_job(database, window_id=window_id)
    with database.connect() as connection:
        connection.commit()
        ledger.before_submitting(connection, job.job_id, remote_model, model_id, 0, LATER)
        return ledger.in_doubt(connection, job.job_id, "answered with 524")


def test_an_empty_ledger_says_what_makes_a_job(jobs):
    assert "babylon-rl train" in jobs().stdout


def test_jobs_are_listed_with_what_to_do_and_one_is_shown_with_its_moves(jobs, database):
    job = in_doubt(database)
    listed = jobs()
    assert listed.returncode == 0 and job.job_id[:12] in listed.stdout and "settle" in listed.stdout
    (told,) = json.loads(jobs("--json").stdout)
    assert (told["job_id"], told["state"], told["works_on_it"]) == (job.job_id, "in_doubt", None)
    shown = jobs("show", job.job_id[:6]).stdout
    assert "submitting -> in_doubt" in shown and "answered with 524" in shown and MODEL in shown
    assert json.loads(jobs("show", job.job_id[:6], "--json").stdout)["moves"][1]["after"] == "submitting"


def test_an_unknown_id_is_refused_with_where_to_look(jobs):
    ended = jobs("show", "zz")
    assert ended.returncode == 1 and "babylon-rl jobs" in ended.stderr


def test_a_persons_word_ends_a_doubt_and_retry_writes_the_job_down_again(jobs, database):
    job = in_doubt(database)
    said = jobs("settle", job.job_id[:8], "--not-trained")
    assert said.returncode == 0 and f"jobs retry {job.job_id[:12]}" in said.stdout
    assert state_of(database, job) == "failed"
    assert "train_checkpoint" in jobs("retry", job.job_id[:8]).stdout
    assert state_of(database, job) == "written"
    refused = jobs("settle", job.job_id[:8])
    assert refused.returncode == 1 and "nothing to settle" in refused.stderr


def test_settling_compares_the_step_and_adopts_the_job_once_it_advanced(jobs, database):
    from babylon_rl.bench.submitting import RECIPE, snapshot_of
    from babylon_rl.training.backends.submission import prepare_submission

    with training_service(speed=None) as service:
        asked = {"WANDB_API_KEY": API_KEY, "BABYLON_RL_WANDB_TRAINING_URL": service.base_url}
        model_id = _submitted(service, prepare_submission(snapshot_of(0, 0), RECIPE).groups)
        job = in_doubt(database, model_id, f"{service.base_url} bench/p/x", "2025-01-15T03:00")
        first = jobs("settle", job.job_id[:8], **asked)
        assert first.returncode == 1 and "--not-trained" in first.stdout and "step 0" in first.stdout
        service.advance(1e6)
        second = jobs("settle", job.job_id[:8], **asked)
    assert second.returncode == 0 and "Adopted: step 1" in second.stdout and "sends nothing" in second.stdout
    assert state_of(database, job) == "done"
    # Its window is not computed again, which may have other groups by now: the checkpoint is there all the same.
    with database.connect() as connection:
        (booked,) = (one for one in list_checkpoints(connection) if one.step == 1)
        assert book_adopted(connection, ledger.load_job(connection, job.job_id)) == booked
    assert booked.checkpoint_id in second.stdout and booked.checkpoint_id.endswith(f"@1-{job.job_id[:8]}")
    assert (booked.parent_id, booked.last_window) == (job.parent_id, "2025-01-15T03:00")
    assert booked.inference_name == "wandb-artifact:///bench/p/x:step1" and booked.path is None


@pytest.mark.parametrize("end", [ledger.failed, ledger.cancel])
def test_no_process_is_started_for_a_hosted_job_that_waits_for_a_person(database, tmp_path, end):
    job = written_job(database)
    with database.connect() as connection:
        end(connection, job.job_id, "it ended")
    settings = Settings().model_copy(update={"home": tmp_path})

    def launch(request):
        raise AssertionError("a process was started")

    with pytest.raises(TrainingError, match="jobs retry"):
        with trained(database, settings, request_of(job, settings), launch):
            raise AssertionError("there is no result")


def _submitted(service, groups) -> str:
    """Id of a model to which one job was submitted."""
    import asyncio

    from art.serverless.client import Client

    async def submit() -> str:
        client = Client(api_key=service.api_key, base_url=service.base_url)
        model = await client.models.create(entity="bench", project="p", name="x", base_model="b", return_existing=True)
        await client.training_jobs.create(model_id=model.id, trajectory_groups=groups)
        await client.close()
        return model.id

    return asyncio.run(submit())


def test_what_was_sent_cannot_be_cancelled_and_it_is_said_what_that_costs(jobs, database):
    job = in_doubt(database)
    ended = jobs("cancel", job.job_id[:8])
    assert ended.returncode == 1 and "no way to cancel" in ended.stderr and "costs" in ended.stderr
    assert state_of(database, job) == "in_doubt"


def test_a_job_that_was_not_begun_is_cancelled(jobs, database):
    job = written_job(database)
    assert "no process was at work" in jobs("cancel", job.job_id[:8]).stdout
    assert state_of(database, job) == "cancelled"


def test_cancelling_a_local_job_ends_the_process_that_works_on_it(jobs, database, monkeypatch):
    job = written_job(database, backend="torch")
    told = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    with working_on(database, job.job_id) as connection:
        ledger.begin_local(connection, job.job_id)
        said = jobs("cancel", job.job_id[:8])
    assert told == [(os.getpid(), signal.SIGINT)] and "was told to end" in said.stdout
    assert state_of(database, job) == "cancelled"


def test_a_process_of_this_machine_is_told_also_where_the_machine_has_a_long_name(jobs, database, monkeypatch):
    job = written_job(database, backend="torch")
    told = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append(pid))
    monkeypatch.setattr(socket, "gethostname", lambda: f"{'a-long-name-' * 5}1")
    with working_on(database, job.job_id) as connection:
        ledger.begin_local(connection, job.job_id)
        assert jobs("cancel", job.job_id[:8]).returncode == 0
    assert told == [os.getpid()]


def test_a_process_of_another_machine_is_not_told(jobs, database, monkeypatch):
    job = written_job(database, backend="torch")
    with working_on(database, job.job_id) as connection:
        ledger.begin_local(connection, job.job_id)
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        refused = jobs("cancel", job.job_id[:8])
    assert refused.returncode == 1 and "nothing was changed" in refused.stderr
    assert state_of(database, job) == "running"


def test_a_process_that_cannot_be_told_leaves_the_job_cancelled_and_is_named(jobs, database, monkeypatch):
    job = written_job(database, backend="torch")

    def refuse(pid: int, number: int) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "kill", refuse)
    with working_on(database, job.job_id) as connection:
        ledger.begin_local(connection, job.job_id)
        said = jobs("cancel", job.job_id[:8])
    assert said.returncode == 0 and f"process {os.getpid()} could not be told (No such process)" in said.stdout
    assert state_of(database, job) == "cancelled"
