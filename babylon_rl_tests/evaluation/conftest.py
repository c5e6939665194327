"""Fixtures of evaluations: one running endpoint, and checkpoints of the tiny model that it answers with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.database.connect import Database
from babylon_rl.evaluation import asking
from babylon_rl.serving.process import Endpoint, running_endpoint
from babylon_rl.settings import Settings, get_settings
from babylon_rl_tests.evaluation.asked import book, make_adapters, one_endpoint


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_adapters(tiny, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def served(tiny: Path, adapters: dict[str, Path]) -> Iterator[Endpoint]:
    with running_endpoint(tiny, asking.BASE, "cpu", 1, {n: str(f) for n, f in adapters.items()}) as endpoint:
        yield endpoint


@pytest.fixture
def booked(database: Database, adapters, served, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a home with the tiny model; the database knows a run with two checkpoints."""
    monkeypatch.setenv("BABYLON_RL_HOME", str(tiny.parent.parent))
    get_settings.cache_clear()
    monkeypatch.setattr(asking, "running_endpoint", one_endpoint(served))
    book(database, adapters)
    return get_settings()
