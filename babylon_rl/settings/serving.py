"""Settings of serving: the gateway, the endpoint behind it, what is checked before and after a switch, experiments."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr


def _without_a_key(url: str) -> str:
    """The address as it is: it is told to callers and recorded with each call, so no key may be in it."""
    if "@" in urlsplit(url).netloc or urlsplit(url).query:
        raise ValueError(
            "the address is recorded with each call, so it holds no user, password or query; the service's key is "
            "BABYLON_RL_UPSTREAM_KEY"
        )
    return url


class ServingSettings(BaseModel):
    """Serving: the gateway and what answers behind it."""

    upstream_url: Annotated[str, AfterValidator(_without_a_key)] | None = Field(
        None,
        description="OpenAI-compatible base URL ending in /v1 that answers instead of an endpoint of our own: vLLM, "
        "the W&B inference service; empty: `babylon-rl serve` starts one",
    )
    upstream_key: SecretStr | None = Field(None, description="key of that service; agents' own keys never reach it")
    upstream_fields: Literal["vllm", "openai"] = Field(
        "vllm",
        description="fields that the service takes: vllm, token ids and choices too; openai, log-probabilities alone",
    )
    upstream_timeout: float = Field(120, gt=0, description="seconds after which a call of the service is given up")
    gateway_in_flight: int = Field(512, ge=1, description="calls that the gateway has open at a time; more get a 429")
    gateway_body_mb: float = Field(8, gt=0, description="largest body of a request, in MB")
    request_memory_minutes: float = Field(
        60, gt=0, description="minutes that a request id is remembered: asked again, it gets the recorded answer"
    )
    attest_tolerance: float = Field(
        0.0,
        ge=0,
        description="largest difference of a log-probability between what is served and what the trainer computed; 0: "
        "by precision, 0.0002 in float32, 0.1 in bfloat16",
    )


class ExperimentSettings(BaseModel):
    """Experiments and the watch over what is served."""

    experiment_alpha: float = Field(
        0.05, gt=0, lt=0.5, description="share of candidates without an effect that may be promoted, over all looks"
    )
    experiment_block_hours: int = Field(
        6, ge=1, le=168, description="hours whose mean is one observation; longer where hours resemble each other"
    )
    experiment_burn_in: int = Field(
        1, ge=0, le=24, description="hours after each switch of a switchback that are left out"
    )
    guard_valid: float = Field(
        0.05, ge=0, le=1, description="fall of the share of valid actions that stops a candidate and takes it back"
    )
    guard_drawdown: float = Field(
        0.05, gt=0, le=1, description="loss from its peak, as a share of capital, beyond the baseline's, that does so"
    )
    guard_latency: float = Field(2.0, gt=1, description="times the baseline's latency (95th percentile) that do so")
    guard_windows: int = Field(6, ge=1, description="latest windows of what is served that the watch over it looks at")
