"""COPY in and reads out: what is written comes back, and what cannot be held is refused by name."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from babylon_rl.database.bulk import copy_frame, copy_rows, encode_json, read_frame, stream_rows
from babylon_rl.database.connect import Database
from babylon_rl.database.values import clean_text
from babylon_rl.errors import DatabaseError

things = sa.Table(
    "Odd things",
    sa.MetaData(),
    sa.Column("text", sa.Text),
    sa.Column("short", sa.String(50)),
    sa.Column("json", JSONB(none_as_null=True)),
    sa.Column("whole", sa.Integer),
    sa.Column("big", sa.BigInteger),
    sa.Column("real", sa.Double),
    sa.Column("money", sa.Numeric(18, 6)),
    sa.Column("flag", sa.Boolean),
    sa.Column("zoned", sa.DateTime(timezone=True)),
    sa.Column("unzoned", sa.DateTime),
    sa.Column("ints", ARRAY(sa.Integer)),
    sa.Column("reals", ARRAY(sa.Double)),
    sa.Column("texts", ARRAY(sa.Text)),
)


@pytest.fixture
def connection(database: Database):
    with database.connect() as connection:
        things.metadata.create_all(database.engine())
        yield connection


def first(connection: psycopg.Connection, column: str):
    return read_frame(connection, sa.select(things.c[column]))[column].iloc[0]


def test_every_type_comes_back_as_it_was_written(connection):
    moment = datetime(2025, 1, 15, 10, 30, 5, 123456, tzinfo=UTC)
    row = ("a", "b", {"k": [1, 2.5, None, "x"]}, 1, 2**60, 0.1, Decimal("1.500000"), True, moment,
           moment.replace(tzinfo=None), [1, 2], [0.5, -1.0], ["p", "q"])  # fmt: skip
    assert copy_rows(connection, things, things.columns.keys(), [row]) == 1
    (found,) = stream_rows(connection, sa.select(things))
    assert found == row


def test_missing_values_of_a_frame_are_null_and_integers_stay_integers(connection):
    frame = pd.DataFrame(
        {
            "text": ["a", None, np.nan],
            "whole": [1, None, 3],
            "real": [0.5, np.nan, None],
            "money": [Decimal("1.5"), None, np.nan],
            "flag": [True, None, False],
            "zoned": pd.to_datetime(["2025-01-15T10:00Z", None, None]),
            "json": [{"a": 1}, None, np.nan],
            "ints": [[1], None, np.array([2, 3])],
        }
    )
    assert frame["whole"].dtype == "float64" and frame["text"].dtype == "str"
    assert copy_frame(connection, things, frame) == 3
    rows = list(stream_rows(connection, sa.select(*(things.c[name] for name in frame.columns))))
    assert rows[0][:3] == ("a", 1, 0.5) and isinstance(rows[0][1], int)
    assert rows[1] == (None,) * 8
    assert rows[2] == (None, 3, None, None, False, None, None, [2, 3])


def test_a_frame_reads_back_with_the_documented_types(connection):
    copy_rows(
        connection,
        things,
        ["text", "whole", "real", "zoned", "json"],
        [("a", 1, 1.0, datetime(2025, 1, 1, tzinfo=UTC), {"b": 1}), (None,) * 5],
    )
    frame = read_frame(
        connection, sa.select(things.c.text, things.c.whole, things.c.real, things.c.zoned, things.c.json)
    )
    assert [str(dtype) for dtype in frame.dtypes] == ["object", "Int64", "float64", "datetime64[us, UTC]", "object"]
    assert frame["text"].tolist() == ["a", None] and frame["json"].tolist() == [{"b": 1}, None]
    empty = read_frame(connection, sa.select(things.c.text, things.c.whole).where(sa.false()))
    assert list(empty.columns) == ["text", "whole"] and empty.empty


def test_json_text_is_stored_as_the_json_that_it_is(connection):
    copy_rows(connection, things, ["json"], [(json.dumps({"a": 1}),)])
    assert connection.execute('SELECT jsonb_typeof(json) FROM "Odd things"').fetchone() == ("object",)


@pytest.mark.parametrize("value", [{"a": math.nan}, [math.inf], {"a": {"b": np.float64("nan")}}])
def test_json_with_a_number_that_json_lacks_is_refused_by_column(connection, value):
    with pytest.raises(DatabaseError, match="json"):
        copy_rows(connection, things, ["json"], [(value,)])


@pytest.mark.parametrize(
    ("column", "value"),
    [("whole", 1.5), ("whole", "x"), ("text", 7), ("flag", 1), ("zoned", datetime(2025, 1, 1)), ("ints", "12")],
)
def test_a_value_that_does_not_fit_is_refused_by_column(connection, column, value):
    with pytest.raises(DatabaseError, match=column):
        copy_rows(connection, things, [column], [(value,)])


def test_an_unknown_column_is_refused(connection):
    with pytest.raises(DatabaseError, match="nonsense"):
        copy_rows(connection, things, ["nonsense"], [])


def test_a_zoned_time_lands_in_an_unzoned_column_as_utc(connection):
    local = datetime(2025, 1, 15, 12, tzinfo=timezone(timedelta(hours=2)))
    copy_rows(connection, things, ["unzoned"], [(local,)])
    assert first(connection, "unzoned") == pd.Timestamp("2025-01-15T10:00")


def test_a_stream_holds_a_batch_at_a_time_and_two_may_run_at_once(connection):
    copy_rows(connection, things, ["whole"], [(i,) for i in range(100)])
    statement = sa.select(things.c.whole).order_by(things.c.whole)
    one, two = stream_rows(connection, statement, batch=7), stream_rows(connection, statement, batch=9)
    assert [a for (a,), _ in zip(one, two, strict=True)] == list(range(100))


texts = st.text(st.characters(codec=None, categories=None), max_size=40)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def cleaned(value):
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [cleaned(v) for v in value]
    return {clean_text(k): cleaned(v) for k, v in value.items()} if isinstance(value, dict) else value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, document=st.lists(documents, max_size=3))
def test_odd_text_survives_in_text_and_json_but_for_nul_and_lone_surrogates(connection, text, document):
    connection.execute('DELETE FROM "Odd things"')
    rows = [(text, document, [text]), (text, json.dumps(document), [text])]
    copy_rows(connection, things, ["text", "json", "texts"], rows)
    for found in stream_rows(connection, sa.select(things.c.text, things.c.json, things.c.texts)):
        assert found == (clean_text(text), cleaned(document), [clean_text(text)])


def test_an_escaped_backslash_before_u0000_is_no_nul():
    assert json.loads(encode_json(json.dumps({"a": "\\u0000"}))) == {"a": "\\u0000"}
