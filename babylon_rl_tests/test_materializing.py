"""Materializing in this process: what an interruption and a failure inside Dagster come out as."""

import os
import signal
import time

import dagster as dg
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.errors import TrainingError
from babylon_rl.materializing import Materializer

WINDOW = "2025-01-15T10:00"


def materializer_of(job: dg.JobDefinition, instance: dg.DagsterInstance) -> Materializer:
    """A materializer whose job is this one."""
    made = Materializer.__new__(Materializer)
    made.instance, made.job = instance, job
    made.stage = lambda title, steps: lambda: None
    made.database = Database("postgresql://127.0.0.1:1/none", embedded=False)
    return made


@dg.op
def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


@dg.op
def failing() -> None:
    raise ValueError("the disk is full")


def test_ctrl_c_inside_a_step_is_an_interruption_and_no_failure():
    @dg.job
    def job() -> None:
        interrupted()

    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(KeyboardInterrupt):
        materializer_of(job, instance).materialize(WINDOW, WINDOW, "", again=True)


def test_a_failed_step_says_what_was_wrong():
    @dg.job
    def job() -> None:
        failing()

    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TrainingError, match="failing: .*the disk is full"):
        materializer_of(job, instance).materialize(WINDOW, WINDOW, "", again=True)
