"""Attestation against the endpoint's own process and against services that answer otherwise."""

import json
import math
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest

from babylon_rl.bench import attestation as bench
from babylon_rl.serving.attestation import TOLERANCES, Served, attest, compare
from babylon_rl.serving.routing import Target
from babylon_rl.settings import Settings
from babylon_rl.training.canaries import CANARIES, Canaries, Likely

SAID = Likely(list(range(64)), [f"t{i}" for i in range(64)], [-0.5 - i / 8 for i in range(64)])
EXPECTED = Canaries(
    checkpoint_id="run@1", precision="float32", prompts=[SAID] * len(CANARIES), made_by="trainer", weights_sha256="ab"
)

ONE_TOKEN = {"token": "token_id:1", "logprob": -0.1, "top_logprobs": []}


def served(change: Callable[[dict], dict] = dict, sampled: int = 0) -> list[Served]:
    """The twenty likeliest, one prompt changed."""
    same = dict(zip(SAID.ids[:20], SAID.logprobs[:20], strict=True))
    return [Served(same, sampled)] * (len(CANARIES) - 1) + [Served(change(dict(same)), sampled)]


def test_wrong_weights_are_detected_and_right_ones_let_through_by_a_real_endpoint(tiny):
    settings = Settings().model_copy(
        update={"home": tiny.parents[1], "base_model": "tiny", "device": "cpu", "threads": 1}
    )
    found = bench.measure_attestation(settings, trials=7)
    assert found.as_json()["missed"] == []
    assert {trial.kind for trial in found.trials} == {
        *("right", "earlier", "later", "run", "base", "swapped", "zeroed", "truncated")
    }
    # The tolerance stands well apart from both.
    worst, least = found.as_json()["worst_right"], found.as_json()["least_stale"]
    assert worst < TOLERANCES["float32"] / 4 and least > TOLERANCES["float32"] * 4


def test_a_difference_within_the_tolerance_is_equal_and_one_beyond_it_is_named():
    near = compare(served(lambda told: {**told, 5: told[5] + 1e-4}), EXPECTED, 2e-4)
    assert near.state == "equal" and near.may_serve and near.compared == 20 * len(CANARIES)
    far = compare(served(lambda told: {**told, 5: told[5] - 1e-3}), EXPECTED, 2e-4)
    assert far.state == "differs" and not far.may_serve and far.worst == pytest.approx(1e-3)
    assert f"prompt {len(CANARIES)}" in far.reason and "run@1" in far.reason


def test_a_likely_token_that_one_side_does_not_know_is_a_difference():
    unknown = compare(served(lambda told: {**told, 999: -0.4}), EXPECTED, 2e-4)
    assert unknown.state == "differs" and unknown.worst == pytest.approx(SAID.logprobs[0] + 0.1 - SAID.logprobs[-1])
    told = served(lambda told: {name: value for name, value in told.items() if name != 3})
    assert compare(told, EXPECTED, 2e-4).state == "differs"


def test_a_sampled_token_beside_the_likeliest_ones_is_no_difference():
    within = compare(served(lambda told: {**told, 40: SAID.logprobs[40]}, sampled=40), EXPECTED, 2e-4)
    assert within.state == "equal"
    # Beyond those that are stored it can only be less likely than all of them.
    beyond = compare(served(lambda told: {**told, 999: -30.0}, sampled=999), EXPECTED, 2e-4)
    assert beyond.state == "equal"


def test_what_is_no_number_is_never_equal():
    found = compare(served(lambda told: {**told, 5: math.nan}), EXPECTED, 2e-4)
    assert found.state == "differs" and found.worst is None and json.loads(msgspec.json.encode(found))


class Service(ThreadingHTTPServer):
    """A service that answers each prompt as `say` does: a status and a body."""

    def __init__(self, say: Callable[[dict], tuple[int, object]], models: object = None) -> None:
        asked: list[tuple[str | None, dict]] = []
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200 if models else 404, models or {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.headers["Authorization"], body))
                self.reply(*say(body))

            def reply(self, status: int, body: object) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def target(self, **fields) -> Target:
        return Target(
            checkpoint_id="run@1", base_url=f"http://127.0.0.1:{self.server_address[1]}/v1", model="m", **fields
        )


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    running: list[Service] = []

    def start(say: Callable[[dict], tuple[int, object]], models: object = None) -> Service:
        running.append(Service(say, models))
        Thread(target=running[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return running[-1]

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def told(names: list[str], logprobs: list[float]) -> tuple[int, object]:
    entries = [{"token": n, "logprob": p} for n, p in zip(names, logprobs, strict=True)]
    content = {**entries[0], "top_logprobs": entries}
    return 200, {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [content]}}]}


def test_a_service_that_names_token_ids_or_texts_is_asked_as_an_agent_would(service):
    by_id = service(lambda _: told([f"token_id:{i}" for i in SAID.ids[:20]], SAID.logprobs[:20]))
    assert attest(by_id.target(), EXPECTED, key="k").state == "equal"
    authorization, body = by_id.asked[0]
    assert authorization == "Bearer k" and body["return_tokens_as_token_ids"] and body["temperature"] == 1
    assert sorted(json.dumps(body["messages"]) for _, body in by_id.asked) == sorted(json.dumps(c) for c in CANARIES)
    by_text = service(lambda _: told(SAID.texts[:20], SAID.logprobs[:20]))
    assert attest(by_text.target(fields="openai"), EXPECTED).state == "equal"
    assert "return_tokens_as_token_ids" not in by_text.asked[0][1]
    other = service(lambda _: told(SAID.texts[:20], [p - 0.01 for p in SAID.logprobs[:20]]))
    assert attest(other.target(fields="openai"), EXPECTED).state == "differs"


def test_texts_that_no_stored_token_has_say_nothing_either_way(service):
    strange = service(lambda _: told([f"?{i}" for i in range(20)], SAID.logprobs[:20]))
    found = attest(strange.target(fields="openai"), EXPECTED)
    assert found.state == "unavailable" and not found.may_serve


def test_the_weights_that_an_endpoint_lists_are_compared_first(service):
    models = {"data": [{"id": "m", "weights_sha256": "cd"}]}
    listing = service(lambda _: told(SAID.texts[:20], SAID.logprobs[:20]), models)
    found = attest(listing.target(), EXPECTED, weights_sha256="ab")
    assert found.state == "differs" and "cd" in found.reason and listing.asked == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {"error": "no memory"}), "no memory"),
        ((200, {"choices": []}), "without log-probabilities"),
        ((200, {"choices": [{"logprobs": None}]}), "without log-probabilities"),
        ((200, {"choices": [{"logprobs": {"content": [ONE_TOKEN]}}]}), "names no likeliest tokens"),
        ((200, ["no object"]), "without log-probabilities"),
    ],
)
def test_an_answer_that_cannot_be_compared_is_unavailable_with_the_reason(service, answer, said):
    found = attest(service(lambda _: answer).target(), EXPECTED)
    assert found.state == "unavailable" and not found.may_serve and said in found.reason


def test_what_a_service_keeps_is_served_with_the_reason_and_only_when_it_answers(service):
    answers = service(lambda _: told(SAID.texts[:20], SAID.logprobs[:20])).target(fields="openai")
    found = attest(answers, None, hosted=True)
    assert found.state == "unavailable" and found.may_serve and "A service keeps the weights" in found.reason
    local = attest(answers, None)
    assert local.state == "unavailable" and not local.may_serve
    nobody = Target(checkpoint_id="run@1", base_url="http://127.0.0.1:1/v1", model="m")
    gone = attest(nobody, None, hosted=True)
    assert gone.state == "unavailable" and not gone.may_serve and "could not be asked" in gone.reason
    earlier_set = msgspec.structs.replace(EXPECTED, canary_set="0" * 16)
    assert not attest(answers, earlier_set).may_serve


def test_the_bench_has_each_kind_of_trial_in_few_and_the_shares_in_a_hundred():
    assert set(bench.kinds_of(7)) == set(bench.KINDS)
    assert sorted(bench.kinds_of(100)) == sorted(bench.KINDS)
