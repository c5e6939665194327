"""`babylon-rl bench submissions`: thousands of training jobs against a service at which everything goes wrong.

ART's real client, the real ledger on a PostgreSQL server of its own, a training service on loopback with a fault
script, and worker processes that are killed at random moments and replaced. The service's own books say at the end
whether any job was accepted twice, and whether the ledger says the same of each as the service.
"""

import multiprocessing
import os
import random
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from babylon_rl.bench.scratch import scratch_server
from babylon_rl.bench.submitting import (
    ENDED,
    Work,
    as_sent,
    settings_of,
    submission_of,
    worker_process,
)
from babylon_rl.bench.training_books import Books, submission_key
from babylon_rl.bench.training_faults import Fault, Script, Seen, seeded
from babylon_rl.bench.training_service import API_KEY, training_service
from babylon_rl.database.connect import Database
from babylon_rl.settings import Settings
from babylon_rl.training.backends.hosted import settle
from babylon_rl.training.backends.hosted_service import opened_service

FAULTY = 0.7  # share of the submissions that meet a fault
ASKED_WRONG = 0.02  # share of the questions that do
SPEED = 100.0  # seconds of the service's clock in one of the wall
DEADLINE, POLL = 6.0, 0.4  # seconds of the wall; a job without a fault takes 0.06


class Submissions(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the jobs. `ends`: their states by what went wrong; `wrong`: what contradicts the service's books.

    `settled`: of those in doubt, how many were found trained when the model's step was compared once more.
    """

    seed: int
    jobs: int
    seconds: float
    killed: int
    submissions: int
    accepted: int
    twice: int
    overlapping: int
    lost: int
    ends: dict[str, dict[str, int]]
    settled: int
    wrong: list[str]

    @property
    def reached(self) -> bool:
        """Whether no job was accepted twice, none is lost, and ledger and service agree on each."""
        return not (self.twice or self.lost or self.wrong or self.overlapping)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        rows = [f"{'what went wrong':<32}{'done':>8}{'failed':>8}{'in doubt':>10}"]
        for fault, states in sorted(self.ends.items()):
            rows.append(
                f"{fault:<32}" + "".join(f"{states.get(s, 0):>{w}}" for s, w in zip(ENDED, (8, 8, 10), strict=True))
            )
        total: Counter[str] = Counter()
        for states in self.ends.values():
            total.update(states)
        rows.append(f"{'all':<32}" + "".join(f"{total[s]:>{w}}" for s, w in zip(ENDED, (8, 8, 10), strict=True)))
        return "\n".join(
            [
                *rows,
                f"seed {self.seed}: {self.jobs} jobs in {self.seconds:.0f} s, {self.submissions} submissions, "
                f"{self.accepted} accepted, {self.killed} workers killed; {self.settled} of those in doubt were found "
                "trained afterwards",
                *self.wrong[:10],
                f"{'reached' if self.reached else 'MISSED'}: {self.twice} accepted twice, {self.lost} lost, "
                f"{self.overlapping} at once on one model, {len(self.wrong)} of which ledger and service disagree, "
                "at most 0 each",
            ]
        )


def measure_submissions(
    jobs: int,
    seed: int,
    say: Callable[[str], None],
    workers: int = 3,
    lanes: int = 9,
    jobs_a_kill: int = 20,
    deadline: float = DEADLINE,
) -> Submissions:
    """Submit so many jobs (rounded up to whole chains), on a server of its own."""
    with scratch_server() as (_, database):
        return submit_to_the_end(database, jobs, seed, say, workers, lanes, jobs_a_kill, deadline)


def submit_to_the_end(
    database: Database,
    jobs: int,
    seed: int,
    say: Callable[[str], None],
    workers: int,
    lanes: int,
    jobs_a_kill: int,
    deadline: float,
) -> Submissions:
    """The jobs on a migrated database, by that many processes, and what the service's books say of them."""
    chains = max(1, min(100, jobs // 10))
    work = Work(chains=chains, jobs=-(-jobs // chains), lanes=max(1, min(lanes, chains // (2 * workers))))
    database.engine().dispose()  # children must not share its connections
    began = time.monotonic()
    with service_process(seed) as (url, ask):
        settings = settings_of(url, API_KEY, deadline, POLL)
        crew = Crew(database, settings, work, seed)
        killed = crew.work_off(workers, jobs_a_kill, lambda: say(_standing(database, work)))
        seconds = time.monotonic() - began
        ask("advance")  # what is still to come at the service comes now
        books = _books(url)
        found = Found(database, work, books)
        settled = _settle(database, settings, found.in_doubt)
        return found.as_submissions(seed, seconds, killed, settled)


# --- the service -----------------------------------------------------------------------------------


def script(seed: int) -> Script:
    """Faults of submissions by their key, and some of the questions."""
    submissions = seeded(seed, FAULTY)
    wrong = [Fault(name=f"asked_{kind}", answer=kind) for kind in (500, 503, "broken", "half", "page")]

    def fault_of(seen: Seen) -> Fault | None:
        if seen.kind == "submit":
            return submissions(seen)
        stream = random.Random(f"{seed}-{seen.kind}-{seen.number}")
        return stream.choice(wrong) if stream.random() < ASKED_WRONG else None

    return fault_of


@contextmanager
def service_process(seed: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    """The service in a process of its own: its origin, and a function that tells it to move its clock to the end."""
    ours, theirs = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            ours.close()
            _serve(seed, theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()

    def ask(what: str) -> None:
        ours.send(what)
        ours.recv()

    try:
        yield ours.recv(), ask
    finally:
        ours.close()
        os.waitpid(child, 0)


def _serve(seed: int, pipe: Connection) -> None:
    with training_service(script(seed), speed=SPEED) as service:
        pipe.send(service.base_url)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            service.advance(1e6)
            pipe.send(None)


def _books(url: str) -> Books:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/books", timeout=60) as answer:
        return msgspec.json.decode(answer.read(), type=Books)


# --- the workers -----------------------------------------------------------------------------------


class Crew:
    """Worker processes that are killed at random moments and replaced until one comes to the end of all work."""

    def __init__(self, database: Database, settings: Settings, work: Work, seed: int) -> None:
        self.database, self.settings, self.work, self.seed = database, settings, work, seed
        self.begun = 0

    def work_off(self, workers: int, jobs_a_kill: int, tell: Callable[[], None]) -> int:
        """Until every worker has found nothing left; how many were killed, one after about that many jobs."""
        with opened_service(self.settings):
            pass  # the workers are forked with ART in memory
        stream = random.Random(self.seed)
        running = {self._begin() for _ in range(workers)}
        killed = told = 0
        following = stream.randint(1, 2 * jobs_a_kill)
        try:
            while running:
                time.sleep(stream.uniform(0.05, 0.3))
                for pid in [pid for pid in running if _has_ended(pid)]:
                    running.discard(pid)
                now, ended = time.monotonic(), _ended_jobs(self.database)
                if running and ended >= following:
                    victim = stream.choice(sorted(running))
                    os.kill(victim, signal.SIGKILL)
                    os.waitpid(victim, 0)
                    running.discard(victim)
                    running.add(self._begin())
                    killed, following = killed + 1, ended + stream.randint(1, 2 * jobs_a_kill)
                if now >= told + 10:
                    told = now
                    tell()
        finally:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return killed

    def _begin(self) -> int:
        self.begun += 1
        child = os.fork()
        if child:
            return child
        os._exit(worker_process(self.database.url, self.settings, self.work, f"{self.seed}-{self.begun}"))


def _has_ended(pid: int) -> bool:
    """Whether the worker came to the end of all work. RuntimeError where it failed."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return False
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"a worker failed with {code}, see above")
    return True


def _ended_jobs(database: Database) -> int:
    query = "SELECT count(*) FROM babylon_rl.training_attempts WHERE state = ANY(%s)"
    with database.connect() as connection:
        ((count,),) = connection.execute(query, (list(ENDED),)).fetchall()
    return int(count)


def _standing(database: Database, work: Work) -> str:
    with database.connect() as connection:
        rows = connection.execute("SELECT state, count(*) FROM babylon_rl.training_attempts GROUP BY 1").fetchall()
    said = ", ".join(f"{count} {state}" for state, count in sorted(rows))
    return f"of {work.chains * work.jobs}: {said or 'nothing yet'}"


def _settle(database: Database, settings: Settings, in_doubt: list[str]) -> int:
    """Compare the step of each job in doubt once more, as a person does; how many were found trained."""
    return sum(settle(database, settings, job_id, "bench").state == "done" for job_id in in_doubt)


# --- what came of it -------------------------------------------------------------------------------

_ALL = """
SELECT s.training_run, s.seed, a.job_id, a.state, a.remote_model_id, a.remote_job_id, a.step_after, a.submissions
FROM babylon_rl.training_attempts a
JOIN (SELECT snapshot_id, training_run, row_number() OVER (PARTITION BY training_run ORDER BY window_ids) - 1 AS seed
      FROM babylon_rl.snapshots) s USING (snapshot_id)
"""


class Found:
    """The ledger's jobs beside the service's books."""

    def __init__(self, database: Database, work: Work, books: Books) -> None:
        self.work, self.books = work, books
        with database.connect() as connection:
            self.rows = connection.execute(_ALL).fetchall()
        self.wrong: list[str] = []
        self.ends: dict[str, Counter[str]] = {}
        self.in_doubt: list[str] = []
        self.keys: set[str] = set()
        self.advances: dict[str, list[float]] = {}
        for job in books.jobs.values():
            if job["advances_at"] is not None:
                self.advances.setdefault(job["model_id"], []).append(job["advances_at"])
        for row in self.rows:
            self._compare(*row)

    def _compare(
        self,
        run: str,
        place: int,
        job_id: str,
        state: str,
        model_id: str | None,
        remote_job_id: str | None,
        step_after: int | None,
        submissions: int,
    ) -> None:
        """One job: what the ledger says of it, and what the service did."""
        key = submission_key(model_id or "", as_sent(submission_of(int(run.partition("-")[2]), place).groups))
        self.keys.add(key)
        theirs = [self.books.jobs[name] for name in self.books.accepted.get(key, ())]
        trained = [job for job in theirs if job["advances_at"] is not None]
        fault = theirs[0]["fault"] if theirs else "never accepted"
        self.ends.setdefault(fault or "nothing", Counter())[state] += 1
        if state == "in_doubt":
            self.in_doubt.append(job_id)
        said = f"job {job_id[:12]} ({run}, {place}, {fault or 'no fault'}) is {state}"
        if state not in ENDED:
            self.wrong.append(f"{said}: no end")
        elif (state == "done" and not trained) or (state == "failed" and (trained or not theirs)):
            self.wrong.append(f"{said}, and the service trained {len(trained)} of {len(theirs)} accepted")
        if remote_job_id and remote_job_id not in self.books.accepted.get(key, ()):
            self.wrong.append(f"{said}: {remote_job_id} is not the service's id of it")
        if state == "done" and self._step_of(model_id, theirs) != step_after:
            self.wrong.append(f"{said}: step {step_after} is another job's")

    def _step_of(self, model_id: str | None, theirs: list[dict[str, Any]]) -> int | None:
        """The step that the job made, by the order in which its model's steps were."""
        times = sorted(self.advances.get(model_id or "", ()))
        return times.index(theirs[0]["advances_at"]) + 1 if theirs and theirs[0]["advances_at"] in times else None

    def as_submissions(self, seed: int, seconds: float, killed: int, settled: int) -> Submissions:
        """The figures."""
        jobs = self.work.chains * self.work.jobs
        return Submissions(
            seed=seed,
            jobs=jobs,
            seconds=round(seconds, 1),
            killed=killed,
            submissions=sum(row[-1] for row in self.rows),
            accepted=len(self.books.jobs),
            twice=len(self.books.twice()),
            overlapping=self.books.overlapping,
            lost=abs(jobs - len(self.rows)) + len({*self.books.accepted} - self.keys),
            ends={fault: dict(states) for fault, states in self.ends.items()},
            settled=settled,
            wrong=self.wrong,
        )
