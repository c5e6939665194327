"""What is wrong in JSON of the contract, in words that name the place; imports little, for the gateway uses it too."""

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from babylon_rl.recording.contract import Call

MOST_PROBLEMS = 20  # told of one line
SHOWN = 60  # letters of a value that is told

UNSTORABLE, STORABLE = "NUL or half of a surrogate pair", "letters that PostgreSQL can hold"


class Problem(NamedTuple):
    """One thing that is wrong. `path`: place in the JSON, as steps[3].llmCalls[0].response."""

    path: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.path or 'the line'}: found {self.found}, wanted {self.wanted}"


def problems_of(value: Any, validator: Any, root: str, error: Exception) -> list[Problem]:
    """Every place where the value is not as the schema wants it; what msgspec said where the schema finds nothing."""
    try:
        errors = list(itertools.islice(validator.iter_errors(value), MOST_PROBLEMS))
    except RecursionError:
        return [Problem(root, "lists in lists without end", "a recording")]
    found = [problem for one in errors for problem in _told(one, root)]
    if found:
        return sorted(set(found))
    said, _, place = str(error).partition(" - at ")
    return [Problem((root + place.strip("`").removeprefix("$")).removeprefix("."), "a value", said)]


def _told(error: Any, root: str) -> Iterator[Problem]:
    path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    # Of several kinds that a value may have: what is wrong with it as the kind that it is.
    inside = [one for one in error.context or () if one.validator != "type" or one.path]
    if inside:
        for one in inside:
            yield from _told(one, root)
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                wanted = error.schema.get("properties", {}).get(name, {})
                yield Problem(f"{path}.{name}".lstrip("."), "nothing", _wanted(wanted))
    else:
        yield Problem(path.lstrip("."), shown(error.instance), _wanted({error.validator: error.validator_value}))


_KINDS = {"object": "an object", "array": "a list", "string": "a text", "number": "a number", "null": "null",
          "integer": "a whole number", "boolean": "true or false"}  # fmt: skip


def _wanted(wanted: dict[str, Any]) -> str:
    """A part of the schema in words."""
    match wanted:
        case {"enum": [one]} | {"const": one}:
            return json.dumps(one)
        case {"enum": several}:
            return f"one of {json.dumps(several)}"
        case {"anyOf": kinds}:
            return " or ".join(dict.fromkeys(_wanted(kind) for kind in kinds))
        case {"$ref": reference}:
            return f"an object ({reference.rpartition('/')[2]})"
        case {"type": kind}:
            return _KINDS.get(kind, str(kind))
        case {"minLength": 1}:
            return "a text that is not empty"
        case {"minItems": 1}:
            return "a list that is not empty"
        case {"maxLength": most}:
            return f"at most {most} letters"
        case {"minimum": least}:
            return f"at least {least}"
        case {"maximum": most}:
            return f"at most {most}"
    return "another value"


def shown(value: Any) -> str:
    """A value as it is told: its kind, and the beginning of what it is."""
    kind = {bool: "", int: "the number ", float: "the number ", str: "the text ", list: "a list ", dict: "an object "}
    text = json.dumps(value, ensure_ascii=True)
    return kind.get(type(value), "") + (text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def moment(value: datetime | int | float) -> datetime:
    """A time of the contract as an aware datetime; ValueError where there is no such time."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(str(error)) from None


def storable(text: str) -> bool:
    if "\x00" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def call_problems(call: Call, path: str) -> Iterator[Problem]:
    """What is wrong with the tokens of a call that the types do not say. `path`: the call's place."""
    if call.tokens is None:
        return
    kept = [call.model, call.tokens.checkpoint or "", call.tokens.finish_reason, *(call.tokens.choices or ())]
    if not all(map(storable, kept)):
        yield Problem(f"{path}.tokens", UNSTORABLE, STORABLE)
    count = len(call.tokens.token_ids)
    if len(call.tokens.logprobs) != count:
        yield Problem(f"{path}.tokens.logprobs", f"{len(call.tokens.logprobs)} numbers", f"{count}, one a token")
    if call.temperature is None:
        yield Problem(f"{path}.temperature", "null", "a number where tokens are recorded")
