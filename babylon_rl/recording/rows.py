"""A recorded run as rows of the application's tables and of `recorded_calls`; arithmetic only, no I/O."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.database.values import clean_text
from babylon_rl.recording.actions import Kind, kind_of
from babylon_rl.recording.records import LLMCall, RecordedCall, Run, Step, Trajectory
from babylon_rl.recording.verbatim import verbatim_json


def snowflake(text: str) -> str:
    """Id in the application's form, a 64-bit decimal, that is always the same for the same text."""
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def step_id(trajectory_id: str, step_number: int) -> str:
    return f"{trajectory_id}-step-{step_number}"


def call_id(trajectory_id: str, step_number: int, number: int) -> str:
    return f"{trajectory_id}-call-{step_number}-{number}"


def trajectory_row(trajectory: Trajectory, now: datetime) -> dict[str, Any]:
    """Row of `trajectories`, as the application's recorder fills it."""
    steps = trajectory.steps
    errors = sum(not step.action.success for step in steps)
    reward = sum(step.reward or 0.0 for step in steps)
    metrics = {
        "episodeLength": len(steps),
        "finalStatus": "completed_with_errors" if errors else "completed",
        "finalBalance": trajectory.final_balance,
        "finalPnL": trajectory.final_pnl,
        "tradesExecuted": _succeeded(steps, Kind.TRADE),
        "postsCreated": _succeeded(steps, Kind.POST),
        "errorCount": errors,
    }
    return {
        "id": snowflake(trajectory.trajectory_id),
        "trajectoryId": trajectory.trajectory_id,
        "agentId": trajectory.agent_id,
        "startTime": utc_naive(trajectory.start_time),
        "endTime": utc_naive(trajectory.end_time),
        "durationMs": round((trajectory.end_time - trajectory.start_time).total_seconds() * 1000),
        "windowId": trajectory.window_id,
        "windowHours": 1,
        "episodeId": f"{trajectory.window_id}-{epoch_ms(trajectory.start_time)}",
        "scenarioId": trajectory.window_id,
        "batchId": trajectory.batch_id,
        "stepsJson": verbatim_json(msgspec.to_builtins(steps)),
        "rewardComponentsJson": verbatim_json({"environmentReward": reward}),
        "metricsJson": verbatim_json({k: v for k, v in metrics.items() if v is not None}),
        # Nothing that became known later goes here: a reader might show it to the policy.
        "metadataJson": verbatim_json({"isTrainingData": trajectory.is_training_data, "gameKnowledge": {}}),
        "totalReward": reward,
        "episodeLength": len(steps),
        "finalStatus": metrics["finalStatus"],
        "finalBalance": trajectory.final_balance,
        "finalPnL": trajectory.final_pnl,
        "tradesExecuted": metrics["tradesExecuted"],
        "postsCreated": metrics["postsCreated"],
        "isTrainingData": trajectory.is_training_data,
        "isEvaluation": trajectory.is_evaluation,
        "createdAt": utc_naive(now),
        "updatedAt": utc_naive(now),
    }


def llm_call_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of `llm_call_logs`: every call in the steps, with what was logged of it."""
    logged = {call.call_id: call for call in run.calls}
    trajectory_id = run.trajectory.trajectory_id
    rows = []
    for step in run.trajectory.steps:
        for number, call in enumerate(step.llm_calls):
            name = call_id(trajectory_id, step.step_number, number)
            rows.append(_llm_call_row(trajectory_id, step, name, call, logged.get(name)))
    return rows


def _llm_call_row(
    trajectory_id: str, step: Step, name: str, call: LLMCall, logged: RecordedCall | None
) -> dict[str, Any]:
    prompt = len(logged.prompt_token_ids) if logged else None
    completion = len(logged.token_ids) if logged else None
    messages = [{"role": "system", "content": call.system_prompt}, {"role": "user", "content": call.user_prompt}]
    return {
        "id": snowflake(name),
        "trajectoryId": trajectory_id,
        "stepId": step_id(trajectory_id, step.step_number),
        "callId": name,
        "timestamp": datetime.fromtimestamp(step.timestamp / 1000, UTC).replace(tzinfo=None),
        # The application's column is whole milliseconds.
        "latencyMs": None if call.latency_ms is None else round(call.latency_ms),
        "model": call.model,
        "purpose": call.purpose,
        "actionType": call.action_type,
        "systemPrompt": clean_text(call.system_prompt),
        "userPrompt": clean_text(call.user_prompt),
        "messagesJson": verbatim_json(messages),
        "response": clean_text(call.response),
        "reasoning": None if call.reasoning is None else clean_text(call.reasoning),
        "temperature": call.temperature or 0.0,
        "maxTokens": call.max_tokens or 0,
        "topP": logged.top_p if logged else None,
        "promptTokens": prompt,
        "completionTokens": completion,
        "totalTokens": prompt + completion if logged else None,
        "metadata": verbatim_json({"modelVersion": call.model_version} if call.model_version else {}),
    }


def recorded_call_row(call: RecordedCall) -> dict[str, Any]:
    """Row of `recorded_calls`."""
    return msgspec.to_builtins(call)


def epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def utc_naive(moment: datetime) -> datetime:
    """The application's times: UTC without a zone. A time without a zone is taken for UTC."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _succeeded(steps: list[Step], kind: Kind) -> int:
    return sum(step.action.success and kind_of(step.action) is kind for step in steps)
