"""Python values as COPY takes them, by the type of their column.

What is missing (None, NaN, NaT, NA) is NULL; NUL and lone surrogates, which PostgreSQL refuses and language models
write, are taken out of text; a value that does not fit its column is an error that names the column.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from babylon_rl.errors import DatabaseError

Convert = Callable[[Any], Any]


class UnfitValue(DatabaseError):
    """A value that its column cannot hold; `row` is its place among the values that were given."""

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.row = row


def clean_text(text: str) -> str:
    """`text` without NUL, each lone surrogate replaced by U+FFFD."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def encode_json(value: Any) -> str:
    """JSON text that jsonb takes, keys sorted. A text is taken for JSON already, so nothing is encoded twice.

    ValueError for NaN and infinity, which JSON lacks.
    """
    return json_bytes(value).decode()


def json_bytes(value: Any) -> bytes:
    """`encode_json` in UTF-8."""
    if isinstance(value, str):
        value = _parsed(value)
    try:
        encoded = _encode(value)
    except (TypeError, UnicodeEncodeError):
        return _encode(_clean(value))
    # What is doubtful shows in the text: NUL as an escape, and null, which the encoder also makes of NaN.
    if b"null" in encoded or b"\\u0000" in encoded:
        return _encode(_clean(value))
    return encoded


def many_json_bytes(values: Sequence[Any]) -> list[bytes]:
    """`json_bytes` of each of the values, none of which is a text."""
    try:
        encoded = list(map(_encode, values))
    except (TypeError, UnicodeEncodeError):
        return list(map(json_bytes, values))
    together = b"".join(encoded)
    return list(map(json_bytes, values)) if b"null" in together or b"\\u0000" in together else encoded


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Python's parser also takes half a surrogate pair.
        return json.loads(text)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float | int | str):  # of a subclass
        return next(kind(value) for kind in (float, int, str) if isinstance(value, kind))
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = msgspec.json.Encoder(order="deterministic", enc_hook=_plain).encode


def _clean(value: Any) -> Any:
    """The value with clean texts, keys included. ValueError for a number that JSON lacks."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {_key(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return _clean(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number that JSON has")
    return value


def _key(key: Any) -> str:
    """A key as Python's own JSON writes it."""
    return clean_text(key) if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))


def is_missing(value: Any) -> bool:
    """Whether a scalar stands for nothing."""
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def converter(column: sa.Column) -> Convert:
    """Function that turns a value for `column` into what PostgreSQL can hold, or raises UnfitValue."""
    convert = _of_type(column.type)

    def checked(value: Any) -> Any:
        if value is None:
            return None
        try:
            return None if is_missing(value) else convert(value)
        except (TypeError, ValueError, ArithmeticError) as error:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise UnfitValue(
                f"{column.table.name}.{column.name} ({column.type}) cannot hold {shown}: {error}"
            ) from error

    return checked


def _of_type(kind: sa.types.TypeEngine) -> Convert:
    # In order: JSONB before its bases, Integer before Numeric.
    table: tuple[tuple[type, Convert], ...] = (
        (JSONB, json_bytes),
        (sa.Text, _text),
        (sa.String, _text),
        (sa.Boolean, _boolean),
        (sa.Integer, _integer),
        (sa.Float, float),
        (sa.Numeric, _decimal),
    )
    if isinstance(kind, ARRAY):
        element = _of_type(kind.item_type)
        return lambda values: [None if is_missing(v) else element(v) for v in _listed(values)]
    if isinstance(kind, sa.DateTime):
        return _aware if kind.timezone else _naive
    for base, convert in table:
        if isinstance(kind, base):
            return convert
    raise DatabaseError(f"COPY knows no column of type {kind}; add it to database/values.py.")


def _listed(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        return values.tolist()
    if isinstance(values, str | bytes | dict):
        raise TypeError("not a list")
    return list(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return clean_text(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError("not true or false")
    return bool(value)


def _integer(value: Any) -> int:
    # pandas makes floats of integers beside a missing one.
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("not a whole number")
    return int(value)


def _decimal(value: Any) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(str(value))


def _moment(value: Any) -> datetime:
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime(warn=False)
    if not isinstance(value, datetime):
        raise TypeError("not a time")
    return value


def _aware(value: Any) -> datetime:
    moment = _moment(value)
    if moment.tzinfo is None:
        raise ValueError("it has no time zone")
    return moment.astimezone(UTC)


def _naive(value: Any) -> datetime:
    """The application's times: UTC without a zone."""
    moment = _moment(value)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
