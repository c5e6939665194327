"""A trajectory is in one window: that of the hour in which it ended, whatever it names and wherever it is read."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.recording.attribution import attribute, named_time
from babylon_rl.windows import parse_window_id, window_of

END = datetime(2025, 1, 15, 10, 30)
HOUR = "2025-01-15T10:00"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, (HOUR, None, False)),
        (HOUR, (HOUR, None, False)),
        ("2025-01-15T10:00:00.000Z", (HOUR, None, False)),
        ("2025-01-15 10:00", (HOUR, None, False)),
        ("2025-01-15T05:00:00-05:00", (HOUR, None, False)),
        ("2025/1/15 10:00", (HOUR, None, False)),
        ("2025-01-15T10", (HOUR, None, False)),
        ("2025-01-15T09:00", (HOUR, None, True)),
        ("benchmark-1", (HOUR, None, True)),
        ("", (HOUR, None, True)),
        ("2025-02-30T10:00", (HOUR, None, True)),  # no day of any year, so a label
        ("2025-01-15T10:30", (None, "off_hour_window", False)),
        ("2025-01-15T10:00:01", (None, "off_hour_window", False)),
        ("2025-01-15 10:00:00.5Z", (None, "off_hour_window", False)),
        ("2025-01-15T15:30+05:00", (None, "off_hour_window", False)),
        ("2025/1/15 9:15", (None, "off_hour_window", False)),
    ],
)
def test_what_a_row_names_is_believed_where_it_is_its_hour(named, expected):
    assert attribute(named, END) == expected


def test_a_time_that_no_calendar_holds_has_no_window():
    assert attribute(HOUR, None) == (None, "impossible_time", False)
    before = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    assert attribute(None, before)[:2] == (None, "impossible_time")


@given(st.datetimes(), st.none() | st.text(max_size=30) | st.datetimes().map(str))
def test_a_row_is_in_the_hour_of_its_end_or_in_none(ended, named):
    found = attribute(named, ended)
    assert found.window_id in (None, window_of(ended)) and (found.window_id is None) == (found.reason is not None)
    if found.window_id is not None:
        start = parse_window_id(found.window_id).replace(tzinfo=None)
        assert start <= ended and ended - start < timedelta(hours=1)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu", "UTC"])
def test_the_hosts_zone_and_its_summer_time_change_nothing(monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        # Hours that New York's clocks skip or repeat.
        hours = [datetime(2025, 3, 9, h) for h in (6, 7, 8)] + [datetime(2025, 11, 2, h) for h in (5, 6, 7)]
        assert [attribute(window_of(hour), hour + timedelta(minutes=59)) for hour in hours] == [
            (f"{hour:%Y-%m-%dT%H:%M}", None, False) for hour in hours
        ]
        assert named_time("2025-03-09T02:30") == datetime(2025, 3, 9, 2, 30, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
