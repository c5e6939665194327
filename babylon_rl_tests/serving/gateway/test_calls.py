"""Bodies of requests and answers: what is put in, and that exactly this is taken out again."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.serving.gateway.answers import Events, Sampled, plain
from babylon_rl.serving.gateway.calls import CHAT, Added, estimated_tokens, read_body, sampling_of, upstream_body
from babylon_rl.serving.routing import Target

TARGET = Target(checkpoint_id="c", base_url="http://127.0.0.1/v1", model="there")
NOTHING = Added(False, False)
QUICK = settings(max_examples=60, deadline=None)

texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
unknown = st.dictionaries(st.text("xyz", min_size=1, max_size=4), values, max_size=3)


@QUICK
@given(unknown, st.booleans(), st.booleans(), st.sampled_from(["vllm", "openai"]))
def test_the_upstreams_body_is_the_callers_but_for_the_model_and_what_recording_needs(more, logprobs, ids, takes):
    asked = {"model": "babylon", **more, **({"logprobs": True} if logprobs else {})}
    asked |= {"return_token_ids": True} if ids else {}
    content = json.dumps(asked).encode()
    sent, added = upstream_body(
        content, read_body(content), Target(checkpoint_id="c", base_url="x", model="there", fields=takes), CHAT
    )
    extra = {"logprobs": True}
    if takes == "vllm":
        extra |= {"return_token_ids": True} | ({} if logprobs else {"return_tokens_as_token_ids": True})
    assert json.loads(sent) == {**asked, "model": "there", **extra}
    assert added == Added(not logprobs, takes == "vllm" and not ids)


def test_numbers_and_spaces_of_fields_that_pass_are_kept_to_the_letter():
    content = b'{"messages": [ {"content":"\\u00e9\\u0000"} ], "temperature": 1.00, "seed":1e2, "model":""}'
    sent, _ = upstream_body(content, read_body(content), TARGET, CHAT)
    for kept in (b'[ {"content":"\\u00e9\\u0000"} ]', b'"temperature":1.00', b'"seed":1e2'):
        assert kept in sent


@QUICK
@given(unknown, st.lists(st.tuples(st.integers(0, 9), st.floats(-9, 0)), max_size=4), st.booleans(), st.booleans())
def test_an_answer_loses_what_was_put_in_and_nothing_else(more, tokens, logprobs, ids):
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": "a"}, **more}
    without = {**more, "choices": [{**choice, "logprobs": None}]}
    entries = [{"token": f"token_id:{token}", "logprob": logprob} for token, logprob in tokens]
    full = {**choice, "logprobs": {"content": entries}, "token_ids": [token for token, _ in tokens]}
    sampled = Sampled(1)
    content = json.dumps({**more, "choices": [full], "prompt_token_ids": [1]}).encode()
    stripped = json.loads(plain(content, Added(logprobs, ids), sampled))
    expected = json.loads(content)
    if logprobs:
        expected["choices"][0]["logprobs"] = None
    if ids:
        del expected["prompt_token_ids"], expected["choices"][0]["token_ids"]
    assert stripped == expected and (stripped == without) == (logprobs and ids)
    assert plain(content, NOTHING, Sampled(1)) is content
    assert sampled.token_ids == ([token for token, _ in tokens] or None) and sampled.prompt_token_ids == [1]
    assert sampled.logprobs == ([logprob for _, logprob in tokens] or None)


@QUICK
@given(st.binary(max_size=60))
def test_an_answer_that_is_not_understood_passes_as_it_is(content):
    sampled = Sampled(1)
    assert plain(content, Added(True, True), sampled) == content
    assert sampled.token_ids is None and sampled.logprobs is None


def stream_of(tokens: list[int], end: str) -> bytes:
    parts = [": a comment", ""]
    for number, token in enumerate(tokens):
        entry = {"token": f"token_id:{token}", "logprob": -1.5}
        last = number == len(tokens) - 1
        choice = {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [entry]}}
        choice |= {"token_ids": [token], "finish_reason": "length" if last else None}
        parts += ["data: " + json.dumps({"choices": [choice], "x": number}), ""]
    parts += ['data: {"choices":[],"usage":{"total_tokens":9}}', "", "data: [DONE]", "", ""]
    return end.join(parts).encode()


@QUICK
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(0, 900), max_size=6),
)
def test_a_stream_comes_to_the_same_however_it_is_cut_and_its_end_is_held_back(tokens, end, cuts):
    whole = stream_of(tokens, end)
    cuts = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    found = {}
    for added in (NOTHING, Added(True, True)):
        sampled = Sampled(1)
        events = Events(added, sampled, 1)
        out = b"".join(events.feed(whole[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
        assert b"length" not in out and b"[DONE]" not in out and out.count(b"data:") == len(tokens) - 1
        found[added.logprobs] = out + events.end()
        assert events.whole and sampled.token_ids == tokens and sampled.logprobs == [-1.5] * len(tokens)
        assert sampled.finish_reason == "length" and sampled.total_tokens == 9
    assert found[False] == whole
    assert found[True].count(end.encode()) == whole.count(end.encode())
    assert b"token_id" not in found[True] and found[True].count(b"data:") == whole.count(b"data:")


def test_of_several_answers_no_tokens_are_recorded_and_all_must_end():
    events = Events(NOTHING, sampled := Sampled(2), 2)
    part = b'data: {"choices":[{"index":%d,"finish_reason":"stop","token_ids":[1]}]}\n\n'
    assert events.feed(part % 0) == part % 0
    assert events.feed(part % 1) == b"" and sampled.token_ids is None


def test_settings_of_sampling_are_those_that_were_sent():
    body = read_body(
        b'{"temperature":0,"max_completion_tokens":5,"max_tokens":9,"top_p":null,"seed":2,"exploration":0.1,'
        b'"structured_outputs":{"choice":["a","b"]},"stop":["x"]}'
    )
    assert sampling_of(body) == {
        **{"temperature": 0, "max_tokens": 5, "seed": 2, "exploration": 0.1, "choices": ["a", "b"]}
    }
    assert estimated_tokens(400, body) == 105


def test_tokens_that_no_column_can_hold_are_not_recorded_and_pass():
    content = b'{"choices":[{"index":0,"token_ids":[99999999999]}]}'
    sampled = Sampled(1)
    assert plain(content, NOTHING, sampled) == content and sampled.token_ids is None


def test_a_number_of_more_than_64_bits_passes_and_is_recorded():
    content = b'{"model":"m","seed":123456789012345678901234567890,"guided_choice":[1e3,99999999999999999999999]}'
    body = read_body(content)
    assert json.loads(msgspec.json.encode(sampling_of(body)))["seed"] == 123456789012345678901234567890
    assert b"123456789012345678901234567890" in upstream_body(content, body, TARGET, CHAT)[0]


def test_fields_of_the_wrong_type_are_the_upstreams_to_judge():
    content = b'{"model":7,"n":"two","max_tokens":"many","logprobs":"yes","structured_outputs":[1],"user":3}'
    body = read_body(content)
    assert estimated_tokens(len(content), body) > 0 and sampling_of(body)["n"] == "two"
    sent, _ = upstream_body(content, body, TARGET, CHAT)
    assert json.loads(sent)["n"] == "two" and json.loads(sent)["logprobs"] == "yes"
