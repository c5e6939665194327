"""Settings of databases, folders and windows."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from babylon_rl.settings.names import variable

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class DatabaseSettings(BaseModel):
    """Databases and folders."""

    database_url: SecretStr | None = Field(
        None,
        json_schema_extra=variable("BABYLON_RL_DATABASE_URL"),
        description="PostgreSQL that holds our tables, and without DATABASE_URL the application's; empty: the "
        "embedded server",
    )
    application_url: SecretStr | None = Field(
        None,
        json_schema_extra=variable("DATABASE_URL"),
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


class WindowSettings(BaseModel):
    """Windows: when they are ready, and how they are computed."""

    min_agents_per_window: int = Field(
        3,
        ge=1,
        json_schema_extra=variable("MIN_AGENTS_PER_WINDOW"),
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
    workers: int = Field(
        1, ge=1, le=64, description="processes that read and score a range of windows, each with its own connections"
    )
    sensors: Literal["on", "off"] = Field(
        "off", description="whether sensors and schedules run from the start; `make ui` sets it on"
    )
    partitions_start: str = Field("2024-01-01T00:00", description="first window that Dagster shows")
