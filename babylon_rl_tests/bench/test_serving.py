"""The endpoint's bench: no prompt is asked twice, and both ways count the tokens that were really drawn."""

import asyncio
from itertools import islice

import pytest

from babylon_rl.bench.pairs import Compared, Limit
from babylon_rl.bench.serving import ALONE, CHOICES, TEXT, TOGETHER, Drawn, Served, _seconds, bodies
from babylon_rl.serving.application import build_application
from babylon_rl_tests.serving.serving import served


@pytest.mark.parametrize("kind", [TEXT, CHOICES])
def test_no_prompt_is_asked_twice(kind):
    asked = [body["messages"][1]["content"] for body in islice(bodies(kind, 0), 200)]
    assert len(set(asked)) == 200
    assert all(("structured_outputs" in body) == (kind == CHOICES) for body in islice(bodies(kind, 0), 8))


def test_seconds_are_those_of_the_tokens_that_were_drawn(policy):
    drawn = Drawn()
    with served(build_application(policy, "base")) as base_url:
        for at_a_time in (6, 1):
            batch = list(islice(bodies(TEXT, at_a_time), 6))
            assert asyncio.run(_seconds(base_url, batch, at_a_time, drawn)) > 0
    assert drawn.calls == 12 and 12 <= drawn.tokens <= 12 * 32 and drawn.prompt > 12 * 40


def test_the_figure_is_of_free_text():
    def compared(kind: str, ratio: float) -> Compared:
        limits = [Limit(of=TOGETHER, against=ALONE, least=3.0)] if kind == TEXT else []
        return Compared(title=kind, rows=1000, seconds={TOGETHER: [1.0], ALONE: [ratio]}, limits=limits)

    def found(text: float) -> Served:
        return Served(
            model="tiny", threads=1, concurrent=32, alone=8, pairs=1, seed=0, prompt={TEXT: 60, CHOICES: 60},
            tokens={TEXT: 32, CHOICES: 3}, compared=[compared(TEXT, text), compared(CHOICES, 1.5)],
        )  # fmt: skip

    assert found(3.1).reached and not found(2.9).reached
    assert "tokens/s" in found(3.1).table() and "MISSED" in found(2.9).table()
