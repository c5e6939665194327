"""One typed settings object from the environment and the settings file; `env.template` is generated from it.

Nothing else in the package reads `os.environ` for configuration.
"""

import functools
import os
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from babylon_rl.errors import SettingsError
from babylon_rl.settings.names import OLD_NAMES, variable_of
from babylon_rl.settings.old_names import notes, translated
from babylon_rl.settings.recordings import REPOSITORY, DatabaseSettings, WindowSettings
from babylon_rl.settings.rewards import JudgeSettings, RewardSettings
from babylon_rl.settings.serving import ExperimentSettings, ServingSettings
from babylon_rl.settings.sources import Given, given_variables
from babylon_rl.settings.training import HostedSettings, TrainingSettings

__all__ = [
    "ALL_NAMES",
    "REPOSITORY",
    "SECRETS",
    "SECTIONS",
    "VARIABLES",
    "Setting",
    "Settings",
    "get_settings",
    "told_settings",
    "without_user",
]

# In the order in which they are listed.
SECTIONS: tuple[type[BaseModel], ...] = (
    DatabaseSettings,
    TrainingSettings,
    HostedSettings,
    WindowSettings,
    RewardSettings,
    JudgeSettings,
    ServingSettings,
    ExperimentSettings,
)
# Field -> its variable.
VARIABLES = {name: variable_of(name, field) for part in SECTIONS for name, field in part.model_fields.items()}


def is_secret(field: FieldInfo) -> bool:
    """Whether the field's value is never shown."""
    return SecretStr in getattr(field.annotation, "__args__", (field.annotation,))


# Variables whose values are never shown.
SECRETS = frozenset(VARIABLES[n] for part in SECTIONS for n, f in part.model_fields.items() if is_secret(f)) | {
    "OPENAI_API_KEY"
}
ALL_NAMES = frozenset({*VARIABLES.values(), *OLD_NAMES})


class _Variables(PydanticBaseSettingsSource):
    """Fields by their variables, from the environment and the file named there."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        one = read_variables().get(VARIABLES[field_name])
        return (None if one is None else one.value, field_name, False)

    def __call__(self) -> dict[str, Any]:
        found = read_variables()
        return {name: found[variable].value for name, variable in VARIABLES.items() if variable in found}


class Settings(
    DatabaseSettings,
    TrainingSettings,
    HostedSettings,
    WindowSettings,
    RewardSettings,
    JudgeSettings,
    ServingSettings,
    ExperimentSettings,
    BaseSettings,
):
    """What a user can set. Field descriptions are what `env.template` says."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller names, then the variables."""
        return init_settings, _Variables(settings_cls)


def read_variables() -> dict[str, Given]:
    """Variables with a value, under today's names. SettingsError for an unknown or contradictory one."""
    return translated(given_variables(os.environ, VARIABLES.values(), SECRETS))


def old_name_notes() -> list[str]:
    """What a person should know of the first system's variables that are set."""
    return notes(given_variables(os.environ, VARIABLES.values(), SECRETS))


@functools.cache
def get_settings() -> Settings:
    """The process's settings; SettingsError names the variable that is wrong and never prints its value."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"{VARIABLES.get(str(e['loc'][0]), e['loc'][0])}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise SettingsError(f"Wrong setting: {wrong}. env.template lists the settings and their values.") from None


class Setting(NamedTuple):
    """A setting as it may be shown. `value`: of a secret "set" or "not set"; `origin`: default, environment, a path."""

    section: str
    name: str
    value: str
    origin: str
    description: str


def told_settings(settings: Settings) -> list[Setting]:
    """All settings with where they came from; no secret is among the values."""
    found = read_variables()
    told = []
    for part in SECTIONS:
        section = (part.__doc__ or "").rstrip(".")
        for name, field in part.model_fields.items():
            one = found.get(VARIABLES[name])
            origin = "default" if one is None else one.origin
            value = _shown(getattr(settings, name), is_secret(field))
            told.append(Setting(section, VARIABLES[name], value, origin, field.description or ""))
    return told


def _shown(value: Any, secret: bool) -> str:
    if secret:
        return "set" if value is not None and value.get_secret_value() else "not set"
    text = "" if value is None else str(value)
    return without_user(text) if "://" in text else text


def without_user(url: str) -> str:
    """The URL without what may be a key: user, password and query."""
    head, _, rest = url.partition("://")
    where = rest.partition("?")[0].partition("#")[0]
    host, slash, path = where.partition("/")
    return f"{head}://{host.rpartition('@')[2]}{slash}{path}"
