"""Rows in the format of PostgreSQL's binary COPY: each value is a field, which is its length and its bytes.

A whole column is encoded at a time. Values of the kinds that are usual for it go the quick way; where one is of another
kind, the column goes through `values.converter`, which knows them all, cleans them, and names what does not fit.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from babylon_rl.database.values import UnfitValue, converter, json_bytes

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # signature, no flags, no extension
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

Field = Callable[[Any], bytes]

_length = struct.Struct("!i").pack
_int2, _int4, _int8 = (struct.Struct(code).pack for code in ("!ih", "!ii", "!iq"))
_float8 = struct.Struct("!id").pack
TRUE, FALSE = b"\x00\x00\x00\x01\x01", b"\x00\x00\x00\x01\x00"
NOTHING = type(None)


def fields(column: sa.Column, values: Sequence[Any]) -> list[bytes]:
    """A field for each value of `column`. UnfitValue names the column and the row of one that it cannot hold."""
    usual, field = _usual(column.type)
    kinds = set(map(type, values))
    if kinds <= usual:
        try:
            if NOTHING not in kinds:
                return list(map(field, values))
            return [NULL if value is None else field(value) for value in values]
        except (TypeError, ValueError, struct.error):
            pass  # told below, with its column and its row
    convert, encoded = converter(column), []
    for row, value in enumerate(values):
        try:
            value = convert(value)
            encoded.append(NULL if value is None else field(value))
        except UnfitValue as error:
            raise UnfitValue(str(error), row) from error
        except (ValueError, struct.error, psycopg.DataError) as error:
            raise UnfitValue(f"{column.table.name}.{column.name} ({column.type}): {error}", row) from error
    return encoded


def row_head(columns: int) -> bytes:
    """What stands before the fields of a row."""
    return struct.pack("!h", columns)


def whole_rows(columns: Sequence[Iterable[bytes]]) -> list[bytes]:
    """The fields of each row in one piece, without the row's head."""
    return list(map(b"".join, zip(*columns, strict=True)))


def _usual(kind: sa.types.TypeEngine) -> tuple[set[type], Field]:
    """The kinds of values that the quick way takes, and a value's field; values are clean then."""
    if isinstance(kind, JSONB):
        return {dict, list, NOTHING}, _json
    if isinstance(kind, sa.String):
        return {str, NOTHING}, _text
    if isinstance(kind, sa.Boolean):
        return {bool, NOTHING}, lambda value: TRUE if value else FALSE
    if isinstance(kind, sa.BigInteger):
        return {int, NOTHING}, lambda value: _int8(8, value)
    if isinstance(kind, sa.SmallInteger):
        return {int, NOTHING}, lambda value: _int2(2, value)
    if isinstance(kind, sa.Integer):
        return {int, NOTHING}, lambda value: _int4(4, value)
    if isinstance(kind, sa.Float):
        return {float, NOTHING}, _real
    return set(), _dumped(_wire_type(kind))


def _text(value: str) -> bytes:
    encoded = value.encode()  # a lone surrogate is a ValueError
    if b"\x00" in encoded:
        raise ValueError("NUL")
    return _length(len(encoded)) + encoded


def _json(value: Any) -> bytes:
    encoded = value if isinstance(value, bytes) else json_bytes(value)
    return _length(len(encoded) + 1) + b"\x01" + encoded  # the version of jsonb's format


def _real(value: float) -> bytes:
    return NULL if value != value else _float8(8, value)


def _dumped(name: str) -> Field:
    """Fields of the other types, as psycopg writes them."""
    found = psycopg.adapters.types[name.removesuffix("[]")]
    transformer = Transformer()
    transformer.set_dumper_types([found.array_oid if name.endswith("[]") else found.oid], Format.BINARY)

    def field(value: Any) -> bytes:
        (encoded,) = transformer.dump_sequence([value], [PyFormat.BINARY])
        assert encoded is not None
        return _length(len(encoded)) + bytes(encoded)

    return field


def _wire_type(kind: sa.types.TypeEngine) -> str:
    """PostgreSQL's name of the type."""
    suffix = "[]" if isinstance(kind, ARRAY) else ""
    element = kind.item_type if isinstance(kind, ARRAY) else kind
    names: tuple[tuple[type, str], ...] = (
        (sa.String, "text"),
        (sa.Boolean, "bool"),
        (sa.BigInteger, "int8"),
        (sa.SmallInteger, "int2"),
        (sa.Integer, "int4"),
        (sa.Float, "float8"),
        (sa.Numeric, "numeric"),
    )
    if isinstance(element, sa.DateTime):
        return ("timestamptz" if element.timezone else "timestamp") + suffix
    return next(name for base, name in names if isinstance(element, base)) + suffix
