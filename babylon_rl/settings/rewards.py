"""Settings of rewards, groups and the judge."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from babylon_rl.settings.names import variable


class RewardSettings(BaseModel):
    """Rewards and groups."""

    scorer: str = Field("alpha", description="reward that is trained on: alpha, heuristic, ruler, blend, or your own")
    scorer_modules: str = Field(
        "", description="modules that register scorers of your own, separated by commas (docs/write-a-scorer.md)"
    )
    blend: str = Field(
        "alpha=1,ruler=0.01", description="mixture of scorer blend: each scorer's weight, which multiplies its reward"
    )
    min_group_size: int = Field(2, ge=2, description="members that a group needs to be trained on")
    max_per_group: int = Field(0, ge=0, description="members that a group has at most, chosen by seed; 0: all")
    group_seed: int = Field(0, description="seed of that choice")
    agent_baseline: Literal["shrunken", "none"] = Field(
        "shrunken", description="what is taken off a reward for who the agent is: its shrunken moving mean, or nothing"
    )
    agent_share_limit: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the rewards' variance by agent identity above which a group without an agent's baseline "
        "is refused",
    )


class JudgeSettings(BaseModel):
    """The judge of scorer ruler: a model behind an OpenAI-compatible endpoint."""

    judge_model: str | None = Field(
        None, json_schema_extra=variable("JUDGE_MODEL"), description="model that judges where the scorer is ruler"
    )
    judge_base_url: str | None = Field(
        None,
        json_schema_extra=variable("JUDGE_BASE_URL"),
        description="OpenAI-compatible base URL of the judge ending in /v1; empty: OpenAI's",
    )
    judge_api_key: SecretStr | None = Field(
        None,
        json_schema_extra=variable("JUDGE_API_KEY"),
        description="key of the judge's endpoint; a local one needs none",
    )
    judge_form: Literal["json", "choices"] = Field(
        "json",
        description="how a judge answers: json, all runs at once; choices, a run at a time among given scores, for "
        "endpoints that constrain answers (ours, vLLM)",
    )
    judge_reward: Literal["hindsight", "process"] = Field(
        "hindsight", description="judge's score that is the reward of ruler; the other is stored beside it"
    )
    judge_rubric: Path | None = Field(None, description="text file of the rubric; empty: the default one")
    judge_process_rubric: Path | None = Field(
        None, description="text file of the rubric for what was knowable; empty: the default one"
    )
    judge_texts: Literal["guarded", "never"] = Field(
        "guarded",
        description="what a judge is shown of agents' goals and texts: guarded, all but those with signs of injection; "
        "never, what was done alone, which no agent can word",
    )
    judge_repeats: int = Field(2, ge=1, le=10, description="times that each window is judged, in another order each")
    judge_runs_per_call: int = Field(
        8, ge=3, le=100, description="runs that a judge is shown at once, anchors included"
    )
    judge_concurrency: int = Field(4, ge=1, le=64, description="calls of the judge at a time")
    judge_requests_per_minute: int = Field(300, ge=1, description="calls of the judge a minute at most")
    judge_timeout: float = Field(60, gt=0, description="seconds after which a call of the judge is given up")
    judge_thinking_tokens: int = Field(
        0, ge=0, description="tokens that a judge may think before its answer, for models that do"
    )
    judge_budget_tokens: int = Field(
        1_000_000, ge=1, description="tokens that one run may spend on its judge, by estimate before and by count after"
    )
    judge_prices: str = Field(
        "",
        description="dollars a million tokens of the judge, input/output as in 0.40/1.60, to tell costs; empty: none",
    )
    judge_seed: int = Field(0, description="seed of the order in which runs are shown, and of the anchors")
    judge_floor: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="rank correlation with alpha that a judge must show by the lower end of its interval",
    )
    judge_repeat_floor: float = Field(
        0.3, ge=-1, le=1, description="mean rank correlation of a judge with itself below which it is set aside"
    )
    judge_least_windows: int = Field(
        10, ge=1, description="judged windows from which on a judge is held to its floors; before it is unproven"
    )
