"""Rows in the format of PostgreSQL's binary COPY: each value is a field, which is its length and its bytes.

A whole column is encoded at a time. Values of the kinds that are usual for it go the quick way; where one is of another
kind, the column goes through `values.converter`, which knows them all, cleans them, and names what does not fit.
"""

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from babylon_rl.database.values import UnfitValue, converter, many_json_bytes

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # signature, no flags, no extension
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
JSONB_VERSION = 1

Field = Callable[[Any], bytes]
Pieces = list[list[bytes]]

_length = struct.Struct("!i").pack
_jsonb_head = struct.Struct("!ib").pack
_int2, _int4, _int8 = (struct.Struct(code).pack for code in ("!ih", "!ii", "!iq"))
_float8 = struct.Struct("!id").pack
TRUE, FALSE = b"\x00\x00\x00\x01\x01", b"\x00\x00\x00\x01\x00"
NOTHING = type(None)


def fields(column: sa.Column, values: Sequence[Any]) -> list[bytes]:
    """A field for each value of `column`. UnfitValue names the column and the row of one that it cannot hold."""
    return whole_rows(pieces(column, values))


def pieces(column: sa.Column, values: Sequence[Any]) -> Pieces:
    """The fields in one or more pieces, a list of each: whole rows join them, and no large value is copied before."""
    quick = _quick_way(column.type, set(map(type, values)))
    if quick is not None:
        try:
            return quick(values)
        except (TypeError, ValueError, struct.error):
            pass  # told below, with its column and its row
    convert, field, encoded = converter(column), _field(column.type), []
    for row, value in enumerate(values):
        try:
            value = convert(value)
            encoded.append(NULL if value is None else field(value))
        except UnfitValue as error:
            raise UnfitValue(str(error), row) from error
        except (ValueError, struct.error, psycopg.DataError) as error:
            raise UnfitValue(f"{column.table.name}.{column.name} ({column.type}): {error}", row) from error
    return [encoded]


def all_null(column: Pieces) -> bool:
    """Whether the column holds nothing."""
    return column[0].count(NULL) == len(column[0])


def row_head(columns: int) -> bytes:
    """What stands before the fields of a row."""
    return struct.pack("!h", columns)


def whole_rows(columns: Iterable[Iterable[bytes]]) -> list[bytes]:
    """The pieces of each row in one, without the row's head."""
    return list(map(b"".join, zip(*columns, strict=True)))


# --- the quick way ---------------------------------------------------------------------------------


def _quick_way(kind: sa.types.TypeEngine, found: set[type]) -> Callable[[Sequence[Any]], Pieces] | None:
    """What encodes a column of this type whose values are of the kinds found; ValueError where one is not clean."""
    if found <= {NOTHING}:
        return lambda values: [[NULL] * len(values)]
    ways = ((JSONB, {dict, list}, _documents), (sa.String, {str}, _texts), (sa.Float, {float}, _reals))
    for base, usual, way in ways:
        if isinstance(kind, base):
            if found <= usual:
                return way
            return functools.partial(_beside_nothing, way) if found <= {NOTHING, *usual} else None
    if isinstance(kind, sa.Boolean | sa.Integer) and found <= {bool if isinstance(kind, sa.Boolean) else int, NOTHING}:
        field = _field(kind)
        return lambda values: [[NULL if value is None else field(value) for value in values]]
    return None


def _beside_nothing(way: Callable[[Sequence[Any]], Pieces], values: Sequence[Any]) -> Pieces:
    known = [iter(piece) for piece in way([value for value in values if value is not None])]
    fillers = (NULL, *[b""] * (len(known) - 1))
    return [
        [filler if value is None else next(piece) for value in values]
        for filler, piece in zip(fillers, known, strict=True)
    ]


def _texts(values: Sequence[str]) -> Pieces:
    distinct = set(values)
    if len(distinct) * 4 < len(values):
        known = dict(zip(distinct, whole_rows(_texts(list(distinct))), strict=True))
        return [list(map(known.__getitem__, values))]
    if "\x00" in "".join(values):
        raise ValueError("NUL")
    encoded = list(map(str.encode, values))  # half a surrogate pair is a ValueError
    return [list(map(_length, map(len, encoded))), encoded]


def _documents(values: Sequence[Any]) -> Pieces:
    encoded = many_json_bytes(values)
    return [[_jsonb_head(len(document) + 1, JSONB_VERSION) for document in encoded], encoded]


def _reals(values: Sequence[float]) -> Pieces:
    return [[NULL if value != value else _float8(8, value) for value in values]]


# --- one value -------------------------------------------------------------------------------------


def _field(kind: sa.types.TypeEngine) -> Field:
    """Field of a value that went through the type's converter."""
    if isinstance(kind, JSONB):
        return lambda value: _jsonb_head(len(value) + 1, JSONB_VERSION) + value
    if isinstance(kind, sa.String):
        return lambda value: _length(len(encoded := value.encode())) + encoded
    if isinstance(kind, sa.Boolean):
        return lambda value: TRUE if value else FALSE
    if isinstance(kind, sa.BigInteger):
        return lambda value: _int8(8, value)
    if isinstance(kind, sa.SmallInteger):
        return lambda value: _int2(2, value)
    if isinstance(kind, sa.Integer):
        return lambda value: _int4(4, value)
    if isinstance(kind, sa.Float):
        return lambda value: _float8(8, value)
    return _dumped(_wire_type(kind))


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
    """PostgreSQL's name of a type that is not encoded here."""
    if isinstance(kind, ARRAY):
        return _wire_type(kind.item_type) + "[]"
    names: tuple[tuple[type, str], ...] = (
        (sa.String, "text"),
        (sa.Boolean, "bool"),
        (sa.BigInteger, "int8"),
        (sa.SmallInteger, "int2"),
        (sa.Integer, "int4"),
        (sa.Float, "float8"),
        (sa.Numeric, "numeric"),
    )
    if isinstance(kind, sa.DateTime):
        return "timestamptz" if kind.timezone else "timestamp"
    return next(name for base, name in names if isinstance(kind, base))
