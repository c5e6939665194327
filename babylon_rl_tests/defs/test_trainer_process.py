"""The trainer's process: what it says went wrong reaches the run, and the database's password reaches nothing."""

import dagster as dg
import msgspec
import psycopg
import pytest
from sqlalchemy.engine import make_url

from babylon_rl.database.connect import Database
from babylon_rl.database.urls import libpq_url
from babylon_rl.defs import trained_checkpoints as module
from babylon_rl.defs import trainer_process
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.trained_checkpoints import launcher
from babylon_rl.training.backends import art_contract
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.updates import TrainerRequest

PASSWORD = "hunter2-secret"


@pytest.fixture
def request_of_nothing(tmp_path) -> TrainerRequest:
    """A request for a snapshot that is not there."""
    return TrainerRequest(
        checkpoint_id="run@1", snapshot_id="0" * 64, parent_id="run@0", parent_folder=None, parent_step=0,
        base_folder=str(tmp_path / "base"), folder=str(tmp_path / "run@1"), recipe=Recipe(), device="cpu", threads=1,
    )  # fmt: skip


def launch(instance: dg.DagsterInstance, database: Database, request: TrainerRequest):
    @dg.op
    @typed_failures()
    def train(context: dg.OpExecutionContext) -> None:
        launcher(context, dg.PipesSubprocessClient(), database)(request)

    @dg.job(executor_def=dg.in_process_executor)
    def training():
        train()

    return training.execute_in_process(instance=instance, raise_on_error=False)


def description(result) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    return failure.description if failure else f"no dg.Failure: {event.step_failure_data.error}"


def with_password(database: Database) -> Database:
    url = make_url(database.url).set(password=PASSWORD).render_as_string(hide_password=False)
    return Database(url, database.embedded)


def test_the_trainers_own_message_is_the_failure_and_no_password_is_kept(database, instance, request_of_nothing):
    result = launch(instance, with_password(database), request_of_nothing)
    assert not result.success
    said = description(result)
    assert request_of_nothing.snapshot_id[:8] in said and "Traceback" not in said
    with psycopg.connect(libpq_url(instance.event_log_storage.postgres_url)) as connection:
        events = "".join(event for (event,) in connection.execute("SELECT event FROM event_logs"))
    assert "STEP_FAILURE" in events and PASSWORD not in events


def test_a_trainer_that_dies_without_a_word_is_told_from_one_that_refuses(
    database, instance, request_of_nothing, monkeypatch
):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    said = description(launch(instance, database, request_of_nothing))
    assert "ended without a result" in said and "code 1" in said and "parent checkpoint stays" in said


def test_a_trainer_that_ends_well_and_says_nothing_is_a_failure_too(
    database, instance, request_of_nothing, monkeypatch
):
    monkeypatch.setattr(module.sys, "executable", "/bin/true")
    assert "without a result" in description(launch(instance, database, request_of_nothing))


class Pipes:
    """What the trainer's process is given by Dagster Pipes, and what it reports."""

    def __init__(self, request: TrainerRequest) -> None:
        self.request, self.messages, self.log = request, [], None

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def get_extra(self, name: str) -> dict:
        return msgspec.to_builtins(self.request)

    def report_custom_message(self, message: dict) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("installed", ["0.5.18", "0.5.19"])
def test_an_art_that_moved_is_the_message_of_what_failed_by_it(monkeypatch, request_of_nothing, installed):
    def fails(*given):
        raise TypeError("create() got an unexpected keyword argument")

    pipes = Pipes(request_of_nothing)
    monkeypatch.setenv(trainer_process.DATABASE_VARIABLE, "postgresql://nowhere")
    monkeypatch.setenv(trainer_process.EMBEDDED_VARIABLE, "")
    monkeypatch.setattr(trainer_process, "open_dagster_pipes", lambda: pipes)
    monkeypatch.setattr(trainer_process, "train_on", lambda backend: fails)
    monkeypatch.setattr(art_contract, "version", lambda package: installed)
    monkeypatch.setattr(art_contract, "CONTRACT", art_contract.CONTRACT[:1])  # the version, which needs no import
    if installed == art_contract.VERSION:
        with pytest.raises(TypeError):
            trainer_process.main()
        assert not pipes.messages
    else:
        trainer_process.main()
        (message,) = pipes.messages
        assert "ART 0.5.19 is installed" in message["error"] and "unexpected keyword" in message["error"]
