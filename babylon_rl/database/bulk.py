"""Bulk transfer: rows and DataFrames in by binary COPY, DataFrames and streams of rows out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect

from babylon_rl.database.values import encode_json
from babylon_rl.database.wire import HEADER, TRAILER, pieces, row_head, whole_rows
from babylon_rl.errors import DatabaseError

__all__ = ["copy_frame", "copy_rows", "encode_json", "read_frame", "stream_rows"]

SLICE = 2_000
DIALECT = psycopg_dialect()
_cursor_numbers = itertools.count()


def copy_rows(
    connection: psycopg.Connection,
    table: sa.Table,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    batch: int = SLICE,
) -> int:
    """COPY `rows`, values in the order of `columns`, into `table`; the number written. `batch` are in memory at a time.

    JSONB takes dicts, lists and JSON texts, arrays take lists and numpy arrays; missing values become NULL.
    DatabaseError names the column that a value does not fit. The transaction is the caller's.
    """
    chosen = _columns(table, columns)
    remaining = iter(rows)
    parts = iter(lambda: list(itertools.islice(remaining, batch)), [])
    return _copy_slices(connection, table, chosen, (list(zip(*part, strict=True)) for part in parts))


def copy_frame(connection: psycopg.Connection, table: sa.Table, frame: pd.DataFrame) -> int:
    """COPY a DataFrame whose columns are columns of `table`; the number of rows written. As `copy_rows` otherwise."""
    chosen = _columns(table, [str(name) for name in frame.columns])
    slices = (
        [part.iloc[:, i].tolist() for i in range(len(chosen))]
        for part in (frame.iloc[start : start + SLICE] for start in range(0, len(frame), SLICE))
    )
    return _copy_slices(connection, table, chosen, slices)


def copy_encoded(
    connection: psycopg.Connection, table: sa.Table, columns: Sequence[sa.Column], parts: Iterable[bytes]
) -> int:
    """COPY rows that stand in the wire's format, their heads included; the number that PostgreSQL counted."""
    target = sql.Identifier(*([table.schema] if table.schema else []), table.name)
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, names)) as copy:
            copy.write(HEADER)
            for part in parts:
                copy.write(part)
            copy.write(TRAILER)
        return cursor.rowcount


def _copy_slices(
    connection: psycopg.Connection, table: sa.Table, columns: list[sa.Column], slices: Iterable[Sequence[Sequence[Any]]]
) -> int:
    head = row_head(len(columns))
    encoded = (
        whole_rows(piece for c, v in zip(columns, part, strict=True) for piece in pieces(c, v)) for part in slices
    )
    return copy_encoded(connection, table, columns, (head + head.join(rows) for rows in encoded))


def read_frame(connection: psycopg.Connection, statement: sa.Executable) -> pd.DataFrame:
    """Result of a SELECT as a DataFrame.

    jsonb and arrays are Python objects, text and booleans are objects with None for NULL, integers int64 (Int64 with
    NULL), numeric and double float64 with NaN, timestamptz datetime64[us, UTC], timestamp datetime64[us].
    """
    query, parameters = compiled(statement)
    with connection.cursor(binary=True) as cursor:
        cursor.execute(query, parameters)
        rows = cursor.fetchall()
        described = [(column.name, column.type_code) for column in cursor.description or ()]
    by_column = list(zip(*rows, strict=True)) if rows else [()] * len(described)
    series = [_series(values, oid) for values, (_, oid) in zip(by_column, described, strict=True)]
    frame = pd.DataFrame(dict(enumerate(series)), index=pd.RangeIndex(len(rows)))
    frame.columns = pd.Index([name for name, _ in described], dtype=object)
    return frame


def stream_rows(
    connection: psycopg.Connection, statement: sa.Executable, batch: int = 500
) -> Iterator[tuple[Any, ...]]:
    """Rows of a SELECT through a server-side cursor: at most `batch` of them are in memory here."""
    query, parameters = compiled(statement)
    name = f"stream_{next(_cursor_numbers)}"
    with connection.cursor(name=name, binary=True) as cursor:
        cursor.itersize = batch
        cursor.execute(query, parameters)
        yield from cursor


def compiled(statement: sa.Executable) -> tuple[str, dict[str, Any]]:
    """A SQLAlchemy statement as psycopg executes it: text and parameters."""
    form = statement.compile(dialect=DIALECT, compile_kwargs={"render_postcompile": True})
    return str(form), dict(form.params)


def _columns(table: sa.Table, names: Sequence[str]) -> list[sa.Column]:
    unknown = [name for name in names if name not in table.columns]
    if unknown:
        raise DatabaseError(
            f"{table.name} has no column {', '.join(unknown)}; it has {', '.join(table.columns.keys())}."
        )
    return [table.columns[name] for name in names]


INTEGERS = {psycopg.adapters.types[name].oid for name in ("int2", "int4", "int8")}
REALS = {psycopg.adapters.types[name].oid for name in ("float4", "float8", "numeric")}
ZONED = psycopg.adapters.types["timestamptz"].oid
UNZONED = psycopg.adapters.types["timestamp"].oid


def _series(values: Sequence[Any], oid: int) -> pd.Series:
    if oid in INTEGERS:
        return pd.Series(values, dtype="Int64" if None in values else "int64")
    if oid in REALS:
        return pd.Series([None if value is None else float(value) for value in values], dtype="float64")
    if oid == ZONED:
        return pd.Series(values, dtype="datetime64[us, UTC]")
    if oid == UNZONED:
        return pd.Series(values, dtype="datetime64[us]")
    if oid == psycopg.adapters.types["bool"].oid and None not in values:
        return pd.Series(values, dtype="bool")
    column = pd.Series([None] * len(values), dtype=object)
    column[:] = pd.Series(list(values), dtype=object)
    return column
