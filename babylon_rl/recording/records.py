"""The shapes that agents record, as the application's recorder writes them (camelCase JSON in TEXT columns).

`stepsJson` is a list of `Step`; absent optional keys are missing, not null; times are epoch milliseconds. Keys that we
do not know are skipped. `RecordedCall` is ours: what the application has no column for.
"""

from datetime import datetime
from typing import Any

import msgspec

# What JavaScript keeps in an object. Its numbers are floats, however they are spelled.
Values = dict[str, float | bool | str | None | list[Any] | dict[str, Any]]


class LLMCall(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """One call of the language model, verbatim."""

    model: str
    system_prompt: str
    user_prompt: str
    response: str
    # Required by the application's readers, so without a default: defaults are omitted. Numbers may be null, which is
    # what JavaScript writes for NaN.
    temperature: float | None
    max_tokens: int | None
    purpose: str
    model_version: str | None = None
    reasoning: str | None = None
    latency_ms: float | None = None
    action_type: str | None = None
    call_id: str | None = None  # the plugin's


class Action(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """What the agent did; a malformed answer is an action with `success` false."""

    action_type: str
    parameters: Values | list[Any] | str | float | bool | None  # interceptors record what they please
    success: bool
    result: Values | list[Any] | str | float | bool | None = None
    error: str | None = None
    reasoning: str | None = None
    action_name: str | None = None  # the plugin's


class Step(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """One step of a trajectory: what was seen, asked, answered, done and earned.

    `timestamp`: epoch milliseconds, 0 where it is not known.
    """

    step_number: int
    timestamp: int | float
    environment_state: Values
    provider_accesses: list[Any]
    llm_calls: list[LLMCall]
    action: Action
    reward: float | None
    step_id: str | None = None  # the plugin's


class KnownState(msgspec.Struct, frozen=True, gc=False):
    """What is read of a step's environmentState, under the names that it has there; the rest is skipped."""

    agentPnL: Any = None
    agentBalance: Any = None
    portfolioValue: Any = None
    capital: Any = None
    quotes: Any = None

    def get(self, name: str) -> Any:
        """The value of that name, None where it is absent."""
        return getattr(self, name, None)


class ReadStep(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """What is read of a recorded step: all but what the agent was shown beside its prompts, and the reward."""

    step_number: int
    timestamp: int | float
    environment_state: KnownState
    llm_calls: list[LLMCall]
    action: Action
    step_id: str | None = None


class UnreadCall(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """A call whose texts are not read, which takes as long as all the rest of a step."""

    model: str
    temperature: float | None
    max_tokens: int | None
    purpose: str
    latency_ms: float | None = None


class UnreadStep(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True):
    """A `ReadStep` whose calls' texts are not read."""

    step_number: int
    timestamp: int | float
    environment_state: KnownState
    llm_calls: list[UnreadCall]
    action: Action
    step_id: str | None = None


class Trajectory(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's recorded run. `final_pnl` and `final_balance` in dollars; times aware, UTC."""

    trajectory_id: str
    agent_id: str
    window_id: str
    start_time: datetime
    end_time: datetime
    steps: list[Step]
    final_balance: float | None
    final_pnl: float | None
    is_training_data: bool = True
    is_evaluation: bool = False
    batch_id: str | None = None  # for an evaluation: "<split>:<arm>"


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer would buy, as it stands when the agent decides; a list of them is `quotes` of a step's state.

    Dollars, but for `shares`. `instrument`: its name in `market_outcomes`; `side`: long or short for a ticker, YES or
    NO for a question, None for no trade; `exposure`: signed dollars that move with the tickers' market.
    """

    instrument: str
    answer: str
    side: str | None
    notional: float
    exposure: float
    fees: float
    shares: float


class RecordedCall(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one LLM call sampled, and from which distribution. Row of `recorded_calls`.

    `call_id` is `<trajectory>-call-<step>-<number in the step>`. `logprobs`: one a token, natural logarithm.
    """

    call_id: str
    trajectory_id: str
    step_number: int
    model: str
    checkpoint: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    choices: list[str] | None
    temperature: float
    top_p: float
    exploration: float
    seed: int | None
    finish_reason: str


class Run(msgspec.Struct, frozen=True):
    """A trajectory with the calls that were logged in it."""

    trajectory: Trajectory
    calls: list[RecordedCall]
