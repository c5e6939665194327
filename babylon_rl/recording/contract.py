"""The contract of a recorded trajectory for writers in any language: its types, and the JSON Schema made of them.

`Line` is one line of a JSONL file; `Row` is a row of the application's table as `row_to_json` gives it, so that a dump
of the table can be checked and imported too. `schema/trajectory-1.json` is `schema_text()`; a change that refuses what
was accepted before takes another version. Keys that are not listed are accepted and kept.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

VERSION = 1

SCHEMA_FILE = Path(__file__).parent / "schema" / f"trajectory-{VERSION}.json"

MOST = 2**31 - 1  # PostgreSQL's integer
Whole = Annotated[int, Meta(ge=-MOST, le=MOST)]
Time = datetime | int | float
Label = Annotated[str, Meta(max_length=100)]


def described(kind: Any, description: str) -> Any:
    """The type with the description that the schema gives a field of it."""
    return Annotated[kind, Meta(description=description)]


Identifier = Annotated[str, Meta(min_length=1)]


class Tokens(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What one call sampled, and from which distribution: what makes it trainable.

    From an OpenAI-compatible endpoint that is asked with `logprobs: true` and `return_token_ids: true`.
    """

    prompt_token_ids: described(
        list[Annotated[int, Meta(ge=0, le=MOST)]], "Token ids of the prompt: prompt_token_ids of the response."
    )
    token_ids: described(
        Annotated[list[Annotated[int, Meta(ge=0, le=MOST)]], Meta(min_length=1)],
        "Sampled token ids, the end of the turn included: choices[0].token_ids of the response.",
    )
    logprobs: described(
        list[float],
        "One natural logarithm a sampled token, of the distribution that was really sampled from: "
        "choices[0].logprobs.content[].logprob of the response.",
    )
    checkpoint: described(str | None, "Checkpoint that answered; by default the call's model.") = None
    choices: described(list[str] | None, "The answers that constrained decoding allowed.") = None
    top_p: described(float, "Nucleus that was sampled from, 0 to 1.") = 1.0
    exploration: described(float, "Share of uniform choice mixed into the policy, 0 to 1.") = 0.0
    seed: described(Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None, "Seed of the sampling.") = None
    finish_reason: described(str, "Why sampling ended: stop or length.") = "stop"


class Call(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One call of the language model, verbatim."""

    model: described(str, "Name under which the endpoint was asked.")
    system_prompt: described(str, "System message as sent, to the letter.")
    user_prompt: described(str, "User message as sent, to the letter.")
    response: described(str, "Answer as it came, to the letter.")
    temperature: described(float | None, "Temperature as sent.")
    max_tokens: described(Whole | None, "Most tokens that the answer could have.")
    purpose: described(str, "'action' for the call whose answer is the step's action; else reasoning, other, ...")
    model_version: described(str | None, "Version of the model.") = None
    reasoning: described(str | None, "Reasoning that came beside the answer.") = None
    latency_ms: described(Annotated[float, Meta(ge=-MOST, le=MOST)] | None, "Milliseconds until the answer.") = None
    action_type: described(str | None, "Kind of action that the call was made for.") = None
    call_id: described(str | None, "Id of the call, as llm_call_logs names it.") = None
    tokens: described(Tokens | None, "What was sampled; without it the call cannot be trained on.") = None


class Action(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What the agent did."""

    action_type: described(str, "Such as open_long, buy_yes, BUY_SHARES, hold; 'pending' means that nothing was done.")
    parameters: described(dict[str, Any], "Parameters of the action.")
    success: described(bool, "Whether it was carried out.")
    result: described(Any, "What came of it.") = None
    error: described(str | None, "Why it failed.") = None
    reasoning: described(str | None, "The agent's reason.") = None
    action_name: described(str | None, "Name of the action where actionType is a general one.") = None


class State(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What the agent had before its action."""

    agent_balance: described(float | None, "Cash in dollars.") = None
    agent_pnl: described(
        float | None, "P&L so far, in dollars; the window's P&L is the last known less the first known in it."
    ) = field(name="agentPnL", default=None)
    open_positions: described(float | None, "Number of open positions.") = None


class Step(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One step: what was seen, asked, answered, done and earned."""

    step_number: described(Whole, "0 for the first step.")
    timestamp: described(int | float, "Epoch milliseconds.")
    environment_state: State
    provider_accesses: described(list[dict[str, Any]], "What the agent was shown besides: {providerName, data, ...}.")
    llm_calls: described(list[Call], "Calls of the language model in this step, in order.")
    action: Action
    reward: described(float | None, "Immediate reward. It is kept and not used.")
    step_id: described(str | None, "Id of the step, by which llm_call_logs may name it.") = None


class Line(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One recorded trajectory: one agent's run within an hour, or a part of it."""

    version: described(Literal[1], "Version of this contract.")
    trajectory_id: described(Identifier, "Unique over all recordings; an id is recorded once.")
    agent_id: described(Identifier, "Id of the agent in the application's table User.")
    start_time: described(Time, "ISO 8601 (UTC where no zone is named) or epoch milliseconds.")
    end_time: described(
        Time, "ISO 8601 (UTC where no zone is named) or epoch milliseconds. Its UTC hour is the trajectory's window."
    )
    steps: described(list[Step], "Steps in order.")
    final_status: described(str, "completed or completed_with_errors; anything else is an unfinished run.")
    window_id: described(
        Annotated[str, Meta(max_length=50)] | None, "UTC hour in which it ended, as 2025-01-15T10:00."
    ) = None
    final_balance: described(float | None, "Cash at the end, in dollars.") = None
    final_pnl: described(
        float | None, "P&L at the end, in dollars, on the scale of agentPnL. Zero is known, absent is not."
    ) = field(name="finalPnL", default=None)
    is_training_data: described(bool, "False keeps it out of training.") = True
    is_evaluation: described(bool, "True for a run that is compared and never trained on.") = False
    metadata: described(dict[str, Any] | None, "Anything else. It never reaches the policy.") = None
    scenario_id: described(Label | None, "Label of the scenario.") = None
    episode_id: described(Label | None, "Label of the episode.") = None
    batch_id: described(Label | None, "Label of the batch.") = None


class Row(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A row of the application's table trajectories, by its columns; stepsJson is JSON in a text."""

    trajectory_id: described(Identifier, "Unique over all recordings.")
    agent_id: described(Identifier, "Id of the agent in the application's table User.")
    start_time: described(Time, "UTC.")
    end_time: described(Time, "UTC. Its hour is the trajectory's window.")
    steps_json: described(str, "The steps as JSON, in a text.")
    final_status: described(str, "completed or completed_with_errors; anything else is an unfinished run.")
    id: described(Identifier | None, "Key of the row.") = None
    window_id: described(Annotated[str, Meta(max_length=50)] | None, "UTC hour in which it ended.") = None
    duration_ms: described(Whole | None, "Milliseconds from start to end.") = None
    window_hours: described(Whole | None, "Length of the window in hours.") = None
    episode_id: described(Label | None, "Label of the episode.") = None
    scenario_id: described(Label | None, "Label of the scenario.") = None
    batch_id: described(Label | None, "Label of the batch.") = None
    reward_components_json: described(str | None, "JSON in a text.") = None
    metrics_json: described(str | None, "JSON in a text.") = None
    metadata_json: described(str | None, "JSON in a text.") = None
    total_reward: described(float | None, "Sum of the steps' rewards.") = None
    episode_length: described(Whole | None, "Number of steps.") = None
    final_balance: described(float | None, "Cash at the end, in dollars.") = None
    final_pnl: described(
        float | None, "P&L at the end, in dollars, on the scale of agentPnL. Zero is known, absent is not."
    ) = field(name="finalPnL", default=None)
    trades_executed: described(Whole | None, "As the application counted them.") = None
    posts_created: described(Whole | None, "As the application counted them.") = None
    ai_judge_reward: described(float | None, "Score of the application's judge.") = None
    ai_judge_reasoning: described(str | None, "Its reason.") = None
    judged_at: described(Time | None, "UTC.") = None
    is_training_data: described(bool | None, "False keeps it out of training.") = None
    is_evaluation: described(bool | None, "True for a run that is compared and never trained on.") = None
    used_in_training: described(bool | None, "Whether the application trained on it.") = None
    trained_in_batch: described(str | None, "Batch that it was trained in.") = None
    created_at: described(Time | None, "UTC.") = None
    updated_at: described(Time | None, "UTC.") = None


def schema() -> dict[str, Any]:
    """The contract as a JSON Schema: a line, or a row where there is `stepsJson`."""
    references, definitions = msgspec.json.schema_components((Line, Row, list[Step]), ref_template="#/$defs/{name}")
    definitions["Row"]["properties"]["stepsJson"] |= {
        "contentMediaType": "application/json",
        "contentSchema": references[2],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:babylon-rl:trajectory:{VERSION}",
        "title": "A recorded trajectory",
        "description": "One line of a JSONL file of recordings, or a row of the application's table trajectories.",
        "if": {"type": "object", "required": ["stepsJson"]},
        "then": references[1],
        "else": references[0],
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as its file holds it."""
    return json.dumps(_without_time_format(schema()), indent=1) + "\n"


def _without_time_format(value: Any) -> Any:
    """RFC 3339 wants a zone, and a row of the database has none."""
    if isinstance(value, dict):
        kept = {name: _without_time_format(part) for name, part in value.items()}
        if kept.get("format") == "date-time":
            del kept["format"]
        return kept
    return [_without_time_format(part) for part in value] if isinstance(value, list) else value
