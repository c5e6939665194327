"""Where settings come from: the environment, then the file that is named there. An unknown name is refused in both.

Names are read in capitals, as environments on some systems give them. A value that is empty is the default, so that an
empty variable takes back what a file says. A file is read only where it is named, whatever is called .env.
"""

import difflib
import logging
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dotenv.parser import parse_stream

from babylon_rl.errors import SettingsError
from babylon_rl.settings.names import INTERNAL, OLD_NAMES, PREFIX, SETTINGS_FILE

log = logging.getLogger("babylon_rl.settings")

ENVIRONMENT = "environment"


class Given(NamedTuple):
    """A variable's value as a text, and where it was found: `environment` or the file's path."""

    value: str
    origin: str


def given_variables(
    environ: Mapping[str, str], variables: Collection[str], secrets: Collection[str]
) -> dict[str, Given]:
    """Variables with a value, of the fields' `variables` and the old names. SettingsError for an unknown name."""
    known = {*variables, *OLD_NAMES}
    found: dict[str, Given] = {}
    if path := environ.get(SETTINGS_FILE):
        found = {name: Given(value, path) for name, value in _read(Path(path), known).items()}
        _warn_of_readers(Path(path), [name for name, one in found.items() if one.value and name in secrets])
    # In sorted order capitals come first: of two spellings of a name the one in capitals counts.
    ours = {name.upper(): value for name, value in sorted(environ.items(), reverse=True)}
    unknown = [n for n in ours if n.startswith(PREFIX) and n not in known | INTERNAL | {SETTINGS_FILE}]
    if unknown:
        raise SettingsError(f"The environment has {_told(unknown, known)}. env.template lists the settings.")
    found |= {name: Given(value, ENVIRONMENT) for name, value in ours.items() if name in known}
    return {name: one for name, one in found.items() if one.value}


def _read(path: Path, known: Collection[str]) -> dict[str, str]:
    """Variables of a file in the form of env.template. SettingsError for what cannot be read, is unknown, or twice."""
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SettingsError(f"The settings file {path} cannot be read: {why}.") from None
    values: dict[str, str] = {}
    for binding in bindings:
        # The line itself is not told: it may hold a secret.
        text = binding.original.string
        blank = text[: len(text) - len(text.lstrip())].count("\n")
        where = f"Line {binding.original.line + blank} of the settings file {path}"
        if binding.error or (binding.key is not None and binding.value is None):
            raise SettingsError(f"{where} is not NAME=value.")
        if binding.key is None:
            continue
        if binding.key not in known:
            raise SettingsError(f"{where} has {_told([binding.key], known)}. env.template lists the settings.")
        if binding.key in values:
            raise SettingsError(f"{where} sets {binding.key} a second time.")
        values[binding.key] = binding.value or ""
    return values


def _told(unknown: Iterable[str], known: Collection[str]) -> str:
    """The unknown names, each with the known one that it is most like."""
    said = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, sorted(known), 1, 0.6)
        said.append(f"an unknown setting {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    return "; ".join(said)


def _warn_of_readers(path: Path, secrets: list[str]) -> None:
    if secrets and os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s holds %s and others can read it: chmod 600 %s", path, ", ".join(secrets), path)
