"""Decoding in lanes: whoever joins, leaves or shares a beginning, each answer is the one that the request has alone."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.serving.adapters import Adapters
from babylon_rl.serving.batching import Call, Engine, Limits
from babylon_rl.serving.decoding import Lane, Row
from babylon_rl.serving.drawing import Draw, draw_tokens
from babylon_rl.serving.kept_keys import Prefixes
from babylon_rl.serving.metrics import EndpointMetrics
from babylon_rl.serving.refusals import NotReady
from babylon_rl.serving.requests import with_prompt
from babylon_rl.serving.texts import TextSoFar, TokenBytes
from babylon_rl.training.policy import Answer, Policy, use_threads
from babylon_rl_tests.serving.serving import alone, request

WORDS = ["ACME", "beats", "sales", "estimates", "and", "rises", "as", "analysts", "cheer", "its", "quarter"]


@pytest.fixture(scope="module")
def shared(tiny: Path) -> Policy:
    use_threads(1)
    return Policy(tiny)


def made_requests(policy: Policy, seed: int, number: int):
    """Prompts of many lengths, of which some begin alike or are the same."""
    stream = random.Random(seed)
    beginnings = [" ".join(stream.choices(WORDS, k=length)) for length in (3, 40, 90)]
    requests = []
    for place in range(number):
        text = f"{stream.choice(beginnings)} {' '.join(stream.choices(WORDS, k=stream.choice([0, 2, 30])))}"
        changes = {"max_tokens": stream.randrange(1, 24), "temperature": stream.choice([0.0, 0.7, 1.0, 1.0])}
        changes["top_p"] = stream.choice([1.0, 0.8])
        requests.append(with_prompt(policy, request(text, place, **changes)))
    return requests


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_join_and_leave_at_random_get_the_answers_they_get_alone(shared, seed):
    requests = made_requests(shared, seed, 24)
    stream, prefixes = random.Random(seed), Prefixes(300_000)
    lane = Lane(shared, None, prefixes)
    coming, rows, gone = list(requests), {}, set()
    with torch.no_grad():
        while coming or any(r.finish_reason is None and i not in gone for i, r in rows.items()):
            for _ in range(min(len(coming), stream.randrange(4))):
                place = len(requests) - len(coming)
                rows[place] = Row(coming.pop(0), shared)
                lane.waiting.append(rows[place])
            lane.prefill(8 - lane.running, tokens=stream.choice([16, 64, 512]))
            lane.step()
            if stream.random() < 0.1 and rows:
                place = stream.choice(list(rows))
                if rows[place].finish_reason is None:
                    lane.remove(rows[place])
                    gone.add(place)
            assert len(lane._cache.lengths) == len(lane.rows)
    assert not lane.running and not lane.waiting or gone
    assert len(gone) < len(requests) / 2
    for place, one in enumerate(requests):
        if place not in gone:
            answered, expected = rows[place].sample(), alone(shared, one)
            assert answered.token_ids == expected.token_ids and answered.text == expected.text
            assert answered.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_logprobs_of_free_text_are_those_that_the_trainer_computes(shared):
    requests = [request(f"ACME news {i}", i, temperature=0.5 + i / 4, max_tokens=12) for i in range(4)]
    samples = [alone(shared, one) for one in requests]
    answers = [
        Answer(s.prompt_token_ids, s.token_ids, None, r.temperature) for s, r in zip(samples, requests, strict=True)
    ]
    with torch.no_grad():
        for members, evaluated in shared.evaluate(answers):
            for member, one in zip(members, evaluated, strict=True):
                assert samples[member].logprobs == pytest.approx(one.logprobs.tolist(), abs=1e-4)


def test_a_beginning_that_is_kept_is_not_computed_again(shared, monkeypatch):
    computed = []
    forward = Lane._forward
    monkeypatch.setattr(
        Lane, "_forward", lambda self, tokens, *rest: computed.append(tokens.numel()) or forward(self, tokens, *rest)
    )
    lane = Lane(shared, None, Prefixes(10**8))
    asked = [with_prompt(shared, request(f"{' '.join(WORDS * 5)} case {i}", i, max_tokens=1)) for i in range(9)]
    for one in asked:
        lane.waiting.append(Row(one, shared))
    with torch.no_grad():
        while lane.waiting or lane.running:
            lane.prefill(64)
    together = len(asked[0].prompt)
    assert sum(computed) < together + 9 * 24 < 3 * together


def test_tokens_are_drawn_with_the_probability_that_is_stated(shared):
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniforms = (np.arange(1000) + 0.5) / 1000
    for top_p in (1.0, 0.8):
        drawn = draw_tokens(logits.expand(1000, -1), [Draw(0.7, top_p, u, 4) for u in uniforms])
        for token, logprob in drawn[0].top.items():
            share = sum(d.token == token for d in drawn) / 1000
            assert share == pytest.approx(np.exp(logprob), abs=2e-3)
            assert all(d.logprob == pytest.approx(logprob) for d in drawn if d.token == token)
        assert sum(np.exp(list(drawn[0].top.values()))) == pytest.approx(1)
        assert len(drawn[0].top) == (4 if top_p == 1 else 2)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("ab \U0001f680é.!n't"), max_size=30),
    stop=st.lists(st.text(st.sampled_from("ab é.\U0001f680"), min_size=1, max_size=4), max_size=3),
)
def test_what_a_stream_says_is_the_whole_text_up_to_the_first_stop(shared, text, stop):
    tokens = shared.chat.answer(text)[:-1]
    so_far, said = TextSoFar(shared.tokenizer, stop), ""
    for length in range(1, len(tokens) + 1):
        said += so_far.take(tokens[:length], last=length == len(tokens))
        if so_far.stopped:
            break
    whole = shared.tokenizer.decode(tokens, skip_special_tokens=True)
    assert said == whole[: min((whole.find(s) for s in stop if s in whole), default=len(whole))] == so_far.text


def test_the_bytes_of_tokens_make_up_the_text(shared):
    known, text = TokenBytes(shared.tokenizer), "ACME's é \U0001f680"
    *tokens, end = shared.chat.answer(text)
    assert bytes(byte for token in tokens for byte in known.of(token)).decode() == text
    assert known.of(end) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_ends_its_calls_and_says_so_and_one_that_is_stopped_does_not(shared):
    died, told, ended = [], [], threading.Event()

    def broken():
        raise RuntimeError("weights cannot be taken out")

    adapters = Adapters(shared, "tiny")
    adapters.free = broken
    engine = Engine(shared, adapters, Limits(), EndpointMetrics(), lambda: (died.append(1), ended.set()))
    engine.start()
    engine.submit(Call(with_prompt(shared, request("Hello", 0, max_tokens=50)), told.append))
    assert ended.wait(30) and died == [1] and isinstance(told[-1].error, NotReady) and not engine.alive
    stopped = Engine(shared, Adapters(shared, "tiny"), Limits(), EndpointMetrics(), lambda: died.append(2))
    stopped.start()
    stopped.stop()
    assert died == [1]
