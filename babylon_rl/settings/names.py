"""Names of settings: each field's variable, those that our processes tell each other, those of the first system."""

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

PREFIX = "BABYLON_RL_"
# Names the settings file itself, so it stands in no file.
SETTINGS_FILE = "BABYLON_RL_SETTINGS_FILE"
# Set by one of our processes for another; no setting of a user's.
INTERNAL = frozenset({"BABYLON_RL_TRAINER_DATABASE", "BABYLON_RL_TRAINER_EMBEDDED"})
# The first system's variables that are no field's own name; `babylon_rl.settings.old_names` says what they mean.
OLD_NAMES = ("PROJECT_NAME", "OPENAI_API_KEY", "TRAIN_RL_LOCAL")


def variable(name: str) -> dict[str, Any]:
    """Extra of a field whose variable is not our prefix and its own name."""
    return {"variable": name}


def variable_of(name: str, field: FieldInfo) -> str:
    """The field's variable."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, Mapping) else {}
    return str(extra.get("variable", f"{PREFIX}{name.upper()}"))
