"""Each source of outcomes, what it falls back to, and what it never says."""

from datetime import timedelta

import pytest

from babylon_rl.outcomes.outcomes import awaited_outcomes, outcomes_of
from babylon_rl_tests.outcomes.made import LATER, POSITION, START, WINDOW, at, perp, put


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        connection.execute(POSITION)
        yield connection


def rows(connection, window: str = WINDOW, now=LATER) -> list[dict]:
    frame = outcomes_of(connection, [window], now)
    return [{k: None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


def only(connection, **how) -> dict:
    (row,) = rows(connection, **how)
    return row


def price(connection, minutes: float, value: float, organization: str = "acme", **more) -> None:
    put(connection, "StockPrice", organizationId=organization, timestamp=at(minutes), price=value, **more)


def probability(connection, minutes: float, value: float, market: str = "moon") -> None:
    put(connection, "PredictionPriceHistory", marketId=market, createdAt=at(minutes), yesPrice=value)


# --- tickers --------------------------------------------------------------------------------------


def test_a_price_history_outranks_positions_and_the_applications_own_outcomes(connection):
    put(connection, "Organization", id="acme", name="ACME")
    price(connection, 0, 100)
    price(connection, 50, 110, isSnapshot=True)
    perp(connection, 5, 1, 6, 2)
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=3, endPrice=4)
    row = only(connection)
    assert (row["instrument"], row["open"], row["close"], row["source"]) == ("ACME", 100, 110, "StockPrice")


def test_positions_give_the_price_of_the_first_opened_and_the_last_that_one_shows_in_the_hour(connection):
    # Written in no order: the first is the earliest, whatever its id.
    perp(connection, 30, 105, 90, 999)
    perp(connection, 5, 100, 45, 120)
    perp(connection, 6, 101, 40, 119)
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=3, endPrice=4)
    row = only(connection)
    assert (row["open"], row["close"], row["outcome"], row["settled"]) == (100, 120, "up", True)
    assert row["source"].startswith("PerpPosition, price of the first opened, 10:05")


@pytest.mark.parametrize("updated", [-5, 60, 600])
def test_the_present_price_of_a_position_is_never_that_of_another_hour(connection, updated):
    perp(connection, 5, 100, updated, 120)
    row = only(connection)
    assert (row["open"], row["close"], row["change"], row["outcome"]) == (100, None, None, None)
    assert "no later price" in row["source"]


def test_a_position_of_another_hour_that_is_closed_in_this_one_gives_its_closing_price_alone(connection):
    perp(connection, -60, 100, 20, 90, closedAt=at(20))
    row = only(connection)
    assert (row["open"], row["close"]) == (None, 90)
    perp(connection, -90, 100, 30, 95, ticker="IDLE", organizationId="idle")  # held on, not traded
    assert len(rows(connection)) == 1


def test_the_hour_is_half_open_for_positions(connection):
    perp(connection, 60, 100, 61, 101)
    perp(connection, 0, 50, 59.9, 60)
    assert (only(connection)["open"], only(connection)["close"]) == (50, 60)
    assert only(connection, window="2025-01-15T11:00")["open"] == 100


def test_a_position_is_listed_under_its_organizations_name(connection):
    put(connection, "Organization", id="acme", name="Acme Corp")
    perp(connection, 5, 100, 45, 120)
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=3, endPrice=4)
    row = only(connection)
    assert row["instrument"] == "Acme Corp" and row["source"].startswith("PerpPosition")


def test_the_applications_outcomes_serve_where_nothing_else_does_and_say_so(connection):
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=1, endPrice=2, createdAt=at(61))
    # Computed: what the application stores may have overflowed or be missing. The last written counts.
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=10, endPrice=210, createdAt=at(62))
    row = only(connection)
    assert (row["open"], row["close"], row["change"], row["outcome"]) == (10, 210, 20, "up")
    assert row["source"] == "market_outcomes of the application, end price as written 2025-01-15T11:02"


def test_an_end_price_frozen_before_the_hour_was_over_is_no_closing_price(connection):
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=10, endPrice=12, createdAt=at(59))
    row = only(connection)
    assert (row["open"], row["close"], row["change"], row["outcome"]) == (10, None, None, None)
    assert "before the hour was over" in row["source"]


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf"), float("-inf")])
def test_a_price_that_none_can_be_is_unknown_in_every_source(connection, value):
    put(connection, "Organization", id="acme", name="ACME")
    price(connection, 0, value)
    price(connection, 30, 110)
    price(connection, 70, value)
    perp(connection, 5, value, 45, value, organizationId="bolt", ticker="BOLT")
    first, second = rows(connection)
    assert (first["open"], first["close"], first["change"]) == (None, 110, None)
    assert (second["open"], second["close"], second["change"]) == (None, None, None)
    assert only(connection, window="2025-01-15T11:00")["close"] is None


def test_two_organizations_of_one_name_and_a_question_called_like_a_ticker_are_told_apart(connection):
    for organization in ("a", "b"):
        put(connection, "Organization", id=organization, name="ACME")
        price(connection, 10, 100, organization)
    put(connection, "Organization", id="m", name="moon")
    price(connection, 10, 100, "m")
    probability(connection, 10, 0.5)
    put(connection, "Market", id="moon")
    assert [row["instrument"] for row in rows(connection)] == ["ACME (a)", "ACME (b)", "moon", "moon (question)"]


# --- questions ------------------------------------------------------------------------------------


def test_a_makers_shares_are_those_of_the_hour_where_they_did_not_change_since(connection):
    put(connection, "Market", id="moon", yesShares=1200, noShares=800, updatedAt=at(30))
    put(connection, "Position", marketId="moon", avgPrice=0.9, createdAt=at(20), updatedAt=at(20))
    row = only(connection)
    assert row["close"] == pytest.approx(0.4) and "unchanged since the hour" in row["source"]
    # Traded on: what the maker holds is a price from after the hour.
    connection.execute("""UPDATE "Market" SET "updatedAt" = %s""", (at(60),))
    row = only(connection)
    assert row["open"] == 0.9 and row["close"] is None and row["source"].startswith("Position")


def test_positions_give_what_was_paid_in_the_hour_as_the_probability_of_yes(connection):
    put(connection, "Position", marketId="moon", avgPrice=0.7, side=False, createdAt=at(40), updatedAt=at(40))
    put(connection, "Position", marketId="moon", avgPrice=0.2, createdAt=at(10), updatedAt=at(11))
    # Added to after the hour: its mean holds later prices. Impossible: no share costs more than it pays.
    put(connection, "Position", marketId="moon", avgPrice=0.99, createdAt=at(5), updatedAt=at(61))
    put(connection, "Position", marketId="moon", avgPrice=40, createdAt=at(50), updatedAt=at(50))
    row = only(connection)
    assert (row["open"], row["close"]) == (0.2, 0.3) and row["change"] == pytest.approx(0.1)
    assert row["source"] == "Position, price paid first in the hour, 10:10, and the last"
    assert row["outcome"] is None and not row["settled"]


def test_the_applications_final_probability_is_the_price_of_no_and_is_turned(connection):
    told = {"question": "Will it?", "finalProbability": 0.1, "outcome": "YES"}
    put(connection, "market_outcomes", predictionMarketId="moon", **told)
    row = only(connection)
    assert (row["close"], row["outcome"], row["settled"], row["question"]) == (0.9, "YES", True, "Will it?")
    assert "NO price turned" in row["source"] and "outcome by market_outcomes" in row["source"]


def test_the_applications_no_may_be_an_unknown_resolution_so_the_market_decides(connection):
    put(connection, "market_outcomes", predictionMarketId="moon", finalProbability=0.1, outcome="NO")
    assert (only(connection)["outcome"], only(connection)["settled"]) == (None, False)
    put(connection, "Market", id="moon", resolved=True, resolution=None)
    assert (only(connection)["outcome"], only(connection)["settled"]) == (None, False)
    connection.execute("""UPDATE "Market" SET resolution = true""")
    assert (only(connection)["outcome"], only(connection)["settled"]) == ("YES", True)
    connection.execute("""UPDATE "Market" SET resolution = false""")
    assert (only(connection)["outcome"], only(connection)["settled"]) == ("NO", True)


def test_an_outcome_that_the_market_does_not_confirm_is_not_believed(connection):
    put(connection, "market_outcomes", predictionMarketId="moon", finalProbability=0.1, outcome="YES")
    put(connection, "Market", id="moon", resolved=False)
    assert only(connection)["outcome"] is None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_that_none_can_be_is_unknown(connection, value):
    put(connection, "Market", id="moon")
    probability(connection, 0, 0.5)
    probability(connection, 30, value)
    row = only(connection)
    assert (row["open"], row["close"], row["change"]) == (0.5, None, None)


def test_times_that_no_calendar_has_stop_nothing(connection):
    put(connection, "Organization", id="acme", name="ACME")
    put(connection, "Market", id="moon", yesShares=1, noShares=1)
    connection.execute("""UPDATE "Market" SET "endDate" = 'infinity', "updatedAt" = '-infinity'""")
    price(connection, 10, 100)
    probability(connection, 10, 0.5)
    for moment in ("infinity", "-infinity", "4000-01-01 BC", "20000-01-01"):
        connection.execute("""UPDATE "StockPrice" SET timestamp = %s WHERE price = 1""", (moment,))
        price(connection, -600, 1)
        connection.execute("""UPDATE "StockPrice" SET timestamp = %s WHERE price = 1""", (moment,))
        assert [row["close"] for row in rows(connection)] == [100, 0.5]
    assert outcomes_of(connection, ["0001-01-01T00:00", "9999-12-31T23:00"], LATER).empty


# --- databases that lack something ----------------------------------------------------------------

TABLES = (
    "StockPrice",
    "Organization",
    "PredictionPriceHistory",
    "Market",
    "PerpPosition",
    "Position",
    "market_outcomes",
)


def traded(connection) -> None:
    """A ticker and a question that every source knows."""
    put(connection, "Organization", id="acme", name="ACME")
    price(connection, 0, 100)
    price(connection, 30, 110)
    perp(connection, 5, 101, 45, 109)
    put(connection, "market_outcomes", stockTicker="ACME", startPrice=10, endPrice=12)
    put(connection, "Market", id="moon", resolved=True, resolution=True)
    probability(connection, 30, 0.6)
    put(connection, "Position", marketId="moon", avgPrice=0.2, createdAt=at(10), updatedAt=at(10))
    put(connection, "market_outcomes", predictionMarketId="moon", finalProbability=0.25, outcome="NO")


def test_a_table_that_is_missing_gives_way_to_the_next_source_and_none_at_all_to_no_rows(connection):
    traded(connection)
    told = []
    for table in (
        None,
        "StockPrice",
        "PredictionPriceHistory",
        "Position",
        "Market",
        "PerpPosition",
        "market_outcomes",
    ):
        if table:
            connection.execute({name: f'DROP TABLE "{name}"' for name in TABLES}[table])
        told.append([(row["source"].split()[0].strip(","), row["outcome"]) for row in rows(connection)])
        awaited_outcomes(connection, [WINDOW])
    assert told == [
        [("StockPrice", "up"), ("PredictionPriceHistory", "YES")],
        [("PerpPosition", "up"), ("PredictionPriceHistory", "YES")],
        [("PerpPosition", "up"), ("market_outcomes", "YES")],  # one paid price is no closing price
        [("PerpPosition", "up"), ("market_outcomes", "YES")],
        [("PerpPosition", "up"), ("market_outcomes", None)],
        [("market_outcomes", "up"), ("market_outcomes", None)],
        [],
    ]


def test_histories_serve_without_the_tables_that_name_what_they_are_of(connection):
    traded(connection)
    connection.execute('DROP TABLE "Organization", "Market"')
    first, second = rows(connection)
    assert (first["instrument"], first["close"]) == ("acme", 110)
    assert (second["close"], second["outcome"], second["settled"]) == (0.6, None, False)


def test_a_table_that_may_not_be_read_or_lacks_a_column_is_as_good_as_missing(connection):
    traded(connection)
    connection.execute('ALTER TABLE "PredictionPriceHistory" DROP COLUMN "yesPrice"')
    connection.execute("CREATE ROLE outcomes_reader")
    connection.execute(
        'GRANT SELECT ON "PerpPosition", "Market", "Position", "PredictionPriceHistory" TO outcomes_reader'
    )
    connection.execute("SET ROLE outcomes_reader")
    first, second = rows(connection)
    assert first["source"].startswith("PerpPosition") and second["source"].startswith("Position")
    assert second["outcome"] == "YES" and awaited_outcomes(connection, [WINDOW]) == {}
    connection.rollback()


# --- any number of windows ------------------------------------------------------------------------


def test_windows_read_together_have_the_rows_that_each_has_alone(connection):
    traded(connection)
    for hour in range(1, 30):
        price(connection, 60 * hour + hour, 100 + hour)
        if hour % 3:
            probability(connection, 60 * hour + 59, hour / 100)
        perp(
            connection,
            60 * hour + 3,
            hour,
            60 * hour + 9,
            hour + 1,
            organizationId=f"o{hour % 4}",
            ticker=f"T{hour % 4}",
        )
    ids = [(START + timedelta(hours=hour)).strftime("%Y-%m-%dT%H:00") for hour in (5, 29, 0, 3, 2, 17, 200)]
    told = ["window_id", "instrument", "revision"]  # the digest of all that the window's rows say
    together = outcomes_of(connection, ids, LATER)[told].values.tolist()
    alone = [row for window_id in ids for row in outcomes_of(connection, [window_id], LATER)[told].values.tolist()]
    assert together == alone and len(alone) == 16


def test_a_question_that_ends_after_the_hour_is_not_waited_for(connection):
    put(connection, "Market", id="moon", endDate=at(61))
    probability(connection, 30, 0.5)
    assert awaited_outcomes(connection, [WINDOW]) == {}
    connection.execute("""UPDATE "Market" SET "endDate" = %s""", (at(60),))
    assert awaited_outcomes(connection, [WINDOW]) == {WINDOW: 1}


# --- tables that somebody altered ------------------------------------------------------------------


def test_a_position_of_no_known_side_is_no_no(connection):
    connection.execute('ALTER TABLE "Position" ALTER side DROP NOT NULL')
    put(connection, "Position", marketId="moon", side=None, avgPrice=0.9, createdAt=at(5), updatedAt=at(5))
    assert (only(connection)["open"], only(connection)["close"]) == (None, None)


def test_a_market_of_which_the_end_and_the_change_are_not_known_tells_no_price_of_an_hour(connection):
    connection.execute('ALTER TABLE "Market" ALTER "endDate" DROP NOT NULL, ALTER "updatedAt" DROP NOT NULL')
    put(connection, "Market", id="moon", yesShares=300, noShares=100, endDate=None, updatedAt=None)
    put(connection, "Position", marketId="moon", side=True, avgPrice=0.9, createdAt=at(5), updatedAt=at(5))
    assert (only(connection)["open"], only(connection)["close"]) == (0.9, None)


@pytest.mark.parametrize(
    ("table", "column"),
    [("Organization", "name"), ("Market", "yesShares"), ("Position", "marketId"), ("PerpPosition", "organizationId")],
)
def test_a_null_that_prisma_forbids_stops_no_other_row(connection, table, column):
    probability(connection, 5, 0.4)
    price(connection, 5, 100)
    perp(connection, 5, 100, 45, 120, organizationId="zorg")
    put(connection, "Organization", id="acme", name="ACME")
    put(connection, "Market", id="moon", yesShares=300, noShares=100, endDate=at(30))
    put(connection, "Position", marketId="moon", side=True, avgPrice=0.9, createdAt=at(5), updatedAt=at(5))
    connection.execute(f'ALTER TABLE "{table}" ALTER "{column}" DROP NOT NULL')
    connection.execute(f'UPDATE "{table}" SET "{column}" = NULL')
    assert sorted(row["close"] for row in rows(connection)) == [0.4, 100, 120]


@pytest.mark.parametrize(
    ("table", "change", "closes"),
    [
        ("StockPrice", "price TYPE numeric", [100.0, 0.4]),
        ("StockPrice", "timestamp TYPE timestamptz", [0.4]),
        ("Market", "resolved TYPE text", [100.0, 0.4]),
        ("Market", '"endDate" TYPE timestamptz', [100.0, 0.4]),
        ("Position", "side TYPE text", [100.0, 0.4]),
    ],
)
def test_a_column_of_another_type_is_a_number_or_passes_its_table_over(connection, table, change, closes):
    probability(connection, 5, 0.4)
    price(connection, 5, 100)
    put(connection, "Organization", id="acme", name="ACME")
    put(connection, "Market", id="moon", yesShares=300, noShares=100, endDate=at(30))
    connection.execute(f'ALTER TABLE "{table}" ALTER {change.split()[0]} DROP DEFAULT, ALTER {change}')
    found = [row["close"] for row in rows(connection)]
    assert found == closes and {type(one) for one in found} == {float}
    awaited_outcomes(connection, [WINDOW])
