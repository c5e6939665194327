"""A scripted judge, and the settings that name it."""

from collections.abc import Callable, Iterator

import pytest

from babylon_rl.settings import Settings
from babylon_rl_tests.scoring.judge.judge_server import Judge, scripted_judge


@pytest.fixture
def judge() -> Iterator[Judge]:
    with scripted_judge() as judge:
        yield judge


@pytest.fixture
def settings(judge: Judge) -> Callable[..., Settings]:
    """Function that makes settings which name the scripted judge."""

    def make(**changes) -> Settings:
        named = {"judge_model": "scripted", "judge_base_url": judge.base_url, "judge_requests_per_minute": 60_000}
        return Settings(**{**named, **changes})

    return make
