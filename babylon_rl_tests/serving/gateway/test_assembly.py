"""Trajectories that were recorded over HTTP, as the recordings' reader finds them."""

import json
from datetime import UTC, datetime

import msgspec
import pytest

from babylon_rl.recording.reader import read_window
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.records import Action, LLMCall, RecordedCall, Run, Step, Trajectory
from babylon_rl.recording.rows import call_id
from babylon_rl.reporting.progress import status
from babylon_rl.serving.gateway.shipper import refused_lines, ship
from babylon_rl.serving.gateway.standing import trajectories_standing
from babylon_rl.serving.gateway.verbatim_calls import BROKEN_OFF, answer_text, prompts, tellable
from babylon_rl_tests.recording.runs import WINDOW, add_agents
from babylon_rl_tests.serving.gateway.agents import START, call_event, end, recording, spooled, start, step

ALL = "/v1/trajectories"


def play(folder, *steps: dict, name: str = "t1", ended: dict | None = None) -> None:
    """One whole trajectory over HTTP."""
    with recording(folder) as client:
        answers = [client.post(ALL, json=start(name))]
        answers += [client.post(f"{ALL}/{name}/steps", content=json.dumps(one)) for one in steps]
        answers.append(client.post(f"{ALL}/{name}/end", json=end() if ended is None else ended))
    assert [answer.text for answer in answers if not answer.is_success] == []


def read(database):
    with database.recordings() as recordings:
        return read_window(recordings, WINDOW)


def states(database) -> dict[str, tuple[str, dict | None]]:
    with database.connect() as connection:
        query = "SELECT trajectory_id, state, ended FROM babylon_rl.gateway_trajectories"
        return {name: (state, ended) for name, state, ended in connection.execute(query)}


def recorded_run(name: str) -> Run:
    """What the recorder is handed for the trajectory that `agents` tells over HTTP."""
    call = LLMCall(
        model="c1", model_version="c1", system_prompt="You trade.", user_prompt="News: good \u00e9.",
        response="BUY ACME", temperature=1.0, max_tokens=8, purpose="action", latency_ms=12.5, call_id="c-1",
    )  # fmt: skip
    one = step()
    taken = Step(
        step_number=0, timestamp=one["timestamp"], environment_state=one["environmentState"], provider_accesses=[],
        llm_calls=[call], reward=None,
        action=Action(action_type="open_long", parameters={"ticker": "ACME"}, success=True),
    )  # fmt: skip
    trajectory = Trajectory(
        trajectory_id=name, agent_id="agent-1", window_id=WINDOW, final_balance=1003.5, final_pnl=3.5, steps=[taken],
        start_time=datetime.fromtimestamp(START + 60, UTC), end_time=datetime.fromtimestamp(START + 3300, UTC),
    )  # fmt: skip
    sampled = RecordedCall(
        call_id=call_id(name, 0, 0), trajectory_id=name, step_number=0, model="c1", checkpoint="c1",
        prompt_token_ids=[1, 2, 3], token_ids=[7, 8], logprobs=[-0.5, -0.25], choices=None, temperature=1.0,
        top_p=1.0, exploration=0.0, seed=11, finish_reason="stop",
    )  # fmt: skip
    return Run(trajectory, [sampled])


@pytest.mark.parametrize("belongs", ["headers", "callIds", "named", "told"])
def test_what_was_recorded_over_http_is_read_as_what_the_recorder_recorded(database, new_database, tmp_path, belongs):
    """The calls belong to their step by the headers they were asked with, or because the step names or tells them."""
    by_header = {"trajectory_id": "t1", "step_number": 0} if belongs == "headers" else {}
    spooled(tmp_path, call_event("c-1", **by_header))
    told = {"model": "x", "systemPrompt": "You trade.", "userPrompt": "News: good \u00e9.", "response": "BUY ACME",
            "temperature": None, "maxTokens": None, "purpose": "action", "callId": "c-1"}  # fmt: skip
    said = {"headers": {}, "callIds": {"callIds": ["c-1"]}, "named": {"llmCalls": [{"callId": "c-1"}]},
            "told": {"llmCalls": [told]}}[belongs]  # fmt: skip
    play(tmp_path, step(**said))
    assert ship(database, tmp_path) == (4, 0, 0)
    over_http = read(database)

    with database.connect() as connection:
        connection.execute("TRUNCATE babylon_rl.trajectories, babylon_rl.llm_call_logs, babylon_rl.recorded_calls")
        add_agents(connection, "agent-1")
        assert write_runs(connection, [recorded_run("t1")]) == 1
    by_recorder = read(database)

    assert over_http.rejected == by_recorder.rejected == []
    [one], [other] = over_http.usable, by_recorder.usable
    assert one.provenance == "logged" and one.not_trainable is None
    differing = {name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)}
    assert differing <= {"digest"}  # of the steps' JSON, which says 1 or 1.0, null or nothing
    assert one.calls == other.calls and one.steps == other.steps


def test_a_call_without_tokens_is_a_text_alone(database, tmp_path):
    spooled(tmp_path, call_event("c-1", trajectory_id="t1", step_number=0, token_ids=None, logprobs=None))
    play(tmp_path, step())
    ship(database, tmp_path)
    [one] = read(database).usable
    assert one.provenance == "no_logprobs" and one.calls == [] and one.steps[0].llm_calls[0].response == "BUY ACME"


def test_of_several_calls_the_last_is_the_action_unless_the_step_says_which(database, tmp_path):
    spooled(
        tmp_path,
        call_event("c-2", asked_at=START + 2.0, trajectory_id="t1", step_number=0),
        call_event("c-1", asked_at=START + 1.0, trajectory_id="t1", step_number=0),
        call_event("c-4", asked_at=START + 4.0, trajectory_id="t1", step_number=1),
        call_event("c-3", asked_at=START + 3.0, trajectory_id="t1", step_number=1),
    )
    play(tmp_path, step(0), step(1, llmCalls=[{"callId": "c-3", "purpose": "action"}]))
    ship(database, tmp_path)
    [one] = read(database).usable
    assert [[(call.call_id, call.purpose) for call in taken.llm_calls] for taken in one.steps] == [
        [("c-1", "other"), ("c-2", "action")],
        [("c-3", "action"), ("c-4", "other")],
    ]


def test_calls_of_another_agent_and_failed_ones_are_no_part_of_a_trajectory(database, tmp_path):
    spooled(
        tmp_path,
        call_event("c-1", agent_id="agent-2", trajectory_id="t1", step_number=0),
        call_event("c-2", status=500, trajectory_id="t1", step_number=0),
    )
    play(tmp_path, step(callIds=["c-1"]))
    ship(database, tmp_path)
    [one] = read(database).usable
    assert one.steps[0].llm_calls == [] and states(database)["t1"][1]["missing_calls"] == ["c-1"]


def test_a_stream_that_broke_off_is_no_call_of_a_step_unless_the_step_names_it_and_never_has_tokens(database, tmp_path):
    broken = {"finish_reason": BROKEN_OFF[0], "trajectory_id": "t1"}
    spooled(
        tmp_path,
        call_event("c-1", step_number=0, **broken),
        call_event("c-2", step_number=0, trajectory_id="t1", asked_at=START + 400.0),
        call_event("c-3", step_number=1, **broken),
    )
    play(tmp_path, step(0), step(1, callIds=["c-3"]))
    ship(database, tmp_path)
    [one] = read(database).usable
    assert [[call.call_id for call in taken.llm_calls] for taken in one.steps] == [["c-2"], ["c-3"]]
    assert [call.call_id for call in one.calls] == ["t1-call-0-0"]


def test_where_a_named_call_is_missing_no_other_is_taken_for_the_action(database, tmp_path):
    """Such as one that was still being answered when its trajectory ended: it stays in `gateway_calls`."""
    spooled(tmp_path, call_event("c-1", trajectory_id="t1", step_number=0))
    play(tmp_path, step(callIds=["c-2"]))
    spooled(tmp_path, call_event("c-2", trajectory_id="t1", step_number=0))
    ship(database, tmp_path)
    [one] = read(database).usable
    assert [call.purpose for call in one.steps[0].llm_calls] == ["other"] and one.not_trainable is not None
    assert states(database)["t1"] == ("ended", {"said": end(), "missing_calls": ["c-2"]})


def test_abandoned_and_open_ones_reach_no_recording(database, tmp_path):
    with recording(tmp_path) as client:
        for name in ("t1", "t2"):
            assert client.post(ALL, json=start(name)).is_success
            assert client.post(f"{ALL}/{name}/steps", json=step()).is_success
        assert client.post(f"{ALL}/t1/abandon", json={"reason": "crash"}).is_success
    assert ship(database, tmp_path).refused == 0
    assert states(database) == {"t1": ("abandoned", {"reason": "crash"}), "t2": ("open", None)}
    assert read(database).usable == read(database).rejected == []


def test_what_cannot_be_put_together_is_refused_with_the_reason_and_holds_up_nothing(database, tmp_path):
    spooled(tmp_path, call_event("c-1", trajectory_id="t1", step_number=0, response="<html>"))
    play(tmp_path, step())
    spooled(tmp_path, call_event("c-2", trajectory_id="t2", step_number=0))
    play(tmp_path, step(), name="t2")
    for _ in range(2):  # from the beginning again: a refusal is no error of the event
        assert ship(database, tmp_path).refused == 0
        (tmp_path / "shipped.json").unlink()
    told = states(database)
    assert told["t1"][0] == "refused" and "the response is no JSON" in told["t1"][1]["reason"]
    assert told["t2"][0] == "ended" and [one.trajectory_id for one in read(database).usable] == ["t2"]
    assert refused_lines(tmp_path) == []


def test_status_tells_how_trajectories_stand_and_why_one_was_refused(database, tmp_path):
    assert trajectories_standing_of(database).line() == ""
    spooled(tmp_path, call_event("c-1", trajectory_id="t1", step_number=0, response="<html>"))
    play(tmp_path, step())
    play(tmp_path, step(callIds=["nobody"]), name="t2")
    with recording(tmp_path) as client:
        assert client.post(ALL, json=start("t3")).is_success
    ship(database, tmp_path)
    standing = trajectories_standing_of(database)
    assert (standing.ended, standing.open, standing.abandoned, standing.refused) == (1, 1, 0, 1)
    assert "1 trajectories recorded (1 without a call that they name), 1 open" in standing.line()
    assert "t1: ValueError: the response is no JSON" in standing.line()
    assert status(database)["over_http"]["latest_refused"][0]["trajectory_id"] == "t1"


def trajectories_standing_of(database):
    with database.connect() as connection:
        return trajectories_standing(connection)


def test_an_id_that_another_recording_has_is_refused(database, tmp_path):
    play(tmp_path, step())
    ship(database, tmp_path)
    with database.connect() as connection:
        connection.execute("DELETE FROM babylon_rl.gateway_trajectories")
        connection.execute("DELETE FROM babylon_rl.gateway_steps")
    (tmp_path / "shipped.json").unlink()
    ship(database, tmp_path)
    assert "an id is recorded once" in states(database)["t1"][1]["reason"]


def test_what_is_left_out_has_its_default_and_the_end_says_last(database, tmp_path):
    taken = {"stepNumber": 0, "action": {"actionType": "hold", "parameters": {}, "success": False}, "extra": {"k": 1}}
    with recording(tmp_path) as client:
        body = {"agentId": "agent-1", "trajectoryId": "t1", "isEvaluation": True, "batchId": "test:c1"}
        begun = client.post(ALL, json=body).json()
        assert client.post(f"{ALL}/t1/steps", json=taken).is_success
        assert client.post(f"{ALL}/t1/end", json={"isTrainingData": False, "metadata": {"m": 1}}).is_success
    ship(database, tmp_path)
    with database.connect() as connection:
        query = """SELECT "startTime", "endTime", "windowId", "finalStatus", "isEvaluation", "isTrainingData",
            "batchId", "metadataJson", "stepsJson" FROM babylon_rl.trajectories"""
        start_time, end_time, window, *rest, metadata, steps = connection.execute(query).fetchone()
    assert start_time.replace(tzinfo=UTC).timestamp() * 1000 == pytest.approx(begun["startTime"])
    assert window == f"{end_time:%Y-%m-%dT%H}:00" and rest == ["completed_with_errors", True, False, "test:c1"]
    [written] = json.loads(steps)
    assert json.loads(metadata) == {"m": 1} and written["extra"] == {"k": 1} and written["timestamp"] > START * 1000


def test_texts_of_requests_and_answers():
    def said(*messages):
        return prompts({"messages": [{"role": role, "content": content} for role, content in messages]})

    assert said(("system", "s"), ("user", "u")) == ("s", "u", True)
    assert said(("user", [{"type": "text", "text": "u"}])) == ("", "u", True)
    assert said(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))[2] is False
    assert said(("user", [{"type": "image_url"}]))[2] is False and prompts({"prompt": "p"}) == ("", "p", False)
    stream = "".join(
        f"data: {json.dumps({'choices': [{'index': index, 'delta': {'content': text}}]})}\n\n"
        for index, text in ((0, "BUY "), (1, "no"), (0, "ACME"))
    )
    assert answer_text(stream + "data: [DONE]\n\n", True) == "BUY ACME"
    tools = [{"function": {"name": "buy", "arguments": "{}"}}]
    assert json.loads(
        answer_text(json.dumps({"choices": [{"message": {"content": None, "tool_calls": tools}}]}), False)
    )
    assert answer_text('{"choices": [{"text": "t"}]}', False) == "t"
    for wrong in ("{}", '{"choices": []}', "x"):
        with pytest.raises(ValueError, match="response"):
            answer_text(wrong, False)
    assert tellable({"temperature": 0.5, "top_k": -1, "structured_outputs": {"choice": ["a"]}})
    for other in ({"top_k": 5}, {"presence_penalty": 0.1}, {"structured_outputs": {"regex": "a"}}, {"tools": tools}):
        assert not tellable(other)


def test_what_was_sampled_in_a_way_that_the_contract_cannot_tell_has_no_tokens(database, tmp_path):
    request = json.loads(call_event("c").request) | {"presence_penalty": 0.5}
    event = call_event("c-1", trajectory_id="t1", step_number=0)
    spooled(tmp_path, msgspec.structs.replace(event, request=json.dumps(request)))
    play(tmp_path, step())
    ship(database, tmp_path)
    assert [one.provenance for one in read(database).usable] == ["no_logprobs"]
