"""A real Dagster instance for the tests of definitions."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.database.urls import with_driver
from babylon_rl.settings import REPOSITORY


@pytest.fixture
def instance(new_database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance as dagster_home/dagster.yaml says, its runs and events in a database of this test."""
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_PG_URL", with_driver(new_database().url, "psycopg2"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance
