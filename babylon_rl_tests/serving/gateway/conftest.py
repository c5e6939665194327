"""A scripted upstream and a gateway before it, shared by the tests of a module."""

from collections.abc import Iterator

import pytest

from babylon_rl_tests.serving.gateway.stand_in import InProcess, Upstream, answering, in_process, prepare


@pytest.fixture(scope="module")
def _upstream() -> Iterator[Upstream]:
    with Upstream().running() as upstream:
        yield upstream


@pytest.fixture
def upstream(_upstream: Upstream) -> Upstream:
    _upstream.answer = answering
    _upstream.asked.clear()
    _upstream.headers.clear()
    return _upstream


@pytest.fixture
def gateway(upstream: Upstream, tmp_path) -> Iterator[InProcess]:
    prepare(tmp_path, upstream)
    with in_process(tmp_path) as running:
        yield running
