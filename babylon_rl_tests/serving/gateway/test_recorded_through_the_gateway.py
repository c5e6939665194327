"""From a call and a step over HTTP to a member of a window that can be trained on, through a real gateway."""

from babylon_rl.recording.reader import read_window
from babylon_rl.serving.gateway.shipper import ship
from babylon_rl_tests.recording.runs import WINDOW
from babylon_rl_tests.serving.gateway.agents import START, end, step

MESSAGES = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "News: good \u00e9."}]


def test_calls_of_all_kinds_are_recorded_with_what_was_sampled(gateway, database):
    """One call a step: whole by the headers, as a stream by the headers, and named by the step."""
    agent = {"x-babylon-agent": "agent-1"}
    begun = gateway.client.post("/v1/trajectories", json={"agentId": "agent-1", "startTime": START * 1000})
    name = begun.json()["trajectoryId"]
    headers = [{**agent, "x-babylon-trajectory": name, "x-babylon-step": str(n)} for n in range(2)]
    asked = [
        gateway.ask(messages=MESSAGES, headers=headers[0]),
        gateway.ask(messages=MESSAGES, headers=headers[1], stream=True),
        gateway.ask(messages=MESSAGES, headers=agent, max_tokens=8),
    ]
    assert [answer.status_code for answer in asked] == [200] * 3
    called = asked[2].headers["x-babylon-call"]
    for said in (step(0), step(1), step(2, callIds=[called])):
        assert gateway.client.post(f"/v1/trajectories/{name}/steps", json=said).status_code == 201
    assert gateway.client.post(f"/v1/trajectories/{name}/end", json=end()).is_success
    assert ship(database, gateway.folder) == (8, 0, 0)

    with database.recordings() as recordings:
        [one] = read_window(recordings, WINDOW).usable
    assert one.provenance == "logged" and one.not_trainable is None and one.agent_id == "agent-1"
    for taken, call in zip(one.steps, one.calls, strict=True):
        [text] = taken.llm_calls
        assert (text.system_prompt, text.user_prompt, text.response) == ("You trade.", "News: good \u00e9.", "BUY")
        assert (call.checkpoint, call.prompt_token_ids, call.token_ids) == ("c1", [1, 2, 3], [5, 6])
        assert (call.logprobs, call.temperature, call.seed) == ([-0.5, -0.25], 0.7, 3)


def test_a_trajectory_with_an_unknown_key_is_refused(gateway):
    answer = gateway.client.post("/v1/trajectories", json={"agentId": "a"}, headers={"authorization": "Bearer brl_x"})
    assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
