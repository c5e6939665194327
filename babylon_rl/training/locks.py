"""Who works on a job now: a lock of the server that ends with its connection, so that a dead process holds nothing."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError

# The lock's connection says by its name whose it is.
_NAMED = "babylon-rl job "


class Worker(NamedTuple):
    """The process that works on a job: its id, and the machine it runs on."""

    pid: int
    host: str

    @property
    def here(self) -> bool:
        """Whether that is this machine; the lock holds the beginning of a long name."""
        return self.pid > 0 and _name(self.pid, self.host) == _name(self.pid, socket.gethostname())


def _name(pid: int, host: str) -> str:
    """Name of the lock's connection, as much of it as PostgreSQL keeps."""
    return f"{_NAMED}{pid} {host}"[:63]


@contextlib.contextmanager
def working_on(database: Database, job_id: str) -> Iterator[psycopg.Connection]:
    """A connection for the job's moves, while no other process works on it. TrainingError where one does.

    The lock is a transaction's that stays open, so that it also holds through a pooler of transactions. It has read no
    table and keeps nothing from being cleaned up.
    """
    with database.connect() as lock:
        lock.execute(
            """SELECT set_config('application_name', %s, true),
                      set_config('idle_in_transaction_session_timeout', '0', true)""",
            (_name(os.getpid(), socket.gethostname()),),
        )
        taken = lock.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('babylon_rl training job ' || %s, 0))", (job_id,)
        ).fetchone()
        if taken != (True,):
            raise TrainingError(
                f"Another process works on job {job_id[:12]} now. Wait until it has ended; "
                f"`babylon-rl jobs show {job_id[:12]}` says where it stands, and `jobs cancel` ends a local one."
            )
        with database.connect() as connection:
            connection.commit()  # each move begins its own transaction
            yield connection


def worker_of(connection: psycopg.Connection, job_id: str) -> Worker | None:
    """The process that works on the job now; None where none does."""
    found = connection.execute(
        """SELECT coalesce(a.application_name, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
           WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND ((l.classid::bigint << 32) | l.objid::bigint)
                 = hashtextextended('babylon_rl training job ' || %s, 0)""",
        (job_id,),
    ).fetchone()
    if found is None:
        return None
    pid, _, host = found[0].removeprefix(_NAMED).partition(" ")
    return Worker(int(pid), host) if found[0].startswith(_NAMED) and pid.isdecimal() else Worker(0, "")
