"""A checked line of a file as rows of our tables; arithmetic only, no I/O."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.database.application_tables import trajectories
from babylon_rl.recording.checking import Checked
from babylon_rl.recording.contract import Call, Line, Row, Step
from babylon_rl.recording.problems import moment
from babylon_rl.recording.rows import call_id, snowflake, step_id
from babylon_rl.recording.verbatim import verbatim_json

Rows = dict[str, list[dict[str, Any]]]


def imported_rows(checked: Checked, now: datetime) -> Rows:
    """Rows by table: `trajectories`, `llm_call_logs`, `recorded_calls`."""
    recorded, steps = checked.recorded, checked.steps
    assert recorded is not None and steps is not None
    row = _of_row(recorded, steps, now) if isinstance(recorded, Row) else _of_line(recorded, checked.value, now)
    calls = [
        (step, call_id(recorded.trajectory_id, step.step_number, number), call)
        for step in steps
        for number, call in enumerate(step.llm_calls)
    ]
    return {
        "trajectories": [row],
        "llm_call_logs": [_call_row(recorded.trajectory_id, *one, now) for one in calls],
        "recorded_calls": [_recorded_call(recorded.trajectory_id, *one) for one in calls if one[2].tokens is not None],
    }


def _of_line(line: Line, value: dict[str, Any], now: datetime) -> dict[str, Any]:
    start, end = moment(line.start_time), moment(line.end_time)
    reward = sum(step.reward or 0.0 for step in line.steps)
    metrics = {
        "episodeLength": len(line.steps),
        "finalStatus": line.final_status,
        "finalBalance": line.final_balance,
        "finalPnL": line.final_pnl,
        "errorCount": sum(not step.action.success for step in line.steps),
    }
    return {
        "id": snowflake(line.trajectory_id),
        "trajectoryId": line.trajectory_id,
        "agentId": line.agent_id,
        "startTime": start,
        "endTime": end,
        "durationMs": round((end - start).total_seconds() * 1000),
        "windowId": line.window_id,
        "windowHours": 1,
        "episodeId": line.episode_id,
        "scenarioId": line.scenario_id,
        "batchId": line.batch_id,
        "stepsJson": verbatim_json([_without_tokens(step) for step in value["steps"]]),
        "rewardComponentsJson": verbatim_json({"environmentReward": reward}),
        "metricsJson": verbatim_json({k: v for k, v in metrics.items() if v is not None}),
        "metadataJson": verbatim_json(value.get("metadata") or {}),
        "totalReward": reward,
        "episodeLength": len(line.steps),
        "finalStatus": line.final_status,
        "finalBalance": line.final_balance,
        "finalPnL": line.final_pnl,
        **dict.fromkeys(("tradesExecuted", "postsCreated", "aiJudgeReward", "aiJudgeReasoning", "judgedAt")),
        "isTrainingData": line.is_training_data,
        "isEvaluation": line.is_evaluation,
        "usedInTraining": False,
        "trainedInBatch": None,
        "createdAt": now,
        "updatedAt": now,
    }


def _without_tokens(step: dict[str, Any]) -> dict[str, Any]:
    """The step as it was written, less the tokens, which have a table of their own."""
    calls = [{name: value for name, value in call.items() if name != "tokens"} for call in step["llmCalls"]]
    return {**step, "llmCalls": calls}


def _of_row(row: Row, steps: list[Step], now: datetime) -> dict[str, Any]:
    """The row as it was; what its table requires and the file does not tell is computed."""
    start, end = moment(row.start_time), moment(row.end_time)
    given = {name: getattr(row, field) for name, field in _FIELDS.items()}
    for name in ("startTime", "endTime", "judgedAt", "createdAt", "updatedAt"):
        given[name] = None if given[name] is None else moment(given[name])
    required = {
        "id": snowflake(row.trajectory_id),
        "durationMs": max(-(2**31), min(2**31 - 1, round((end - start).total_seconds() * 1000))),
        "windowHours": 1,
        "rewardComponentsJson": "{}",
        "metricsJson": "{}",
        "metadataJson": "{}",
        "totalReward": sum(step.reward or 0.0 for step in steps),
        "episodeLength": len(steps),
        "isTrainingData": True,
        "isEvaluation": False,
        "usedInTraining": False,
        "createdAt": now,
        "updatedAt": now,
    }
    return {name: required.get(name) if value is None else value for name, value in given.items()}


_FIELDS = {
    name: field
    for field, name in zip(Row.__struct_fields__, Row.__struct_encode_fields__, strict=True)
    if name in trajectories.c
}


def _call_row(trajectory_id: str, step: Step, name: str, call: Call, now: datetime) -> dict[str, Any]:
    prompt = len(call.tokens.prompt_token_ids) if call.tokens else None
    completion = len(call.tokens.token_ids) if call.tokens else None
    messages = [{"role": "system", "content": call.system_prompt}, {"role": "user", "content": call.user_prompt}]
    try:
        at = moment(step.timestamp)
    except ValueError:
        at = datetime.fromtimestamp(0, UTC)  # a step without a time has 0
    return {
        "id": snowflake(name),
        "trajectoryId": trajectory_id,
        "stepId": step_id(trajectory_id, step.step_number),
        "callId": name,
        "timestamp": at,
        "latencyMs": None if call.latency_ms is None else round(call.latency_ms),
        "model": call.model,
        "purpose": call.purpose,
        "actionType": call.action_type,
        "systemPrompt": call.system_prompt,
        "userPrompt": call.user_prompt,
        "messagesJson": verbatim_json(messages),
        "response": call.response,
        "reasoning": call.reasoning,
        "temperature": call.temperature or 0.0,
        "maxTokens": call.max_tokens or 0,
        "topP": call.tokens.top_p if call.tokens else None,
        "promptTokens": prompt,
        "completionTokens": completion,
        "totalTokens": prompt + completion if prompt is not None and completion is not None else None,
        "metadata": verbatim_json({"modelVersion": call.model_version} if call.model_version else {}),
        "createdAt": now,
    }


def _recorded_call(trajectory_id: str, step: Step, name: str, call: Call) -> dict[str, Any]:
    tokens = call.tokens
    assert tokens is not None and call.temperature is not None
    return {
        **msgspec.structs.asdict(tokens),
        "call_id": name,
        "trajectory_id": trajectory_id,
        "step_number": step.step_number,
        "model": call.model,
        "checkpoint": tokens.checkpoint or call.model,
        "temperature": call.temperature,
    }
