"""Agents that speak to the routes of trajectories, for tests: an application over a real spool, and what they send."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from babylon_rl.serving.gateway.events import CallEvent, Event
from babylon_rl.serving.gateway.files import SPOOL
from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.gateway.spool import Spool
from babylon_rl.serving.gateway.trajectories import trajectory_routes

START = 1736935200  # 2025-01-15T10:00
KEYS = {
    "any": Key(key_id="k-any", secret_sha256="", scopes=("call", "record")),
    "bound": Key(key_id="k-bound", secret_sha256="", scopes=("record",), agent_id="agent-1"),
    "caller": Key(key_id="k-caller", secret_sha256="", scopes=("call",)),
}


def authenticate(request: Any, scope: str) -> Key:
    """The key that the header names; as the gateway, 401 without one and 403 without the scope."""
    key = KEYS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
    if key is None:
        raise HTTPException(401)
    if scope not in key.scopes:
        raise HTTPException(403)
    return key


@contextlib.contextmanager
def recording(folder: Path, key: str = "any", **options: Any) -> Iterator[httpx.Client]:
    """A client of the routes over a spool in the folder, as a gateway that starts has them."""
    spool = Spool(folder / SPOOL).open()
    routes = trajectory_routes(authenticate, options.pop("append", spool.append), folder, **options)
    try:
        with TestClient(Starlette(routes=routes), headers={"Authorization": f"Bearer {key}"}) as client:
            yield client
    finally:
        spool.close()


def spooled(folder: Path, *events: Event) -> None:
    """Bring events to disk in a segment of their own, as a gateway that starts and ends writes them."""

    async def write(spool: Spool) -> None:
        for event in events:
            await spool.append(event)

    spool = Spool(folder / SPOOL).open()
    asyncio.run(write(spool))
    spool.close()


def start(trajectory_id: str = "t1", **changes: Any) -> dict[str, Any]:
    return {"trajectoryId": trajectory_id, "agentId": "agent-1", "startTime": START * 1000 + 60_000, **changes}


def step(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "stepNumber": number, "timestamp": START * 1000 + 300_000 + number,
        "environmentState": {"agentBalance": 1000.0, "agentPnL": 1.0 * number, "openPositions": 0},
        "action": {"actionType": "open_long", "parameters": {"ticker": "ACME"}, "success": True}, **changes,
    }  # fmt: skip


def end(**changes: Any) -> dict[str, Any]:
    return {"endTime": START * 1000 + 3_300_000, "finalPnL": 3.5, "finalBalance": 1003.5, **changes}


def call_event(call_id: str, **changes: Any) -> CallEvent:
    request = (
        '{"model":"babylon","messages":[{"role":"system","content":"You trade."},'
        '{"role":"user","content":"News: good \\u00e9."}],"temperature":1.0,"max_tokens":8}'
    )
    response = '{"choices":[{"message":{"role":"assistant","content":"BUY ACME"},"finish_reason":"stop"}]}'
    values = {
        "call_id": call_id, "request_id": f"r-{call_id}", "body_sha256": "b", "key_id": "k-any", "agent_id": "agent-1",
        "window_id": "2025-01-15T10:00", "trajectory_id": None, "step_number": None, "arm": "promoted",
        "experiment_id": None, "checkpoint_id": "c1", "upstream": "http://127.0.0.1:1/v1", "model": "c1",
        "request": request, "response": response, "content_type": "application/json", "status": 200, "streamed": False,
        "prompt_token_ids": [1, 2, 3], "token_ids": [7, 8], "logprobs": [-0.5, -0.25],
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "seed": 11}, "finish_reason": "stop",
        "asked_at": START + 300.0, "latency_ms": 12.5, "first_byte_ms": None, "upstream_ms": 11.0,
    }  # fmt: skip
    return CallEvent(**{**values, **changes})
