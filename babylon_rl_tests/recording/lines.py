"""Lines of recordings as a writer in another language makes them, for tests of the contract and of imports."""

import json
from typing import Any

from babylon_rl_tests.recording.runs import WINDOW


def call(**changes) -> dict[str, Any]:
    tokens = {"promptTokenIds": [1, 2, 3], "tokenIds": [7, 2], "logprobs": [-0.5, 0.0]}
    return {
        "model": "base", "systemPrompt": "You trade.", "userPrompt": "News: good.", "response": "BUY ACME",
        "temperature": 1.0, "maxTokens": 8, "purpose": "action", "tokens": tokens, **changes,
    }  # fmt: skip


def step(number: int = 0, **changes) -> dict[str, Any]:
    return {
        "stepNumber": number, "timestamp": 1736935500000 + number, "environmentState": {"agentPnL": 0.0},
        "providerAccesses": [], "llmCalls": [call()],
        "action": {"actionType": "open_long", "parameters": {"ticker": "ACME"}, "success": True},
        "reward": 0.0, **changes,
    }  # fmt: skip


def line(name: str = "t1", **changes) -> dict[str, Any]:
    return {
        "version": 1, "trajectoryId": name, "agentId": "agent-1", "startTime": "2025-01-15T10:05:00Z",
        "endTime": 1736938500000, "windowId": WINDOW, "steps": [step()], "finalStatus": "completed",
        "finalPnL": 3.5, **changes,
    }  # fmt: skip


def row(name: str = "t1", **changes) -> dict[str, Any]:
    steps = [step(llmCalls=[])]
    return {
        "id": f"id-{name}", "trajectoryId": name, "agentId": "agent-1", "startTime": "2025-01-15T10:05:00",
        "endTime": "2025-01-15T10:55:00.123", "windowId": None, "stepsJson": json.dumps(steps), "metricsJson": "{}",
        "finalStatus": "completed", "finalPnL": 0, "isTrainingData": True, "window_id": "added", **changes,
    }  # fmt: skip


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()
