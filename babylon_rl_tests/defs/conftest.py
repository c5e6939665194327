"""A real Dagster instance for the tests of definitions."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from babylon_rl.database.urls import with_driver
from babylon_rl.settings import REPOSITORY


@pytest.fixture
def instance(new_database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance as dagster_home/dagster.yaml says, its runs and events in a database of this test."""
    configuration = (REPOSITORY / "dagster_home" / "dagster.yaml").read_text()
    assert "postgres" in yaml.safe_load(configuration)["storage"]
    (tmp_path / "dagster.yaml").write_text(configuration)
    monkeypatch.setenv("DAGSTER_PG_URL", with_driver(new_database().url, "psycopg2"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        # As materializing.py does: Dagster connects anew for each event otherwise.
        instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3_600, max_overflow=5)
        yield instance
