"""Market outcomes: prices at the hour's edges from the price history, and nothing guessed."""

from datetime import UTC, datetime, timedelta

import pytest

from babylon_rl.errors import RecordingError
from babylon_rl.outcomes.outcomes import COLUMNS, outcomes_of
from babylon_rl.recording.market_history import QuestionHistory, TickerHistory, record_market

WINDOW = "2025-01-15T10:00"
START = datetime(2025, 1, 15, 10, tzinfo=UTC)
LATER = START + timedelta(days=1)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def ticker(*points: tuple[float, float], name: str = "ACME") -> TickerHistory:
    return TickerHistory(name, tuple((at(m), p) for m, p in points))


def question(*points: tuple[float, float], resolution: bool = True, market_id: str = "moon") -> QuestionHistory:
    return QuestionHistory(
        market_id, "Will it?", 1200.0, 800.0, START, at(60), resolution, tuple((at(m), p) for m, p in points)
    )


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        yield connection


def outcome(connection, window: str = WINDOW, now: datetime = LATER) -> dict:
    (row,) = outcomes_of(connection, [window], now).to_dict("records")
    return row


def test_a_ticker_opens_at_the_last_price_up_to_the_start_and_closes_at_the_last_before_the_end(connection):
    record_market(connection, [], [ticker((-10, 90), (0, 100), (30, 150), (59.9, 110), (60, 500))], [])
    row = outcome(connection)
    assert (row["instrument"], row["kind"], row["open"], row["close"], row["outcome"]) == (
        "ACME",
        "ticker",
        100,
        110,
        "up",
    )
    assert row["change"] == pytest.approx(0.1)
    assert row["settled"] and row["source"] == "StockPrice"
    assert list(outcomes_of(connection, [WINDOW]).columns) == COLUMNS


def test_a_ticker_without_a_price_at_the_opening_has_no_change(connection):
    record_market(connection, [], [ticker((10, 100), (20, 90))], [])
    row = outcome(connection)
    assert row["open"] != row["open"] or row["open"] is None
    assert row["outcome"] is None and "no price at the opening" in row["source"]


def test_a_ticker_that_did_not_trade_in_the_hour_is_not_listed(connection):
    record_market(connection, [], [ticker((-10, 90), (60, 100))], [])
    assert outcomes_of(connection, [WINDOW], LATER).empty


def test_an_hour_that_is_not_over_is_not_settled(connection):
    record_market(connection, [], [ticker((0, 100), (10, 90))], [question((0, 0.4), (20, 0.5))])
    assert not outcomes_of(connection, [WINDOW], at(30))["settled"].any()
    assert outcomes_of(connection, [WINDOW], at(60))["settled"].all()


def test_a_resolved_question_has_its_outcome_and_the_probability_at_both_edges(connection):
    record_market(connection, [], [], [question((0, 0.4), (20, 0.7), (59.9, 0.0), resolution=False)])
    row = outcome(connection)
    assert (row["instrument"], row["kind"], row["question"]) == ("moon", "question", "Will it?")
    assert (row["open"], row["close"], row["outcome"], row["settled"]) == (0.4, 0.0, "NO", True)
    assert row["change"] == pytest.approx(-0.4)


def test_a_resolution_that_is_not_known_is_no_no(connection):
    record_market(connection, [], [], [question((0, 0.4), (20, 0.7))])
    connection.execute('UPDATE "Market" SET resolution = NULL')
    row = outcome(connection)
    assert row["outcome"] is None and not row["settled"]


def test_a_question_that_resolves_in_a_later_hour_is_settled_in_every_hour_in_which_it_was_traded(connection):
    record_market(connection, [], [], [question((0, 0.4), (20, 0.7), (70, 0.8), (140, 0.9), resolution=False)])
    connection.execute("""UPDATE "Market" SET "endDate" = '2025-01-15 15:00', resolved = false, resolution = NULL""")
    traded = ["2025-01-15T10:00", "2025-01-15T11:00", "2025-01-15T12:00"]
    hours = [*traded, "2025-01-15T13:00", "2025-01-15T14:00"]
    before = outcomes_of(connection, hours, LATER)
    assert not before["settled"].any() and before["outcome"].isna().all()
    connection.execute("""UPDATE "Market" SET resolved = true, resolution = false""")
    after = outcomes_of(connection, hours, LATER)
    # It ended at 15:00, so by the end of the window of 14:00.
    assert list(after["window_id"]) == [*traded, "2025-01-15T14:00"] and after["settled"].all()
    assert set(after["outcome"]) == {"NO"} and list(after["close"])[:3] == [0.7, 0.8, 0.9]
    assert not set(before["revision"]) & set(after["revision"])


def test_without_price_history_the_probability_of_yes_is_no_over_the_sum_of_both(connection):
    record_market(connection, [], [], [question()])
    row = outcome(connection)
    assert row["close"] == pytest.approx(800 / 2000) and "present shares" in row["source"]


def test_the_revision_is_the_same_for_the_same_prices_and_another_for_others(connection):
    record_market(connection, [], [ticker((0, 100), (10, 90)), ticker((0, 1), (10, 2), name="BOLT")], [])
    frame = outcomes_of(connection, [WINDOW], LATER)
    assert frame["revision"].nunique() == 1 and len(frame) == 2
    assert outcomes_of(connection, [WINDOW], LATER).equals(frame)
    record_market(connection, [], [ticker((50, 95))], [])
    assert outcomes_of(connection, [WINDOW], LATER)["revision"].iloc[0] != frame["revision"].iloc[0]


def test_writing_a_history_again_changes_nothing_and_another_one_is_refused(connection):
    for _ in range(2):
        record_market(connection, ["agent-1", "agent-1"], [ticker((0, 100), (10, 90))], [question((0, 0.4))])
    counts = [
        connection.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0]
        for t in ("User", "Organization", "StockPrice", "Market", "PredictionPriceHistory")
    ]
    assert counts == [1, 1, 2, 1, 1]
    with pytest.raises(RecordingError, match="2025-01-15T10:00 already holds another simulated market"):
        record_market(connection, [], [ticker((0, 101))], [])
