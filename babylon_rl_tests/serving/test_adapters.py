"""Adapters are loaded, replaced and unloaded under load: no call is dropped, and none is answered by mixed weights."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from safetensors.torch import load_file, save_file

from babylon_rl.errors import ModelError
from babylon_rl.serving.application import build_application
from babylon_rl.serving.batching import Limits
from babylon_rl.serving.process import Endpoint
from babylon_rl.serving.requests import SampleRequest
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl_tests.serving.serving import alone, make_adapter, request, served

WEIGHTS = "adapter_model.safetensors"
CHOICES = ["BUY ACME", "SELL ACME", "HOLD ACME"]


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory) -> list[Path]:
    use_threads(1)
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny, folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def url(tiny: Path, adapters) -> Iterator[str]:
    with served(build_application(Policy(tiny), "base", limits=Limits(rows=8))) as base_url:
        yield base_url


@pytest.fixture
def endpoint(url: str) -> Iterator[Endpoint]:
    yield Endpoint(url)
    for model in listed(url):
        if model != "base":
            Endpoint(url).unload(model)


def listed(url: str) -> dict[str, str | None]:
    """Digest of the weights by model."""
    return {one["id"]: one["weights_sha256"] for one in httpx.get(f"{url}/models").json()["data"]}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


class Asked(NamedTuple):
    """A call: its model, its seed, whether it has choices, and the tokens and log-probabilities that it was given."""

    model: str
    seed: int
    constrained: bool
    tokens: list[int]
    logprobs: list[float]


def body(model: str, seed: int, constrained: bool) -> dict:
    asked = {"model": model, "messages": [{"role": "user", "content": f"ACME news {seed % 5}"}], "seed": seed}
    asked |= {"max_tokens": 8, "logprobs": True, "return_token_ids": True}
    return asked | ({"structured_outputs": {"choice": CHOICES}} if constrained else {})


def ask(client: httpx.Client, url: str, model: str, seed: int, constrained: bool = False) -> Asked:
    response = client.post(f"{url}/chat/completions", json=body(model, seed, constrained), timeout=60)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    return Asked(model, seed, constrained, choice["token_ids"], logprobs)


class References:
    """What each state of the weights answers to a request alone."""

    def __init__(self, tiny: Path, adapters: list[Path]) -> None:
        self.policy = Policy(tiny)
        for place, folder in enumerate(adapters):
            self.policy.add_adapter(folder, f"state{place}")
        self._known: dict[tuple, tuple] = {}

    def answer(self, state: int | None, seed: int, constrained: bool) -> tuple:
        key = (state, seed, constrained)
        if key not in self._known:
            one: SampleRequest = request(
                f"ACME news {seed % 5}",
                seed,
                adapter=None if state is None else f"state{state}",
                choices=CHOICES if constrained else None,
            )
            made = alone(self.policy, one)
            self._known[key] = (made.token_ids, made.logprobs)
        return self._known[key]

    def states_of(self, one: Asked) -> list[int | None]:
        """The states of which the answer is exactly the one that was given."""
        found = []
        for state in (None, 0, 1):
            tokens, logprobs = self.answer(state, one.seed, one.constrained)
            if tokens == one.tokens and one.logprobs == pytest.approx(logprobs, abs=2e-4):
                found.append(state)
        return found


@pytest.fixture(scope="module")
def references(tiny: Path, adapters) -> References:
    return References(tiny, adapters)


def test_adapters_switch_under_load_without_a_dropped_or_mixed_answer(endpoint, url, adapters, references):
    endpoint.load("a", str(adapters[0]))
    stop, answers, failed = threading.Event(), [], []

    def agent(number: int) -> None:
        with httpx.Client() as client:
            seed = number * 5
            while not stop.is_set():
                model = ("a", "a", "a", "base")[len(answers) % 4]
                try:
                    answers.append(ask(client, url, model, seed, constrained=seed % 5 == 0))
                except Exception as error:
                    failed.append(error)
                seed = (seed + 1) % 36

    switches = 0
    with ThreadPoolExecutor(6) as pool, httpx.Client() as client:
        agents = [pool.submit(agent, number) for number in range(6)]
        try:
            for switch in range(1, 9):
                state = switch % 2
                assert endpoint.load("a", str(adapters[state]), in_place=True) == digest(adapters[state])
                # Whoever asks after the switch gets the weights that it named, whatever else is being answered.
                asked = ask(client, url, "a", 7, constrained=False)
                assert references.states_of(asked) == [state]
                endpoint.load("b", str(adapters[1 - state]))
                assert references.states_of(ask(client, url, "b", 8)) == [1 - state]
                endpoint.unload("b")
                switches += 1
        finally:
            stop.set()
        for one in agents:
            one.result()
    assert not failed and switches == 8 and len(answers) > 40
    seen = set()
    for one in answers:
        states = references.states_of(one)
        assert states and (states == [None] if one.model == "base" and not one.constrained else True), one
        if one.model == "a":
            assert {0, 1} & set(states), one
            seen |= set(states) if len(states) == 1 else set()
        else:
            assert None in states
    assert seen == {0, 1}


def test_a_call_in_flight_ends_with_the_weights_that_it_began_with(endpoint, url, adapters, references):
    endpoint.load("a", str(adapters[0]))
    long = body("a", 3, False) | {"max_tokens": 200, "stream": True}
    tokens: list[int] = []
    switched = False
    with httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            tokens += choice["token_ids"]
            if tokens and not switched:
                switched = True
                endpoint.load("a", str(adapters[1]), in_place=True)
                endpoint.unload("a")
                assert httpx.post(f"{url}/chat/completions", json=body("a", 3, False)).status_code == 404
    one = request("ACME news 3", 3, adapter="state0", max_tokens=200)
    assert tokens == alone(references.policy, one).token_ids and len(tokens) > 50
    assert list(listed(url)) == ["base"]


def test_the_listed_digest_is_that_of_the_loaded_weights(endpoint, url, adapters):
    endpoint.load("run.1@3", str(adapters[0]))
    endpoint.load("b", str(adapters[1]))
    assert listed(url) == {"base": None, "run.1@3": digest(adapters[0]), "b": digest(adapters[1])}
    told = {one["id"]: one for one in httpx.get(f"{url}/models").json()["data"]}
    assert told["b"]["parent"] == "base" and told["b"]["root"] == str(adapters[1])
    # Again the same weights: nothing changes. Others need load_inplace.
    assert endpoint.load("b", str(adapters[1])) == digest(adapters[1])
    answer = httpx.post(f"{url}/load_lora_adapter", json={"lora_name": "b", "lora_path": str(adapters[0])})
    assert answer.status_code == 400 and "load_inplace" in answer.json()["error"]["message"]
    assert listed(url)["b"] == digest(adapters[1])


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / WEIGHTS)


def of_another_shape(folder: Path) -> None:
    save_file({name: t.repeat(2, 2) for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def not_finite(folder: Path) -> None:
    save_file({name: t * float("nan") for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (truncated, 400),
        (without_a_tensor, 400),
        (of_another_shape, 400),
        (not_finite, 400),
        (lambda folder: (folder / WEIGHTS).unlink(), 404),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), 400),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "replacing"])
def test_a_load_that_fails_leaves_all_as_it_was(endpoint, url, adapters, references, tmp_path, damage, status, first):
    if not first:
        endpoint.load("a", str(adapters[0]))
    before = listed(url)
    damage(shutil.copytree(adapters[1], tmp_path / "damaged"))
    asked = {"lora_name": "a", "lora_path": str(tmp_path / "damaged"), "load_inplace": True}
    answer = httpx.post(f"{url}/load_lora_adapter", json=asked)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert listed(url) == before
    with httpx.Client() as client:
        assert references.states_of(ask(client, url, "base", 5)) == [None]
        if not first:
            assert references.states_of(ask(client, url, "a", 5)) == [0]
        endpoint.load("a", str(adapters[1]), in_place=True)
        assert references.states_of(ask(client, url, "a", 5)) == [1]


def test_an_unknown_adapter_cannot_be_unloaded_and_the_base_cannot_be_replaced(url, adapters):
    answer = httpx.post(f"{url}/unload_lora_adapter", json={"lora_name": "nobody"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    asked = {"lora_name": "base", "lora_path": str(adapters[0])}
    assert httpx.post(f"{url}/load_lora_adapter", json=asked).status_code == 400
    assert httpx.post(f"{url}/load_lora_adapter", json={"lora_name": "x"}).status_code == 400


def test_an_adapter_does_not_wait_for_the_many_calls_of_another(endpoint, url, adapters):
    """Eight rows and 32 long calls of one adapter: three short ones of the other end before most of them."""
    endpoint.load("a", str(adapters[0]))
    endpoint.load("b", str(adapters[1]))
    ended: list[str] = []

    def run(model: str, seed: int, tokens: int) -> None:
        httpx.post(f"{url}/chat/completions", json=body(model, seed, False) | {"max_tokens": tokens}, timeout=60)
        ended.append(model)

    with ThreadPoolExecutor(36) as pool:
        many = [pool.submit(run, "a", seed, 30) for seed in range(32)]
        wait(many, return_when=FIRST_COMPLETED)
        for one in [pool.submit(run, "b", seed, 8) for seed in range(3)]:
            one.result()
        before = ended.count("a")
        for one in many:
            one.result()
    assert before < 24 and ended.count("b") == 3


def test_a_policy_without_adapters_left_is_the_base_model_again(tiny: Path, adapters):
    policy = Policy(tiny)
    bare = [name for name, _ in policy.model.named_modules()]
    one = request("ACME", 1)
    said = alone(policy, one)
    policy.add_adapter(adapters[0], "a")
    policy.add_adapter(adapters[1], "b")
    policy.remove_adapter("a")
    assert policy.adapters == ["b"] and alone(policy, one).token_ids == said.token_ids
    policy.remove_adapter("b")
    assert [name for name, _ in policy.model.named_modules()] == bare and alone(policy, one) == said
    with pytest.raises(ModelError, match="No adapter"):
        policy.remove_adapter("b")
