"""What the first system's variables mean here, where they are no setting of their own name."""

import re
from pathlib import Path

from babylon_rl.errors import SettingsError
from babylon_rl.settings.sources import Given

_YES, _NO = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
# TRAINING_BACKEND that sends recordings away, or may.
_AWAY = ("wandb", "auto")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def translated(given: dict[str, Given]) -> dict[str, Given]:
    """The variables with the old names' meaning under today's names. SettingsError where two say different things."""
    found = dict(given)
    if "PROJECT_NAME" in given:
        found.setdefault("WANDB_PROJECT", _as(given, "PROJECT_NAME"))
    # OpenAI's key goes to OpenAI's own endpoint and to no other.
    if "OPENAI_API_KEY" in given and "JUDGE_MODEL" in given and "JUDGE_BASE_URL" not in given:
        found.setdefault("JUDGE_API_KEY", _as(given, "OPENAI_API_KEY"))
    if "BASE_MODEL" in given and is_hub_name(given["BASE_MODEL"].value):
        found.setdefault("BABYLON_RL_WANDB_BASE_MODEL", _as(given, "BASE_MODEL"))
    if "TRAIN_RL_LOCAL" in given and _is_local(given["TRAIN_RL_LOCAL"]):
        if "TRAINING_BACKEND" in given and given["TRAINING_BACKEND"].value in _AWAY:
            raise SettingsError(
                f"TRAIN_RL_LOCAL says that training is done here, TRAINING_BACKEND={given['TRAINING_BACKEND'].value} "
                "that it may be done elsewhere. Unset one of them."
            )
        found.setdefault("TRAINING_BACKEND", Given("torch", _as(given, "TRAIN_RL_LOCAL").origin))
    return found


def is_hub_name(model: str) -> bool:
    """Whether a model's name is one on a hub, owner/name, and no folder of that path is here."""
    return _HUB.fullmatch(model) is not None and not Path(model).exists()


def notes(given: dict[str, Given]) -> list[str]:
    """What a person should know of the old names that are set: those that are not obeyed."""
    said = []
    if "TRAIN_RL_LOCAL" in given and not _is_local(given["TRAIN_RL_LOCAL"]) and "TRAINING_BACKEND" not in given:
        said.append(
            "TRAIN_RL_LOCAL=false sends nothing anywhere: training is done on this machine unless "
            "TRAINING_BACKEND=wandb asks for the hosted service."
        )
    return said


def _as(given: dict[str, Given], name: str) -> Given:
    return Given(given[name].value, f"{given[name].origin}, {name}")


def _is_local(given: Given) -> bool:
    value = given.value.strip().lower()
    if value not in _YES | _NO:
        raise SettingsError("TRAIN_RL_LOCAL is neither true nor false. TRAINING_BACKEND says where updates are made.")
    return value in _YES
