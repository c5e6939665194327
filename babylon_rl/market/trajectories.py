"""A played window as the records that the application keeps: trajectories, calls, and the market's history."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from babylon_rl.market.agents import AgentState
from babylon_rl.market.endpoint import Answer, Sampling
from babylon_rl.market.observation import news_lines, observation, prices_line, system_prompt
from babylon_rl.market.settlement import Settlement, quotes
from babylon_rl.market.world import PATH_MINUTES, Instrument, MarketWindow
from babylon_rl.recording.market_history import QuestionHistory, TickerHistory
from babylon_rl.recording.records import Action, LLMCall, RecordedCall, Run, Step, Trajectory
from babylon_rl.recording.rows import call_id, epoch_ms
from babylon_rl.windows import parse_window_id

DECIDES_AFTER = timedelta(minutes=1)
ENDS_AFTER = timedelta(minutes=55)
# The close is the last price inside the hour; the next hour's opening stands at its first moment.
CLOSE_BEFORE_END = timedelta(seconds=1)

_NAMESPACE = uuid.UUID("6f4b8a52-5a0e-4d0f-9a57-2f6f3f6f2b11")
_SIDES = {"open_long": "long", "open_short": "short", "buy_yes": "YES", "buy_no": "NO"}


@dataclass(frozen=True)
class Label:
    """For what a window is played: training, or an arm (a checkpoint or a fixed policy) of an evaluation's split."""

    arm: str
    split: str | None = None  # None: for training

    @property
    def batch_id(self) -> str | None:
        """What the rows carry: `<split>:<arm>`, or nothing for training."""
        return None if self.split is None else f"{self.split}:{self.arm}"


@dataclass(frozen=True)
class Asked:
    """What a model was asked and answered."""

    answer: Answer
    sampling: Sampling
    choices: list[str]
    seed: int
    extensions: bool


def trajectory_id(window_id: str, agent_id: str, label: Label) -> str:
    """Always the same for the same window, agent and purpose, so that playing again records nothing twice."""
    return str(uuid.uuid5(_NAMESPACE, f"{window_id}/{agent_id}/{label.batch_id or 'train'}"))


def market_id(window_id: str, instrument: str) -> str:
    """Id of a window's prediction market in the application's tables."""
    return f"{instrument}-{window_id}"


def make_run(
    window_id: str,
    window: MarketWindow,
    agent: AgentState,
    settlement: Settlement,
    label: Label,
    asked: Asked | None,
    times: tuple[datetime, datetime] | None = None,
) -> Run:
    """The record of one agent's window. `asked` is None for a fixed policy; `times`: of decision and end, if live."""
    start = parse_window_id(window_id)
    decided, ended = times or (start + DECIDES_AFTER, start + ENDS_AFTER)
    name = trajectory_id(window_id, agent.agent_id, label)
    step = Step(
        step_number=0,
        timestamp=epoch_ms(decided),
        environment_state={
            "agentBalance": float(agent.capital),
            "agentPnL": 0.0,
            "openPositions": int(agent.holding > 0),
            "activeMarkets": len(window.instruments),
            "timestamp": epoch_ms(decided),
            "quotes": _quotes(window_id, window, agent),
        },
        provider_accesses=_seen(window, agent),
        llm_calls=[] if asked is None else [_llm_call(window, agent, settlement, asked)],
        action=settled_action(window_id, window.instrument(agent.instrument), settlement),
        reward=0.0,
    )
    trajectory = Trajectory(
        trajectory_id=name,
        agent_id=agent.agent_id,
        window_id=window_id,
        start_time=start if times is None else decided,
        end_time=ended,
        steps=[step],
        final_balance=agent.capital + settlement.pnl,
        final_pnl=settlement.pnl,
        is_training_data=label.split is None,
        is_evaluation=label.split is not None,
        batch_id=label.batch_id,
    )
    calls = [] if asked is None or not asked.answer.logged else [_recorded_call(name, asked)]
    return Run(trajectory, calls)


def market_history(window_id: str, window: MarketWindow) -> tuple[list[TickerHistory], list[QuestionHistory]]:
    """The window's prices and its question, as the application keeps them."""
    start = parse_window_id(window_id)
    end = start + timedelta(minutes=PATH_MINUTES[-1])
    moments = [*(start + timedelta(minutes=m) for m in PATH_MINUTES[:-1]), end - CLOSE_BEFORE_END]
    tickers = [TickerHistory(i.name, tuple(zip(moments, i.path, strict=True))) for i in window.tickers]
    questions = [
        QuestionHistory(
            market_id(window_id, i.name), i.question, i.maker.yes_shares, i.maker.no_shares, start, end, i.outcome,
            tuple(zip(moments, i.path, strict=True)),
        )
        for i in window.instruments
        if i.question is not None and i.maker is not None and i.outcome is not None
    ]  # fmt: skip
    return tickers, questions


def _quotes(window_id: str, window: MarketWindow, agent: AgentState) -> list[dict[str, Any]]:
    """What each answer would have bought, under the name by which `market_outcomes` lists the instrument."""
    covered = window.instrument(agent.instrument)
    name = market_id(window_id, covered.name) if covered.is_question else covered.name
    return msgspec.to_builtins(quotes(window, agent, name))


def _seen(window: MarketWindow, agent: AgentState) -> list[dict[str, Any]]:
    return [
        {"providerName": "prices", "data": {"text": prices_line(window)}, "purpose": "current prices"},
        {
            "providerName": "news",
            "data": {"text": news_lines(window, agent)},
            "purpose": "news of the covered instrument",
        },
    ]


def settled_action(window_id: str, covered: Instrument, settlement: Settlement) -> Action:
    """The action with what it came to. `instrument` is the name under which `market_outcomes` lists it."""
    if covered.is_question:
        name = market_id(window_id, covered.name)
        parameters: dict[str, Any] = {"instrument": name, "marketId": name, "marketType": "prediction"}
    else:
        parameters = {"instrument": covered.name, "ticker": covered.name, "marketType": "perp"}
    if settlement.action_type in _SIDES:
        parameters["side"] = _SIDES[settlement.action_type]
    return Action(
        action_type=settlement.action_type,
        parameters=parameters,
        success=settlement.success,
        result={
            "pnl": settlement.pnl,
            "fees": settlement.fees,
            "notional": settlement.notional,
            "exposure": settlement.exposure,
            "capital": settlement.capital,
            "shares": settlement.shares,
            **({} if settlement.entry_price is None else {"entryPrice": settlement.entry_price}),
        },
        error=settlement.error,
    )


def _llm_call(window: MarketWindow, agent: AgentState, settlement: Settlement, asked: Asked) -> LLMCall:
    return LLMCall(
        model=asked.answer.model,
        model_version=asked.answer.checkpoint,
        system_prompt=system_prompt(),
        user_prompt=observation(window, agent),
        response=asked.answer.text,
        temperature=asked.sampling.temperature,
        max_tokens=asked.sampling.max_tokens,
        latency_ms=round(asked.answer.latency_ms, 3),
        purpose="action",
        action_type=settlement.action_type,
    )


def _recorded_call(name: str, asked: Asked) -> RecordedCall:
    answer, sampling = asked.answer, asked.sampling
    constrained = asked.extensions and sampling.constrained
    return RecordedCall(
        call_id=call_id(name, 0, 0),
        trajectory_id=name,
        step_number=0,
        model=answer.model,
        checkpoint=answer.checkpoint,
        prompt_token_ids=answer.prompt_token_ids,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        choices=asked.choices if constrained else None,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        exploration=sampling.exploration if asked.extensions else 0.0,
        seed=asked.seed,
        finish_reason=answer.finish_reason,
    )
