"""Databases as a stranger has them: the application's tables in a schema, and a role that may only read them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.engine import make_url

from babylon_rl.database.application_tables import application_metadata, position
from babylon_rl.database.connect import Database
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.rows import snowflake
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, shift_window
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row, make_run, steps_json

NOW = parse_window_id(WINDOW) + 100 * WINDOW_LENGTH
PASSWORD = "secret-word"


def with_tables(database: Database, schema: str = "game", leave_out: tuple[str, ...] = ()) -> str:
    """The database's URL with `?schema=`, in which the application's tables were made."""
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    url = f"{database.url}&schema={schema}"
    tables = [table for name, table in application_metadata.tables.items() if name not in leave_out]
    with Database(url, embedded=False).engine().begin() as connection:
        connection.execute(sa.text("SET LOCAL search_path TO " + schema))
        application_metadata.create_all(connection, tables=tables, checkfirst=False)
        if position.name not in leave_out:
            position.create(connection, checkfirst=False)
    Database(url, embedded=False).engine().dispose()
    return url


@contextmanager
def reader(url: str, schema: str, tables: tuple[str, ...] | None = None, usage: bool = True) -> Iterator[str]:
    """URL of a new role that may SELECT from the tables (None: from all) and nothing else."""
    name = f"reader_{make_url(url).database}"
    role, space = sql.Identifier(name), sql.Identifier(schema)
    with psycopg.connect(url.replace(f"&schema={schema}", ""), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(PASSWORD)))
        if usage:
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(space, role))
        granted = (
            sql.SQL("ALL TABLES IN SCHEMA {}").format(space)
            if tables is None
            else sql.SQL(", ").join(sql.Identifier(schema, table) for table in tables)
        )
        if granted.as_string(connection):
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(granted, role))
        try:
            yield make_url(url).set(username=name, password=PASSWORD).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def add_live_ticks(connection: psycopg.Connection, agents: int = 4, windows: int = 2) -> None:
    """What the application records of its agents in production: ticks without LLM calls."""
    names = [f"agent-{number}" for number in range(agents)]
    add_agents(connection, *names)
    for hour in range(windows):
        for name in names:
            add_live_tick(connection, f"tick-{hour}-{name}", name, hour)


def add_live_tick(connection: psycopg.Connection, name: str, agent: str, hour: int, **changes: Any) -> None:
    """A tick without LLM calls so many hours after `WINDOW`."""
    window_id = shift_window(WINDOW, hour)
    end = parse_window_id(window_id) + timedelta(minutes=30)
    steps = [{**s, "timestamp": s["timestamp"] + 3_600_000 * hour} for s in json.loads(steps_json(0.0, 2.0))]
    ids = {"id": snowflake(f"row {name}"), "trajectoryId": snowflake(name), "scenarioId": window_id}
    row = {**ids, "windowId": window_id, "stepsJson": json.dumps(steps), "endTime": end}
    add_row(connection, name, agent, **{**row, "startTime": end - timedelta(minutes=20), **changes})


def add_played(connection: psycopg.Connection, agents: int = 4, windows: int = 2) -> None:
    """What our recorder writes: runs with text and log-probabilities."""
    names = [f"agent-{number}" for number in range(agents)]
    add_agents(connection, *names)
    for hour in range(windows):
        window_id = shift_window(WINDOW, hour)
        write_runs(connection, [make_run(f"{window_id}-{name}", name, window=window_id) for name in names])
