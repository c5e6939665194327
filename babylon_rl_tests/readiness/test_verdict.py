"""The verdict over a window, by the clock and by what is known of it."""

from datetime import UTC, datetime, timedelta

import pytest

from babylon_rl.readiness.verdict import OUTCOME_POLL, Waits, time_verdict, verdict

WINDOW = "2025-01-15T10:00"
WAITS = Waits(min_agents=3, settling_minutes=10, outcome_wait_hours=6)
END = datetime(2025, 1, 15, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("after_end", "agents", "awaited", "state", "said", "again"),
    [
        (timedelta(minutes=-1), 9, 0, "waiting", "the hour is not over", timedelta(minutes=10)),
        (timedelta(0), 9, 0, "waiting", "11:10 UTC", timedelta(minutes=10)),
        (timedelta(minutes=10), 3, 0, "ready", "3 agents", None),
        (timedelta(minutes=10), 2, 0, "waiting", "2 of at least 3 agents", None),
        (timedelta(minutes=10), 2, 4, "waiting", "2 of at least 3 agents", None),
        (timedelta(hours=1), 3, 2, "waiting", "2 outcomes", timedelta(hours=1) + OUTCOME_POLL),
        (timedelta(hours=5.99), 3, 2, "waiting", "2025-01-15 17:00", timedelta(hours=6)),
        (timedelta(hours=6), 3, 2, "ready", "3 agents", None),
        (timedelta(days=9), 0, 0, "waiting", "0 of at least 3", None),
    ],
)
def test_a_window_is_ready_when_nothing_is_left_to_wait_for(after_end, agents, awaited, state, said, again):
    found = verdict(WINDOW, agents, awaited, WAITS, END + after_end)
    assert found.state == state and said in found.reason and "\n" not in found.reason
    assert found.again == (None if again is None else END + again)


def test_only_time_decides_while_the_hour_settles():
    assert time_verdict(WINDOW, WAITS, END + timedelta(minutes=9)) is not None
    assert time_verdict(WINDOW, WAITS, END + timedelta(minutes=10)) is None
