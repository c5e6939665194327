"""`babylon-rl train --backend wandb` from the command to the checkpoint: Dagster's job, the trainer's process, ART.

The service is the loopback one; everything else is what a user runs.
"""

import json

import psycopg
import pytest
from psycopg import sql

from babylon_rl import materializing
from babylon_rl.bench.training_faults import Fault
from babylon_rl.bench.training_service import API_KEY, TrainingService, training_service
from babylon_rl.database.urls import with_driver
from babylon_rl.settings import REPOSITORY
from babylon_rl.training.ledger import Job, list_jobs
from babylon_rl.training.runs import Checkpoint, list_checkpoints
from babylon_rl_tests.commands.played import FIRST, play
from babylon_rl_tests.training.test_batches import everything

# Seconds of the service's clock, which runs a thousand times as fast as the wall's.
LATE = 1e6
SUBMITTED = ("POST", "/v1/preview/training-jobs")


@pytest.fixture(scope="module")
def dagster(server) -> dict[str, str]:
    """Environment of Dagster with a storage of these tests."""
    server.create_database("dagster_of_hosted")
    url = with_driver(server.url("dagster_of_hosted"), "psycopg2")
    return {"DAGSTER_HOME": str(REPOSITORY / "dagster_home"), "DAGSTER_PG_URL": url}


class User:
    """Who trains a recorded window at the service. `said`: everything that any command printed."""

    def __init__(self, database, service: TrainingService, run, dagster_url: str) -> None:
        self.database, self.service, self._run, self.dagster_url = database, service, run, dagster_url
        self.said = ""

    def run(self, *arguments: str, **environment: str):
        values = {
            "WANDB_API_KEY": API_KEY,
            "WANDB_ENTITY": "team",
            "WANDB_PROJECT": "mine",
            "BABYLON_RL_WANDB_BASE_MODEL": "run-0001",  # under which the scripted endpoint answers
            "BABYLON_RL_WANDB_TRAINING_URL": self.service.base_url,
            "BABYLON_RL_POLL_SECONDS": "0.02",
            "BABYLON_RL_THREADS": "1",
            **environment,
        }
        done = self._run(*arguments, "--database", self.database.url, **values)
        self.said += done.stdout + done.stderr
        return done

    def train(self, window_id: str, **environment: str):
        return self.run("train", "--window", window_id, "--backend", "wandb", "--max-cost", "0", "--yes", **environment)

    def submissions(self) -> int:
        return self.service.requests.count(SUBMITTED)

    def jobs(self) -> list[Job]:
        with self.database.connect() as connection:
            return list_jobs(connection)

    def trained(self) -> list[Checkpoint]:
        with self.database.connect() as connection:
            return [one for one in list_checkpoints(connection) if one.step]

    def tells_no_key(self) -> None:
        """The service's key is in nothing that was printed, and in no row of ours or of Dagster's."""
        assert self.said and API_KEY not in self.said
        assert API_KEY not in str(everything(self.database))
        with psycopg.connect(self.dagster_url) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert ("event_logs",) in tables
            for (table,) in tables:
                query = sql.SQL("SELECT count(*) FROM {} t WHERE strpos(t::text, %s) > 0").format(sql.Identifier(table))
                assert connection.execute(query, (API_KEY,)).fetchone() == (0,), table


@pytest.fixture
def user(database, server, dagster, run, monkeypatch, tmp_path):
    monkeypatch.setattr(materializing, "dagster_environment", lambda settings: dagster)
    play(database, tmp_path)
    with database.connect() as connection:  # as an endpoint of the service records: free text
        connection.execute("UPDATE babylon_rl.recorded_calls SET choices = NULL, exploration = 0")
    with training_service(speed=1_000.0) as service:
        yield User(database, service, run, server.url("dagster_of_hosted"))


def test_one_window_is_one_job_at_the_service_however_often_it_is_asked_for(user):
    done = user.train(FIRST)
    assert done.returncode == 0 and "update over 1 of 1 windows" in done.stdout, done.stderr
    [job], [checkpoint] = user.jobs(), user.trained()
    assert (job.state, job.submissions, job.step_after) == ("done", 1, 1)
    assert (checkpoint.backend, checkpoint.path, checkpoint.step) == ("wandb", None, 1)
    assert checkpoint.inference_url == user.service.base_url
    [model] = user.service.books.models.values()
    assert checkpoint.inference_name == f"wandb-artifact:///team/mine/{model['name']}:step1"
    assert ":" not in model["name"], "what is behind it would be taken for the version"
    assert list(user.service.books.accepted.values()) == [[job.remote_job_id]]

    assert "leave this machine" in done.stderr

    again = user.run("train", "--window", FIRST, "--backend", "wandb")  # and nobody need agree to what is not sent
    assert again.returncode == 0 and "leave this machine" not in again.stderr, again
    assert (user.jobs(), user.trained(), user.submissions()) == ([job], [checkpoint], 1)
    other = user.run("train", "--window", FIRST, "--backend", "torch", "--model", "tiny")
    assert other.returncode == 2 and "Name another with --name" in other.stderr, other
    [told] = json.loads(user.run("jobs", "--json").stdout)
    assert (told["job_id"], told["state"]) == (job.job_id, "done") and job.remote_job_id in user.run("jobs").stdout
    ancestry = user.run("lineage", checkpoint.checkpoint_id)
    assert ancestry.returncode == 0 and f"as {checkpoint.inference_name}" in ancestry.stdout, ancestry
    [listed] = json.loads(user.run("checkpoints", "--json").stdout)
    assert (listed["checkpoint_id"], listed["backend"]) == (checkpoint.checkpoint_id, "wandb")
    shown = json.loads(user.run("checkpoints", "show", checkpoint.checkpoint_id, "--json").stdout)
    assert shown["inference_name"] == checkpoint.inference_name
    user.tells_no_key()


def test_a_job_in_doubt_is_settled_by_hand_and_the_window_then_gets_its_checkpoint(user):
    """Accepted, never answered, and its step does not advance until the service's clock is moved."""
    user.service.follow(Fault(name="late", answer="never", step_after=LATE))
    in_doubt = {"BABYLON_RL_JOB_DEADLINE_MINUTES": "0.12"}
    for _ in range(2):
        done = user.train(FIRST, **in_doubt)
        [job] = user.jobs()
        assert done.returncode == 1 and f"babylon-rl jobs settle {job.job_id[:12]}" in done.stderr, done
        assert (job.state, job.submissions, user.submissions()) == ("in_doubt", 1, 1)
    early = user.run("jobs", "settle", job.job_id[:12])
    assert early.returncode == 1 and "still stands at step 0" in early.stdout, early
    assert user.trained() == []

    user.service.advance(LATE)
    settled = user.run("jobs", "settle", job.job_id[:12])
    assert settled.returncode == 0 and "Adopted: step 1" in settled.stdout, settled
    done = user.train(FIRST)
    assert done.returncode == 0 and "update over 1 of 1 windows" in done.stdout, done
    [checkpoint] = user.trained()
    assert checkpoint.inference_name.endswith(":step1") and user.submissions() == 1
    assert not user.service.books.twice()
    user.tells_no_key()
