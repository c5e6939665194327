"""The endpoint as agents use it: the real application over the tiny model, and the real process once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from babylon_rl.errors import ServingError
from babylon_rl.serving.application import build_application
from babylon_rl.serving.process import running_endpoint
from babylon_rl.training.policy import Policy

ASK = {
    "model": "base",
    "messages": [{"role": "system", "content": "You trade on news."}, {"role": "user", "content": "BUY or SELL?"}],
    "structured_outputs": {"choice": ["BUY ACME", "SELL ACME", "HOLD ACME"]},
    "logprobs": True,
    "return_token_ids": True,
    "seed": 3,
}


@pytest.fixture
def client(policy: Policy) -> Iterator[TestClient]:
    with TestClient(build_application(policy, "base")) as client:
        yield client


def ask(client: TestClient, **changes) -> httpx.Response:
    return client.post("/v1/chat/completions", json={**ASK, **changes})


def test_a_constrained_answer_is_one_of_the_choices_with_its_tokens_and_logprobs(client):
    body = ask(client).json()
    choice = body["choices"][0]
    assert choice["message"]["content"] in ASK["structured_outputs"]["choice"]
    tokens = [int(entry["token"].removeprefix("token_id:")) for entry in choice["logprobs"]["content"]]
    assert tokens == choice["token_ids"]
    assert body["usage"]["prompt_tokens"] == len(body["prompt_token_ids"])
    assert body["checkpoint"] == "base"


def test_the_same_seed_gives_the_same_answer_and_seeds_differ(client):
    answers = [ask(client, seed=s).json()["choices"][0]["message"]["content"] for s in [*range(20), *range(20)]]
    assert answers[:20] == answers[20:]
    assert len(set(answers)) > 1


def test_logprobs_are_the_frequencies_of_the_answers(client):
    import math
    from collections import Counter

    counted, stated = Counter(), {}
    for seed in range(300):
        choice = ask(client, seed=seed, exploration=0.5).json()["choices"][0]
        text = choice["message"]["content"]
        counted[text] += 1
        stated[text] = math.exp(sum(entry["logprob"] for entry in choice["logprobs"]["content"]))
    for text, probability in stated.items():
        assert counted[text] / 300 == pytest.approx(probability, abs=4 * math.sqrt(probability / 300))


def test_temperature_zero_is_greedy_and_certain(client):
    choices = [ask(client, temperature=0, seed=s).json()["choices"][0] for s in range(5)]
    assert len({c["message"]["content"] for c in choices}) == 1
    assert sum(entry["logprob"] for entry in choices[0]["logprobs"]["content"]) == 0


def test_free_text_ends_at_max_tokens(client):
    choice = ask(client, structured_outputs=None, max_tokens=4).json()["choices"][0]
    assert len(choice["token_ids"]) <= 4
    assert choice["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 99}, "n is 1 to 16"),
        ({"messages": None}, "messages is missing"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user"}]}, "not a chat completion"),
        ({"structured_outputs": {"choice": []}}, "at least one answer"),
        ({"exploration": 0.1, "structured_outputs": None}, "needs structured_outputs.choice"),
        ({"temperature": -1}, "temperature is 0 to 10"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0.5}, "top_p must be 1"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(client, changes, said):
    response = ask(client, **changes)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_a_body_that_is_not_json_is_refused(client):
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400


def test_the_process_starts_answers_the_openai_client_and_ends(tiny: Path):
    from openai import OpenAI

    with running_endpoint(tiny, "base", "cpu", 1) as endpoint:
        client = OpenAI(base_url=endpoint.base_url, api_key="none")
        assert [model.id for model in client.models.list()] == ["base"]
        answer = client.chat.completions.create(
            model="base",
            messages=ASK["messages"],
            logprobs=True,
            extra_body={"structured_outputs": ASK["structured_outputs"]},
        )
        assert answer.choices[0].message.content in ASK["structured_outputs"]["choice"]
        with pytest.raises(ServingError, match="did not load"):
            endpoint.load("missing", "/nowhere")
        with pytest.raises(ServingError, match="did not unload"):
            endpoint.unload("missing")
        stream = client.chat.completions.create(
            model="base", messages=ASK["messages"], max_tokens=150, temperature=2.0, seed=1, stream=True
        )
        next(stream)
        thread = ThreadPoolExecutor(1)
        left = thread.submit(lambda: [chunk.choices[0].finish_reason for chunk in stream])
    # The endpoint was told to end while it answered; it finished that first.
    assert left.result()[-1] in ("length", "stop") and len(left.result()) > 50
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{endpoint.base_url}/models", timeout=2)


def test_an_endpoint_that_cannot_start_says_why(tmp_path: Path):
    with pytest.raises(ServingError, match="cannot be read"), running_endpoint(tmp_path, "base", "cpu", 1):
        pass


def test_an_endpoint_without_a_loop_that_answers_is_alive_and_not_ready(policy: Policy):
    client = TestClient(build_application(policy, "base"))  # not entered, so that its loop does not run
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    response = ask(client)
    assert response.status_code == 503 and response.json()["error"]["code"] == "not_ready"
    assert response.headers["Retry-After"] == "1"
