"""Window ids: half-open UTC hours that round-trip, and the texts that are none."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import WindowIdError
from babylon_rl.windows import (
    WINDOW_LENGTH,
    format_window_id,
    neighbours,
    parse_window_id,
    shift_window,
    window_of,
    window_range,
)

moments = st.datetimes(datetime(1000, 1, 2), datetime(9998, 12, 30), timezones=st.just(UTC))


@given(moments)
def test_the_window_of_a_moment_holds_it_and_its_id_round_trips(moment):
    window_id = window_of(moment)
    start = parse_window_id(window_id)
    assert start <= moment < start + WINDOW_LENGTH
    assert format_window_id(start) == window_id


@given(moments, st.integers(-14, 14))
def test_a_moment_belongs_to_the_same_window_in_every_zone(moment, hours):
    assert window_of(moment.astimezone(timezone(timedelta(hours=hours)))) == window_of(moment)


def test_a_time_without_zone_is_utc():
    assert window_of(datetime(2025, 1, 15, 10, 59, 59)) == "2025-01-15T10:00"


def test_the_first_moment_of_an_hour_belongs_to_it_and_not_to_the_one_before():
    assert window_of(datetime(2025, 1, 15, 11, tzinfo=UTC)) == "2025-01-15T11:00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-01-15",
        "2025-01-15T10",
        "2025-1-15T10:00",
        "2025-01-15 10:00",
        "2025-01-15T10:00Z",
        "2025-02-30T10:00",
        "2025-01-15T24:00",
        " 2025-01-15T10:00",
        None,
    ],
)
def test_other_texts_are_no_window_ids(text):
    with pytest.raises(WindowIdError, match="not a window id"):
        parse_window_id(text)


def test_an_id_off_the_hour_is_refused_with_the_hour_it_may_have_meant():
    with pytest.raises(WindowIdError, match="2025-01-15T10:00"):
        parse_window_id("2025-01-15T10:30")


def test_a_start_without_zone_has_no_id():
    with pytest.raises(WindowIdError, match="no time zone"):
        format_window_id(datetime(2025, 1, 15, 10))


@given(moments, st.integers(0, 48))
def test_a_range_holds_every_hour_between_its_ends(moment, hours):
    first = window_of(moment)
    ids = list(window_range(first, shift_window(first, hours)))
    assert ids[0] == first and len(ids) == hours + 1 and ids == sorted(ids)


def test_a_range_that_ends_before_it_starts_is_empty():
    assert list(window_range("2025-01-15T10:00", "2025-01-15T09:00")) == []


def test_neighbours_are_unbroken_runs_of_a_bounded_length():
    ids = [*window_range("2025-01-15T10:00", "2025-01-15T14:00"), "2025-01-16T00:00"]
    assert neighbours([*reversed(ids), ids[0]], 3) == [
        ("2025-01-15T10:00", "2025-01-15T12:00"),
        ("2025-01-15T13:00", "2025-01-15T14:00"),
        ("2025-01-16T00:00", "2025-01-16T00:00"),
    ]
