"""`env.template`, generated from the settings: each with its description and its default, all commented out.

A copy is a settings file in which nothing is set, so defaults keep coming from the code until a line is uncommented.
"""

import textwrap
from pathlib import Path

from pydantic.fields import FieldInfo

from babylon_rl.settings import SECTIONS, VARIABLES

HEAD = """\
# Settings of babylon_rl. Every line is optional: uncomment what you change, in a copy that `--settings FILE` or
# BABYLON_RL_SETTINGS_FILE names, or export it. The environment wins over the file, and an empty value is the default.
# Unknown names are refused. Files named .env are not read. `babylon-rl settings` shows what counts.
#
# This file is generated: `make env-template`.
"""
OLD = """\
# --- Old names

# Variables of the first system that are read beside those above:
# PROJECT_NAME is WANDB_PROJECT where that is not set.
# OPENAI_API_KEY is JUDGE_API_KEY where JUDGE_MODEL is set and neither JUDGE_API_KEY nor JUDGE_BASE_URL is.
# TRAIN_RL_LOCAL=true is TRAINING_BACKEND=torch.
# BASE_MODEL=owner/name, a name on a hub, is BABYLON_RL_WANDB_BASE_MODEL where that is not set.
"""
WIDTH = 118


def template() -> str:
    """The text of env.template."""
    parts = [HEAD]
    for section in SECTIONS:
        parts.append(f"# --- {(section.__doc__ or '').rstrip('.')}\n")
        parts += [_lines(VARIABLES[name], field) for name, field in section.model_fields.items()]
    return "\n".join([*parts, OLD])


def _lines(variable: str, field: FieldInfo) -> str:
    said = field.description or ""
    comment = textwrap.fill(f"{said}.", WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{comment}\n#{variable}={_default(field)}\n"


def _default(field: FieldInfo) -> str:
    """The default as it is written, or an example; nothing for a folder, which is another on each machine."""
    if field.examples:
        return str(field.examples[0])
    return "" if field.default is None or isinstance(field.default, Path) else str(field.default)
