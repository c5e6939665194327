"""The ledger: legal moves and no others, one writer a model, one worker a job, and what each move leaves behind."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.settings import REPOSITORY, Settings
from babylon_rl.training import ledger
from babylon_rl.training.locks import worker_of, working_on
from babylon_rl.training.trainer import TrainerResult
from babylon_rl.training.working import trained
from babylon_rl_tests.training.jobs import MODEL, request_of, written_job
from babylon_rl_tests.training.rounds import STEP

STATES = ("written", "submitting", "running", "done", "failed", "cancelled", "in_doubt")
# The shortest way to each state, which the trigger allows.
WAYS = {
    "written": (),
    "submitting": ("submitting",),
    "running": ("running",),
    "done": ("running", "done"),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
    "in_doubt": ("submitting", "in_doubt"),
}
LATER = datetime(2030, 1, 1, tzinfo=UTC)


def put(connection, job: ledger.Job, *states: str) -> None:
    for state in states:
        connection.execute("UPDATE babylon_rl.training_attempts SET state = %s WHERE job_id = %s", (state, job.job_id))


def sent(connection, job: ledger.Job, model: str = MODEL) -> ledger.Job:
    return ledger.before_submitting(connection, job.job_id, model, "model-1", 0, LATER)


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        connection.commit()
        yield connection


def test_the_database_allows_the_moves_of_its_table_and_refuses_every_other_pair(database):
    job = written_job(database)
    with database.connect() as connection:
        legal = set(connection.execute("SELECT before, after FROM babylon_rl.training_attempt_moves").fetchall())
        assert len(legal) == 17 and {s for pair in legal for s in pair} == set(STATES)
        for before, after in itertools.permutations(STATES, 2):
            with connection.transaction(force_rollback=True):
                put(connection, job, *WAYS[before])
                if (before, after) in legal:
                    put(connection, job, after)
                    continue
                with pytest.raises(psycopg.errors.CheckViolation, match=f"from {before} to {after}"):
                    put(connection, job, after)


def test_a_job_is_one_for_a_snapshot_parent_and_settings_and_begins_as_written(database):
    first, again = written_job(database), written_job(database)
    assert first.job_id == again.job_id and (again.state, again.submissions) == ("written", 0)
    assert written_job(database, place=1).job_id != first.job_id
    with database.connect() as connection, pytest.raises(psycopg.errors.CheckViolation, match="begins as running"):
        connection.execute(
            "INSERT INTO babylon_rl.training_attempts (job_id, snapshot_id, parent_id, settings_digest, backend, "
            "state, step_before) SELECT 'x', snapshot_id, parent_id, 'y', backend, 'running', 0 "
            "FROM babylon_rl.training_attempts LIMIT 1"
        )


def test_what_is_to_be_committed_is_so_when_the_move_returns_and_is_refused_inside_a_transaction(database, connection):
    job = written_job(database)
    with connection.transaction(), pytest.raises(RuntimeError, match="a transaction is open"):
        sent(connection, job)
    sent(connection, job)
    with database.connect() as other:
        assert ledger.load_job(other, job.job_id).state == "submitting"
    ledger.accepted(connection, job.job_id, "remote-1")
    with database.connect() as other:
        found = ledger.load_job(other, job.job_id)
    assert (found.state, found.remote_job_id, found.submissions) == ("running", "remote-1", 1)


def test_every_move_is_booked_with_who_made_it(database, connection):
    job = written_job(database)
    sent(connection, job)
    ledger.accepted(connection, job.job_id, "remote-1")
    ledger.failed(connection, job.job_id, "out of memory")
    ledger.retry(connection, job.job_id, "ann")
    moves = ledger.moves_of(connection, job.job_id)
    assert [move["after"] for move in moves] == ["written", "submitting", "running", "failed", "written"]
    assert moves[3]["detail"] == "out of memory" and moves[3]["remote_job_id"] == "remote-1"
    assert moves[4]["actor"] == "ann" and f"process {os.getpid()}" in moves[0]["actor"]
    connection.commit()
    again = ledger.load_job(connection, job.job_id)
    assert (again.remote_job_id, again.metrics, again.finished_at, again.submissions) == (None, None, None, 1)


def test_events_that_come_twice_are_kept_once_and_in_their_order(database, connection):
    job = written_job(database)
    sent(connection, job)
    ledger.progress(connection, job.job_id, "b", [("a", {"loss": 1.0}), ("b", {"loss": 2.0})])
    found = ledger.progress(connection, job.job_id, "c", [("b", {"loss": 9.0}), ("c", {"loss": 3.0})])
    assert found.steps == [("a", {"loss": 1.0}), ("b", {"loss": 2.0}), ("c", {"loss": 3.0})] and found.cursor == "c"


def test_a_second_job_of_a_remote_model_is_told_which_is_in_the_way_and_the_command_that_ends_it(database, connection):
    first, second = written_job(database), written_job(database, place=1)
    sent(connection, first)
    for move in (lambda: None, lambda: ledger.in_doubt(connection, first.job_id, "524")):
        move()
        with pytest.raises(TrainingError, match=f"babylon-rl jobs settle {first.job_id[:12]}.*Nothing was sent"):
            sent(connection, second)
    assert ledger.load_job(connection, second.job_id).state == "written"
    connection.commit()
    sent(connection, second, "http://there e/p/other")
    ledger.failed(connection, first.job_id, "it never ran", actor="ann")
    ledger.not_accepted(connection, second.job_id, "429")
    assert sent(connection, second).submissions == 2


def test_an_id_that_comes_after_a_doubt_is_kept_and_settles_nothing(database, connection):
    job = written_job(database)
    sent(connection, job)
    ledger.in_doubt(connection, job.job_id, "no answer")
    found = ledger.accepted(connection, job.job_id, "remote-1")
    assert (found.state, found.remote_job_id) == ("in_doubt", "remote-1")
    assert ledger.done(connection, job.job_id, 1).state == "done"
    assert ledger.failed(connection, job.job_id, "too late").state == "done"
    with pytest.raises(TrainingError, match="is done and cannot become cancelled"):
        ledger.cancel(connection, job.job_id, "ann")


def test_what_was_sent_cannot_be_cancelled_and_what_failed_at_a_service_is_not_taken_up_by_itself(database, connection):
    job = written_job(database)
    sent(connection, job)
    with pytest.raises(TrainingError, match="submitting and cannot become cancelled"):
        ledger.cancel(connection, job.job_id, "ann")
    ledger.failed(connection, job.job_id, "out of memory")
    assert written_job(database).state == "failed"
    assert "babylon-rl jobs retry" in ledger.what_to_do(written_job(database))
    assert [held.job_id for held in ledger.held_jobs(connection, job.parent_id)] == [job.job_id]


def test_while_a_process_works_on_a_job_no_other_does_and_its_death_frees_it(database):
    job = written_job(database)
    program = (
        "import sys\nfrom babylon_rl.database.connect import Database\n"
        "from babylon_rl.training.locks import working_on\n"
        "with working_on(Database(sys.argv[1], embedded=True), sys.argv[2]):\n"
        "    print('working', flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, database.url, job.job_id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True,
    )  # fmt: skip
    try:
        assert worker.stdout.readline() == "working\n"
        with pytest.raises(TrainingError, match="Another process works on job"), working_on(database, job.job_id):
            pass
        with database.connect() as connection:
            assert worker_of(connection, job.job_id) == (worker.pid, socket.gethostname())
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    until = datetime.now() + timedelta(seconds=30)
    while True:  # the server ends the session of a killed process soon
        try:
            with working_on(database, job.job_id) as connection:
                assert worker_of(connection, job.job_id).pid == os.getpid()
            return
        except TrainingError:
            assert datetime.now() < until


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainingError("out of memory")])
def test_a_local_job_that_ends_badly_is_failed_and_the_next_attempt_takes_it_up(database, tmp_path, error):
    settings = Settings().model_copy(update={"home": tmp_path})
    job = written_job(database, backend="torch")
    request = request_of(job, settings)

    def launch(_):
        raise error

    with pytest.raises(type(error)), trained(database, settings, request, launch):
        pass
    with database.connect() as connection:
        found = ledger.load_job(connection, job.job_id)
    assert found.state == "failed"
    assert ("interrupted" in found.error) == isinstance(error, KeyboardInterrupt)
    assert written_job(database, backend="torch").state == "written"
    made = TrainerResult(folder=None, weights_sha256=None, metrics=STEP, steps=[STEP])
    with trained(database, settings, request, lambda _: made) as result, database.connect() as connection:
        ledger.done(connection, job.job_id, 1)
    assert result == made
    with database.connect() as connection:
        assert ledger.load_job(connection, job.job_id).state == "done"


def test_a_local_job_that_a_killed_process_left_running_is_taken_up_and_a_cancelled_one_stays_so(database, tmp_path):
    settings = Settings().model_copy(update={"home": tmp_path})
    job = written_job(database, backend="torch")
    with database.connect() as connection:
        ledger.begin_local(connection, job.job_id)

    def cancelled_meanwhile(_):
        with database.connect() as connection:
            ledger.cancel(connection, job.job_id, "ann")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trained(database, settings, request_of(job, settings), cancelled_meanwhile):
        pass
    with database.connect() as connection:
        assert ledger.load_job(connection, job.job_id).state == "cancelled"


@pytest.mark.parametrize("beginning", ["", "zz", "0"])
def test_a_beginning_that_is_no_one_jobs_is_refused(database, beginning):
    with database.connect() as connection, pytest.raises(TrainingError, match="babylon-rl jobs"):
        ledger.find_job(connection, beginning)


def test_the_first_systems_view_has_its_own_words_for_the_states(database):
    job, words = written_job(database), {}
    with database.connect() as connection:
        for state in STATES:
            with connection.transaction(force_rollback=True):
                put(connection, job, *WAYS[state])
                words[state] = connection.execute("SELECT status FROM babylon_rl.training_jobs").fetchone()[0]
    assert words == {
        "written": "pending",
        "submitting": "training",
        "running": "training",
        "in_doubt": "training",
        "done": "completed",
        "failed": "failed",
        "cancelled": "failed",
    }
