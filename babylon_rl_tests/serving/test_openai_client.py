"""The endpoint under the real `openai` client: streams, log-probabilities, stop, seed, several answers, errors."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai import OpenAI

from babylon_rl.serving.application import build_application
from babylon_rl.serving.batching import Limits
from babylon_rl.training.policy import Answer, Policy, use_threads
from babylon_rl_tests.serving.serving import served

SAID = [{"role": "system", "content": "You trade on news."}, {"role": "user", "content": "ACME beats estimates."}]
CHOICES = {"structured_outputs": {"choice": ["BUY ACME", "SELL ACME", "HOLD"]}}


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    use_threads(1)
    with served(build_application(Policy(tiny), "base")) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none", max_retries=0)


def ask(client: OpenAI, seed: int = 1, tokens: int = 12, extra: dict | None = None, **options):
    own = {"return_token_ids": True, **(extra or {})}
    return client.chat.completions.create(
        model="base", messages=SAID, seed=seed, max_tokens=tokens, extra_body=own, **options
    )


def streamed(client: OpenAI, **options):
    """Text, token ids, log-probabilities, finish reason and usage of a stream."""
    text, tokens, logprobs, ended, usage = "", [], [], None, None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, logprobs=True, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tokens += choice.token_ids
            logprobs += [one.logprob for one in choice.logprobs.content] if choice.logprobs else []
            ended = choice.finish_reason or ended
    return text, tokens, logprobs, ended, usage


@pytest.mark.parametrize("extra", [{}, CHOICES])
def test_a_stream_says_what_the_whole_answer_says(client, extra):
    for seed in range(6):
        whole = ask(client, seed, extra=extra, logprobs=True)
        text, tokens, logprobs, ended, usage = streamed(client, seed=seed, extra=extra)
        (choice,) = whole.choices
        assert (text, tokens, ended) == (choice.message.content, choice.token_ids, choice.finish_reason)
        assert logprobs == pytest.approx([one.logprob for one in choice.logprobs.content], abs=1e-5)
        assert usage == whole.usage and usage.completion_tokens == len(tokens)


def test_top_logprobs_are_the_models_at_every_place(client, policy):
    answer = ask(client, logprobs=True, top_logprobs=20, tokens=5)
    (choice,) = answer.choices
    for place, entry in enumerate(choice.logprobs.content):
        assert entry.token == f"token_id:{choice.token_ids[place]}" and len(entry.top_logprobs) == 20
        told = [one.logprob for one in entry.top_logprobs]
        assert told == sorted(told, reverse=True)
        tokens = [int(one.token.removeprefix("token_id:")) for one in entry.top_logprobs]
        before = answer.prompt_token_ids + choice.token_ids[:place]
        with torch.no_grad():
            for members, evaluated in policy.evaluate([Answer(before, [t], None, 1.0) for t in tokens]):
                for member, one in zip(members, evaluated, strict=True):
                    assert told[member] == pytest.approx(float(one.logprobs[0]), abs=1e-4)


def test_top_logprobs_of_choices_are_those_of_what_may_follow(client):
    (choice,) = ask(client, logprobs=True, top_logprobs=5, extra=CHOICES).choices
    for entry in choice.logprobs.content:
        told = {one.token: one.logprob for one in entry.top_logprobs}
        assert told[entry.token] == pytest.approx(entry.logprob)
        assert sum(2.718281828459045**value for value in told.values()) == pytest.approx(1)


def test_a_stop_cuts_the_text_and_keeps_the_drawn_tokens(client):
    (whole,) = ask(client, 4, 30).choices
    text = whole.message.content
    for begin, end in ((5, 6), (7, 12), (len(text) - 3, len(text))):
        stop = text[begin:end]
        (cut,) = ask(client, 4, 30, stop=[stop, "never said"]).choices
        assert cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop"
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert streamed(client, seed=4, tokens=30, stop=stop)[:2] == (cut.message.content, cut.token_ids)


def test_a_seed_gives_the_same_answer_alone_and_among_many(client):
    def said(seed: int) -> str:
        return ask(client, seed, 20).choices[0].message.content

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(said, range(24)))
    assert together == [said(seed) for seed in range(24)] and len(set(together)) > 20


def test_several_answers_have_seeds_of_their_own_and_the_first_is_that_of_one(client):
    several = ask(client, 5, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices[0].message.content == ask(client, 5).choices[0].message.content
    assert len({choice.message.content for choice in several.choices}) == 3
    assert several.usage.completion_tokens == sum(len(choice.token_ids) for choice in several.choices)


def test_parts_of_text_and_max_completion_tokens_are_read(client):
    parts = [{"type": "text", "text": "ACME "}, {"type": "text", "text": "beats estimates."}]
    said = [SAID[0], {"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="base", messages=said, seed=1, max_completion_tokens=12)
    assert answer.choices[0].message.content == ask(client).choices[0].message.content


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"model": "nobody@9"}, 404, "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, None),
        ({"presence_penalty": 1.0}, 400, None),
        ({"top_logprobs": 21, "logprobs": True}, 400, None),
        ({"top_logprobs": 2}, 400, None),
        ({"stop": ""}, 400, None),
        ({"n": 0}, 400, None),
        ({"messages": [{"role": "user", "content": "ACME " * 2000}]}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 9 * 1024 * 1024}]}, 413, "request_too_large"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_openais_shape(client, options, status, code, stream):
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**{"model": "base", "messages": SAID, "stream": stream, **options})
    assert raised.value.status_code == status and raised.value.code == code
    assert set(raised.value.body) == {"message", "type", "param", "code"} and raised.value.body["message"]


def test_ready_metrics_and_models_tell_the_state(client, url):
    here = url.removesuffix("/v1")
    assert httpx.get(f"{here}/health").json() == {"status": "ok"} and httpx.get(f"{here}/ready").status_code == 200
    ask(client, tokens=3)
    told = httpx.get(f"{here}/metrics").text
    for name in ("queue_length", "running", "batch_size_count", "tokens_in_total", "tokens_out_total",
                 "time_to_first_token_seconds_count", "step_seconds_count", "adapters_loaded"):  # fmt: skip
        assert f"babylon_endpoint_{name} " in told
    (base,) = client.models.list()
    assert (base.id, base.parent, base.max_model_len) == ("base", None, 1024)
    assert httpx.get(f"{here}/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_caller_that_leaves_is_not_answered_to_the_end(client, url):
    with ask(client, tokens=900, stream=True, temperature=2.0) as stream:
        for _ in zip(range(3), stream, strict=False):
            pass
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.05), tokens=900, temperature=2.0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        told = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
        if 'calls_total{end="cancelled"} 2.0' in told and "babylon_endpoint_running 0.0" in told:
            return
        time.sleep(0.05)
    raise AssertionError(told)


def test_calls_beyond_the_queue_get_a_429_and_those_within_it_their_answers(policy):
    application = build_application(policy, "base", limits=Limits(waiting=4, rows=2))
    with served(application) as base_url, ThreadPoolExecutor(24) as pool:
        client = OpenAI(base_url=base_url, api_key="none", max_retries=0)

        def said(seed: int):
            try:
                return ask(client, seed, 40).choices[0].message.content
            except openai.RateLimitError as error:
                assert int(error.response.headers["Retry-After"]) >= 1 and error.code == "queue_full"
                return None

        answers = list(pool.map(said, range(24)))
        refused = [seed for seed, answer in enumerate(answers) if answer is None]
        assert refused and len(refused) < 24
        waited = client.with_options(max_retries=0)
        assert [ask(waited, s, 40).choices[0].message.content for s in range(24) if s not in refused] == [
            answer for answer in answers if answer is not None
        ]


def test_a_failing_step_fails_its_calls_and_the_endpoint_goes_on(policy, monkeypatch):
    from babylon_rl.serving.decoding import Lane

    step = Lane.step
    with served(build_application(policy, "base")) as base_url:
        client = OpenAI(base_url=base_url, api_key="none", max_retries=0)

        def broken(self):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(Lane, "step", broken)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            ask(client)
        text = ask(client, extra=CHOICES).choices[0].message.content  # needs no step
        monkeypatch.setattr(Lane, "step", step)
        assert text in CHOICES["structured_outputs"]["choice"] and ask(client).choices[0].message.content
