"""A world for ticks: recorded rows, a clock of its own, and runs that are there because a test says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pandas as pd
import pytest

from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups
from babylon_rl.database.tables import windows as table
from babylon_rl.readiness.changes import Walk
from babylon_rl.readiness.requests import RunState, Tick, tick
from babylon_rl.readiness.verdict import Waits
from babylon_rl.recording.reader import read_windows
from babylon_rl.recording.summary import window_summary
from babylon_rl.windows import parse_window_id
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row, steps_json

START = "2024-01-01T00:00"


def _values(window: str) -> dict:
    end = parse_window_id(window) + timedelta(minutes=30)
    # A step without a time is one of the row's hour.
    steps = json.dumps([{**step, "timestamp": 0} for step in json.loads(steps_json())])
    return {"windowId": window, "startTime": end - timedelta(minutes=20), "endTime": end, "stepsJson": steps}


@dataclass
class World:
    """`now` is two hours after the hour of the tests unless a test moves it."""

    database: Database
    now: datetime = parse_window_id(WINDOW) + timedelta(hours=3)
    waits: Waits = Waits(min_agents=2, settling_minutes=10, outcome_wait_hours=6)
    look_back_hours: int = 48
    walk: Walk = Walk()
    runs: dict[str, RunState] = field(default_factory=dict)
    in_flight: int = 0

    def run_states(self, run_keys: Sequence[str]) -> Mapping[str, RunState]:
        return {key: self.runs[key] for key in run_keys if key in self.runs}

    def tick(self, minutes: float = 1) -> Tick:
        with self.database.connect() as connection:
            found = tick(
                Recordings.of(connection), self.walk, self.now, self.waits, self.look_back_hours, START,
                self.run_states, self.in_flight,
            )  # fmt: skip
        assert found is not None
        self.walk = Walk.of(found.walk.cursor())
        self.now += timedelta(minutes=minutes)
        return found

    def ids(self, minutes: float = 1) -> list[str]:
        """Windows that a tick requests."""
        return [request.window_id for request in self.tick(minutes).requests]

    def row(self, name: str, agent: str = "agent-1", window: str = WINDOW, **changes) -> None:
        """A row that ended half an hour into the window, which it names unless `windowId` says otherwise."""
        with self.database.connect() as connection:
            add_row(connection, name, agent, **{**_values(window), **changes})

    def window(self, window: str = WINDOW, agents: int = 2, **changes) -> None:
        with self.database.connect() as connection:
            for number in range(1, agents + 1):
                add_row(connection, f"{window}-{number}", f"agent-{number}", **{**_values(window), **changes})

    def sql(self, statement: str, *values) -> list[tuple]:
        with self.database.connect() as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def entry(self, window: str = WINDOW) -> tuple[str, str]:
        """State and reason of the window in the ledger."""
        (found,) = self.sql("SELECT state, reason FROM babylon_rl.window_requests WHERE window_id = %s", window)
        return found

    def states(self) -> dict[str, str]:
        return dict(self.sql("SELECT window_id, state FROM babylon_rl.window_requests"))


@pytest.fixture
def world(database) -> World:
    with database.connect() as connection:
        add_agents(connection, *(f"agent-{n}" for n in range(1, 10)))
    return World(database)


def materialize(world: World, *window_ids: str) -> None:
    """What a run of the data assets leaves of the windows, as far as readiness looks at it."""
    with world.database.connect() as connection:
        rows = [
            window_summary(recorded, world.waits.min_agents, world.now)
            for recorded in read_windows(Recordings.of(connection), window_ids)
        ]
        groups = [
            {
                "window_id": row["window_id"], "group": {}, "group_digest": row["revision"], "status": "trainable",
                "reason": "", "members": row["agents"], "left_out": [], "scorer": "alpha",
                "window_revision": row["revision"],
            }
            for row in rows
        ]  # fmt: skip
        replace_windows(connection, table, list(window_ids), pd.DataFrame(rows))
        replace_windows(connection, art_groups, list(window_ids), pd.DataFrame(groups))


def run(world: World, found: Tick) -> None:
    """Every run that the tick requested, to a good end."""
    materialize(world, *(request.window_id for request in found.requests))
    world.runs |= {request.run_key: "succeeded" for request in found.requests}
