"""Fields of COPY: a value is encoded alike whatever stands beside it, and what does not fit is named."""

import math

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import JSONB

from babylon_rl.database.values import UnfitValue
from babylon_rl.database.wire import NULL, fields

texts = st.text(st.characters(codec=None, categories=None), max_size=12)
reals = st.floats(allow_nan=False, allow_infinity=False)
documents = st.dictionaries(texts, reals | texts | st.none() | st.lists(st.integers(), max_size=2), max_size=3)
nothing = st.sampled_from([None, np.nan, pd.NaT, pd.NA])
COLUMNS = {
    "text": (sa.Text, texts),
    "real": (sa.Double, st.floats(allow_nan=False) | st.integers(-9, 9) | st.builds(np.float64, reals)),
    "whole": (sa.Integer, st.integers(-9, 9) | st.builds(np.int64, st.integers(-9, 9)) | st.just(3.0)),
    "big": (sa.BigInteger, st.integers(-(2**60), 2**60)),
    "flag": (sa.Boolean, st.booleans() | st.builds(np.bool_, st.booleans())),
    "json": (JSONB(none_as_null=True), documents | st.lists(reals, max_size=3) | st.builds(np.array, st.just([1, 2]))),
    "money": (sa.Numeric(18, 6), st.decimals(-9, 9, places=3)),
}
table = sa.Table("things", sa.MetaData(), *(sa.Column(name, kind) for name, (kind, _) in COLUMNS.items()))


@given(st.data(), st.sampled_from(sorted(COLUMNS)))
def test_a_value_is_encoded_alike_whatever_stands_beside_it(data, name):
    column, values = table.c[name], data.draw(st.lists(COLUMNS[name][1] | nothing, max_size=8))
    alone = [fields(column, [value])[0] for value in values]
    assert fields(column, values) == alone
    assert fields(column, values * 5) == alone * 5
    assert all((field == NULL) == (value is None or value is pd.NA or value is pd.NaT or value is np.nan)
               for field, value in zip(alone, values, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("json", {"a": 1.0}, {"a": [np.float64("inf")]}),
        ("json", {"a": None}, {"a": math.nan}),
        ("whole", 1, 2**31),
        ("whole", 1, True),
        ("big", 1, 2**63),
        ("text", "a", b"a"),
        ("flag", True, "yes"),
        ("real", 1.0, "much"),
        ("json", {}, {"a": object()}),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_column_and_row(name, good, bad):
    with pytest.raises(UnfitValue, match=name) as refused:
        fields(table.c[name], [good, None, bad, good])
    assert refused.value.row == 2


def test_minus_zero_and_infinities_are_kept_apart():
    assert len(set(fields(table.c.real, [0.0, -0.0, math.inf, -math.inf]))) == 4
    assert len(set(fields(table.c.json, [{"a": 0.0}, {"a": -0.0}]))) == 2
