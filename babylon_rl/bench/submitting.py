"""The workers of `babylon-rl bench submissions`: processes that submit jobs to a service until none is left.

A chain is a model that is trained again and again: a job on top of the checkpoint of the one before. After a job in
doubt it goes on with another model, as a person would. Any worker takes up whatever it finds, so that one that is
killed loses nothing.
"""

import asyncio
import random
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import psycopg
from pydantic import SecretStr

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import Snapshot, make_snapshot, save_snapshot
from babylon_rl.groups.trained_view import Decision, Group, Member
from babylon_rl.settings import Settings
from babylon_rl.training import ledger
from babylon_rl.training.backends.hosted import STEP_OF, ModelName, result_of, take_up
from babylon_rl.training.backends.hosted_service import Remote, closing, opened_service
from babylon_rl.training.backends.submission import Submission, prepare_submission
from babylon_rl.training.locks import working_on
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, base_checkpoint, save_checkpoint, start_run

RECIPE = Recipe(windows_per_update=1, minibatches=1, advantages="leave_one_out", balanced_answers=None)
BASE_MODEL = "loopback/base"
BACKEND = "wandb"
ENDED = ("done", "failed", "in_doubt")


class Work(NamedTuple):
    """Chains and the jobs of each, and how many of them a worker has under way at once."""

    chains: int
    jobs: int
    lanes: int


class Next(NamedTuple):
    """A chain's next job: which model it trains, and the model's step that it is made on."""

    job: ledger.Job
    place: int
    run: str
    parent_step: int


def settings_of(url: str, api_key: str, deadline: float, poll: float) -> Settings:
    """Settings of a loopback service. `deadline`, `poll`: seconds."""
    return Settings().model_copy(
        update={
            "wandb_training_url": url,
            "wandb_api_key": SecretStr(api_key),
            "wandb_entity": "bench",
            "wandb_project": "submissions",
            "wandb_base_model": BASE_MODEL,
            "max_cost": 0.0,
            "job_deadline_minutes": deadline / 60,
            "poll_seconds": poll,
        }
    )


def snapshot_of(chain: int, place: int) -> Snapshot:
    """The smallest training set, one window of two answers, and another one for each job."""
    name = f"{chain}-{place}"
    window_id = (datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=place)).strftime("%Y-%m-%dT%H:00")
    members = [
        Member(
            trajectory_id=f"{name}-{answer}",
            agent_id=f"agent-{answer}",
            reward=float(answer),
            advantage=0.0,
            checkpoint="-",
            decisions=[
                Decision(
                    call_id=f"{name}-{answer}",
                    system_prompt="Trade.",
                    user_prompt=f"job {name}",
                    response="BUY",
                    token_ids=[7 + answer],
                    logprobs=[-0.5],
                    prompt_token_ids=[1, 2, 3],
                    choices=None,
                    temperature=1.0,
                    top_p=1.0,
                    exploration=0.0,
                )
            ],
        )
        for answer in (0, 1)
    ]
    group = Group(window_id=window_id, scorer="alpha", scorer_version="1", members=members)
    return make_snapshot([group], f"chain-{chain}", RECIPE.as_json(), place)


def submission_of(chain: int, place: int) -> Submission:
    """What the job sends."""
    return prepare_submission(snapshot_of(chain, place), RECIPE)


def start_chain(connection: psycopg.Connection, chain: int, model: int) -> str:
    """The chain's model of that number, as a training run; its name."""
    name = f"chain-{chain}-{model}"
    run = TrainingRun(
        training_run=name,
        base_model=BASE_MODEL,
        seed=0,
        recipe=RECIPE,
        schedule={},
        first_window="2025-01-01T00:00",
        last_window="2025-01-01T00:00",
        state="running",
        backend=BACKEND,
    )
    start_run(connection, run)
    return name


_LATEST = """
SELECT a.job_id, a.state, a.parent_id, p.training_run, c.checkpoint_id, c.inference_name, p.inference_name,
       (SELECT count(*) FROM babylon_rl.snapshots s WHERE s.training_run = %(chain)s) AS opened
FROM babylon_rl.snapshots s
JOIN babylon_rl.training_attempts a USING (snapshot_id)
JOIN babylon_rl.checkpoints p ON p.checkpoint_id = a.parent_id
LEFT JOIN babylon_rl.checkpoints c ON c.snapshot_id = a.snapshot_id
WHERE s.training_run = %(chain)s ORDER BY s.window_ids DESC LIMIT 1
"""


def next_job(database: Database, chain: int, jobs: int) -> Next | None:
    """The job that the chain stands at, written down where it is its turn; None after the last one."""
    with database.connect() as connection:
        # What is there and what follows are one thing, whoever asks at the same time.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (chain,))
        found = connection.execute(_LATEST, {"chain": f"chain-{chain}"}).fetchone()
        if found is None:
            run, opened = start_chain(connection, chain, 0), 0
            parent, named = base_checkpoint(run), None
        else:
            job_id, state, parent, run, checkpoint, of_checkpoint, named, opened = found
            if state not in ENDED or (state == "done" and checkpoint is None):
                return Next(ledger.load_job(connection, job_id), opened - 1, run, _step(named))
            if opened == jobs:
                return None
            if state == "in_doubt":
                run = start_chain(connection, chain, int(run.rpartition("-")[2]) + 1)
                parent, named = base_checkpoint(run), None
            elif state == "done":
                parent, named = checkpoint, of_checkpoint
        snapshot = snapshot_of(chain, opened)
        save_snapshot(connection, snapshot)
        job = ledger.open_job(connection, snapshot.snapshot_id, parent, RECIPE.digest(), BACKEND, _step(named))
        return Next(job, opened, run, _step(named))


def _step(inference_name: str | None) -> int:
    found = STEP_OF.search(inference_name or "")
    return int(found[1]) if found else 0


async def do_job(database: Database, remote: Remote, settings: Settings, chain: int, jobs: int) -> bool:
    """Take up the chain's next job as far as it goes. Whether there was one."""
    following = next_job(database, chain, jobs)
    if following is None:
        return False
    job_id = following.job.job_id
    name = ModelName(settings.wandb_entity, settings.wandb_project, following.run, settings.wandb_base_model)
    with working_on(database, job_id) as connection:
        submission = submission_of(chain, following.place)
        try:
            job = await take_up(
                remote, connection, job_id, submission, name, following.parent_step, lambda metrics: None
            )
        except TrainingError:  # refused, failed or in doubt, and the ledger knows
            return True
        book(connection, following.run, job)
    return True


def book(connection: psycopg.Connection, run: str, job: ledger.Job) -> None:
    """The checkpoint of a job that is done."""
    result = result_of(job)
    with connection.transaction():
        save_checkpoint(
            connection,
            Checkpoint(
                checkpoint_id=f"{run}@{result.step}-{job.job_id[:8]}",
                training_run=run,
                parent_id=job.parent_id,
                snapshot_id=job.snapshot_id,
                base_model=BASE_MODEL,
                step=result.step or 0,
                path=None,
                weights_sha256=None,
                last_window=None,
                metrics=result.metrics,
                state="ready",
                backend=BACKEND,
                inference_url=result.inference_url,
                inference_name=result.inference_name,
            ),
        )


async def _lanes(database: Database, remote: Remote, settings: Settings, work: Work, stream: random.Random) -> None:
    left = set(range(work.chains))

    async def lane() -> None:
        while left:
            chain = stream.choice(sorted(left))
            try:
                while await do_job(database, remote, settings, chain, work.jobs):
                    pass
                left.discard(chain)
            except TrainingError:  # another lane is at it
                await asyncio.sleep(10 * settings.poll_seconds)

    await asyncio.gather(*(lane() for _ in range(work.lanes)))


def work_off(database: Database, settings: Settings, work: Work, seed: Any) -> None:
    """Submit jobs until every chain is at its end."""
    with opened_service(settings) as remote:
        asyncio.run(closing(remote, _lanes(database, remote, settings, work, random.Random(seed))))


def worker_process(database_url: str, settings: Settings, work: Work, seed: Any) -> int:
    """Exit status of a forked worker: 0 at the end of all work."""
    try:
        work_off(Database(database_url, embedded=True), settings, work, seed)
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


def as_sent(groups: list[Any]) -> list[dict[str, Any]]:
    """Groups as ART's client puts them into the body."""
    return [msgspec.to_builtins(group.model_dump(mode="json")) for group in groups]
