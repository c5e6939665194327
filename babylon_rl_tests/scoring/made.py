"""Recordings made by hand, for the tests of scoring and groups: a window of agents that take one action each."""

import random
from datetime import UTC, datetime

import pandas as pd

from babylon_rl.recording.records import Action, LLMCall, RecordedCall, Step
from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

WINDOW = "2026-01-05T10:00"
SYSTEM = "You trade on news."
CHOICES = ["BUY", "SELL", "HOLD"]
# Words of the tiny tokenizer in the ART test, in the order of their ids.
TOKENS = {"BUY": 4, "SELL": 5, "HOLD": 6, "<|im_end|>": 2}


def outcomes(window_id=WINDOW, **changes):
    """Rows of `market_outcomes`: tickers by name with their change, and one question."""
    changes = changes or {"ACME": 0.05, "BOLT": -0.02, "CRUX": 0.03}
    rows = [
        {"window_id": window_id, "instrument": name, "kind": "ticker", "change": change, "revision": f"{name}{change}"}
        for name, change in changes.items()
    ]
    rows.append(
        {"window_id": window_id, "instrument": "MOON", "kind": "question", "change": 0.5, "revision": "moon-settled"}
    )
    return pd.DataFrame(rows)


def call(trajectory_id, verb, step=0, checkpoint="demo@0", logprob=-0.7):
    tokens = [TOKENS[verb], TOKENS["<|im_end|>"]]
    return RecordedCall(
        call_id=f"{trajectory_id}-call-{step}-0",
        trajectory_id=trajectory_id,
        step_number=step,
        model="demo",
        checkpoint=checkpoint,
        prompt_token_ids=[1, 7, 3, 2, 1, 8, 9, 2, 1, 10],
        token_ids=tokens,
        logprobs=[logprob, 0.0],
        choices=CHOICES,
        temperature=1.0,
        top_p=1.0,
        exploration=0.1,
        seed=7,
        finish_reason="stop",
    )


def action(verb, instrument="ACME", notional=100.0, fees=0.2, **result):
    names = {"BUY": "open_long", "SELL": "open_short", "HOLD": "hold"}
    if verb == "HOLD":
        return Action(action_type="hold", parameters={"instrument": instrument}, success=True, result={})
    return Action(
        action_type=names[verb],
        parameters={"instrument": instrument},
        success=True,
        result={"notional": notional, "fees": fees, **result},
    )


def step(number, act, response, balance=1000.0, pnl=0.0, user="BUY or SELL"):
    text = LLMCall(
        model="demo",
        system_prompt=SYSTEM,
        user_prompt=user,
        response=response,
        temperature=1.0,
        max_tokens=4,
        purpose="action",
    )
    return Step(
        step_number=number,
        timestamp=0,
        environment_state={"agentBalance": balance, "agentPnL": pnl, "openPositions": 0},
        provider_accesses=[],
        llm_calls=[text],
        action=act,
        reward=0.0,
    )


def trajectory(
    name, verb="BUY", pnl=0.0, *, verbs=None, instrument="ACME", balance=1000.0, checkpoint="demo@0", calls=None, **own
):
    """One agent's trajectory that takes `verbs` in turn; `pnl` is the window's, after fees."""
    verbs = verbs or [verb]
    steps = [
        step(number, action(said, instrument), said, balance, user=f"{name} step {number}")
        for number, said in enumerate(verbs)
    ]
    if calls is None:
        calls = [call(name, said, number, checkpoint) for number, said in enumerate(verbs)]
    moment = datetime(2026, 1, 5, 10, 30, tzinfo=UTC)
    fields = {
        "trajectory_id": name,
        "agent_id": f"agent-{name}",
        "window_id": WINDOW,
        "start_time": moment,
        "end_time": moment,
        "steps": steps,
        "first_pnl": 0.0,
        "last_pnl": pnl,
        "window_pnl": pnl,
        "final_balance": balance + pnl,
        "calls": calls,
        "provenance": "logged",
        "digest": name,
    }
    return UsableTrajectory(**{**fields, **own})


def recorded(*trajectories, window_id=WINDOW, revision="r1"):
    return RecordedWindow(window_id=window_id, usable=list(trajectories), rejected=[], revision=revision)


def shuffled(items, seed):
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
