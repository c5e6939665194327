"""The contract: one schema, the one that the recorder keeps and the reader reads, and what a check says of a line."""

import copy
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from babylon_rl.database.connect import Recordings
from babylon_rl.recording import contract, records
from babylon_rl.recording.checking import CAUTIONS, check_line
from babylon_rl.recording.recorder import write_runs
from babylon_rl.windows import shift_window
from babylon_rl_tests.recording.lines import as_bytes, call, line, row, step
from babylon_rl_tests.recording.runs import WINDOW, add_agents, make_run

VALIDATOR = Draft202012Validator(contract.schema())


def said(value, **options) -> list[str]:
    text = value if isinstance(value, bytes) else as_bytes(value)
    return [str(problem) for problem in check_line(text, **options).problems]


def test_the_packaged_schema_is_the_one_of_the_types():
    text = contract.SCHEMA_FILE.read_text()
    assert text == contract.schema_text(), "write contract.schema_text() to contract.SCHEMA_FILE"
    Draft202012Validator.check_schema(json.loads(text))
    for name, kind in contract.schema()["$defs"].items():
        assert kind["description"], name
        for field, wanted in kind["properties"].items():
            assert "description" in wanted or "$ref" in wanted, (name, field)


@pytest.mark.parametrize("kind", ["Call", "Action", "Step"])
def test_the_contract_has_every_field_that_the_reader_reads(kind):
    ours = getattr(records, {"Call": "LLMCall"}.get(kind, kind))
    theirs = getattr(contract, kind)
    fields = {f.encode_name: f.required for f in msgspec.structs.fields(theirs)}
    for f in msgspec.structs.fields(ours):
        assert f.encode_name in fields
        assert fields[f.encode_name] or not f.required, f"{f.encode_name} may be absent in the contract only"


def test_what_the_recorder_wrote_fits_as_the_database_dumps_it(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        write_runs(connection, [make_run("t1"), make_run("t2")])
        query = "SELECT row_to_json(t)::text FROM trajectories t"
        dumped = [text.encode() for (text,) in connection.execute(query)]
        with connection.cursor().copy("COPY (SELECT row_to_json(t) FROM trajectories t) TO STDOUT") as copy_out:
            copied = b"".join(copy_out).splitlines()
        Recordings.of(connection)
    assert len(copied) == 2 and copied != dumped, "COPY doubles backslashes"
    for text in (*dumped, *copied):
        checked = check_line(text)
        assert not checked.problems and checked.cautions == ["no_logprobs"]
        assert msgspec.json.decode(checked.recorded.steps_json, type=list[records.Step]) == make_run().trajectory.steps
    assert all(VALIDATOR.is_valid(json.loads(text)) for text in dumped)


def test_a_good_line_has_no_problem_and_no_caution():
    checked = check_line(as_bytes(line()))
    assert (checked.problems, checked.cautions, checked.trajectory_id) == ([], [], "t1")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (line(steps=[step(), step(1, llmCalls=[call(response=5)])]),
         "steps[1].llmCalls[0].response: found the number 5, wanted a text"),
        (line(version=2), "version: found the number 2, wanted 1"),
        (line(endTime="yesterday"), 'endTime: found a value, wanted Invalid RFC3339 encoded datetime'),
        (line(endTime=1e18), "endTime: found the number 1e+18, wanted a time"),
        (line(startTime="2025-01-15T10:56:00Z"), "endTime: found -60 seconds from startTime, wanted a time"),
        (line(windowId="w" * 51), "windowId: found the text "),
        (line(trajectoryId=""), 'trajectoryId: found the text "", wanted a text that is not empty'),
        (line(trajectoryId="a\x00"), "trajectoryId: found NUL or half of a surrogate pair"),
        (line(steps=[step(), step()]), "steps[1].stepNumber: found 0, which step 0 has too"),
        (line(steps=[step(llmCalls=[call(tokens={**call()["tokens"], "logprobs": [0.0]})])]),
         "steps[0].llmCalls[0].tokens.logprobs: found 1 numbers, wanted 2, one a token"),
        (line(steps=[step(llmCalls=[call(tokens={**call()["tokens"], "tokenIds": ["a"]})])]),
         'steps[0].llmCalls[0].tokens.tokenIds[0]: found the text "a", wanted a whole number'),
        (line(steps=[step(llmCalls=[call(temperature=None)])]), "steps[0].llmCalls[0].temperature: found null"),
        ([], "the line: found a list [], wanted an object"),
        (row(stepsJson='[{"stepNumber": 0'), "stepsJson: found no JSON ("),
        (row(stepsJson="{}"), "stepsJson: found an object {}, wanted a list"),
        (row(stepsJson='[{"a": 1}]'), "stepsJson[0].action: found nothing, wanted an object (Action)"),
        (b'{"version": NaN}', "the line: found no JSON (NaN is no JSON), wanted a JSON object"),
        (b'{"a": "\xff"}', "the line: found a byte at 7 that is no UTF-8, wanted UTF-8"),
        (b"{" * 100_000, "the line: found no JSON"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_with_its_place_what_was_found_and_what_is_wanted(value, told):
    assert any(one.startswith(told) for one in said(value)), said(value)


def test_all_that_is_wrong_in_a_line_is_told_and_whose_it_is():
    bad = line(finalStatus=None, steps=[step(reward="x", llmCalls=[call(model=1)])])
    del bad["agentId"]
    assert said(bad) == [
        "agentId: found nothing, wanted a text",
        "finalStatus: found null, wanted a text",
        "steps[0].llmCalls[0].model: found the number 1, wanted a text",
        'steps[0].reward: found the text "x", wanted a number or null',
    ]
    assert check_line(as_bytes(bad)).trajectory_id == "t1"


def test_a_cut_off_last_line_is_told_as_such():
    text = as_bytes(line())[:-20]
    assert said(text, cut_off=True) == [
        "the line: found the end of the file in the middle of the line, wanted a whole line"
    ]
    assert "no JSON" in said(text)[0]


def test_an_indented_file_is_told_how_to_be_one_line_each():
    assert "jq -c" in said(b"{")[0] and "jq -c" in said(b"[")[0] and "jq" not in said(b"{}")[0]


@pytest.mark.parametrize(
    ("value", "caution"),
    [
        (line(isEvaluation=True), "evaluation"),
        (line(isTrainingData=False), "not_training_data"),
        (line(finalStatus="timeout"), "unfinished"),
        (line(steps=[step(action={"actionType": "pending", "parameters": {}, "success": False})]), "unfinished"),
        (line(steps=[]), "empty_steps"),
        (line(finalPnL=None), "one_pnl"),
        (line(finalPnL=None, steps=[step(environmentState={})]), "no_pnl"),
        (line(windowId=shift_window(WINDOW, 1)), "misnamed"),
        (line(windowId="benchmark-1"), "misnamed"),
        (line(windowId="2025-01-15T10:30"), "off_hour_window"),
        (line(steps=[step(llmCalls=[])]), "no_llm_call"),
        (line(steps=[step(llmCalls=[call(purpose="reasoning")])]), "no_decision_call"),
        (line(steps=[step(llmCalls=[call(response="")])]), "text_missing"),
        (line(steps=[step(llmCalls=[call(response="a\x00b")])]), "not_storable_text"),
        (line(steps=[step(llmCalls=[call(userPrompt="\ud800")])]), "not_storable_text"),
        (line(steps=[step(llmCalls=[call(tokens=None)])]), "no_logprobs"),
        (row(stepsJson=json.dumps([step(llmCalls=[call(response="\ud83d")])])), "not_storable_text"),
    ],
)  # fmt: skip
def test_what_a_good_line_is_not_good_for_is_told_by_name(value, caution):
    checked = check_line(as_bytes(value))
    assert not checked.problems and caution in checked.cautions and set(checked.cautions) <= CAUTIONS.keys()


PLACES = [("trajectoryId",), ("endTime",), ("steps",), ("windowId",), ("isEvaluation",), ("finalPnL",), ("metadata",),
          ("steps", 0), ("steps", 0, "action"), ("steps", 0, "timestamp"), ("steps", 0, "environmentState", "agentPnL"),
          ("steps", 0, "llmCalls", 0, "response"), ("steps", 0, "llmCalls", 0, "maxTokens"),
          ("steps", 0, "llmCalls", 0, "tokens"), ("steps", 0, "llmCalls", 0, "tokens", "tokenIds"),
          ("steps", 0, "llmCalls", 0, "tokens", "logprobs", 0), ("steps", 0, "action", "success")]  # fmt: skip
VALUES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | (
    st.text(max_size=60) | st.just([]) | st.just({}) | st.lists(st.integers(-2, 2), max_size=2) | st.just("absent")
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(place=st.sampled_from(PLACES), put=VALUES)
def test_types_and_schema_take_and_refuse_the_same_lines(place, put):
    value = copy.deepcopy(line())
    inside = value
    for part in place[:-1]:
        inside = inside[part]
    inside[place[-1]] = put
    if put == "absent" and isinstance(place[-1], str):
        del inside[place[-1]]
    problems = check_line(as_bytes(value)).problems
    if not VALIDATOR.is_valid(value):
        assert problems
    else:
        # What a schema cannot say: whole numbers written as 1.0, times, and how fields belong together.
        told = ("wanted Expected `int", "RFC3339", "a time", "one a token", "letters that")
        assert all(any(part in str(problem) for part in told) for problem in problems), problems


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_bytes_make_a_check_fail(noise, at):
    good = as_bytes(line())
    assert check_line(good[:at] + noise + good[at + len(noise) :]) is not None
