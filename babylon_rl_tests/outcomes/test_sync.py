"""Outcomes over time: open hours, markets that settle later, what was known when, and a sync that can be repeated."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from babylon_rl.cli import app
from babylon_rl.database.connect import Database
from babylon_rl.database.history import replace_windows
from babylon_rl.database.migrate import migrate
from babylon_rl.database.tables import market_outcomes
from babylon_rl.errors import DatabaseError
from babylon_rl.outcomes import outcomes as rules
from babylon_rl.outcomes.sync import late_windows, sync_outcomes
from babylon_rl.outcomes.windows import outcome_windows, outcomes_as_of, provisional
from babylon_rl.windows import shift_window, window_of
from babylon_rl_tests.outcomes.made import POSITION, START, WINDOW, at, perp, put

NOW = START.replace(tzinfo=UTC) + timedelta(hours=3, minutes=20)
HOURS = [shift_window(WINDOW, hour) for hour in range(4)]  # the last of them is open at NOW


@pytest.fixture
def traded(database):
    """A ticker and a question in each hour, the question unresolved and ending with the second."""
    with database.connect() as connection:
        connection.execute(POSITION)
        put(connection, "Organization", id="acme", name="ACME")
        put(connection, "Market", id="moon", endDate=at(120))
        for minutes in (10, 70, 130, 190):
            put(connection, "StockPrice", organizationId="acme", timestamp=at(minutes), price=100 + minutes)
        for minutes in (10, 70):
            put(connection, "PredictionPriceHistory", marketId="moon", createdAt=at(minutes), yesPrice=minutes / 100)
    return database


def resolve(database, outcome: bool | None) -> None:
    with database.connect() as connection:
        connection.execute("""UPDATE "Market" SET resolved = true, resolution = %s""", (outcome,))


def late(database, now: datetime = NOW) -> list[str]:
    with database.connect_application() as application, database.connect() as ours:
        return late_windows(application, ours, now)


def current(database) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(
            "SELECT window_id, instrument, outcome, settled FROM babylon_rl.market_outcomes "
            "WHERE superseded_at IS NULL ORDER BY 1, 2"
        ).fetchall()


def test_the_last_closed_hours_are_written_and_the_open_one_is_left_alone(traded):
    synced = sync_outcomes(traded, 24, now=NOW)
    assert len(synced.windows) == 24 and synced.windows[-1] == HOURS[2] and synced.late == ()
    assert synced.changed == tuple(HOURS[:3]) and synced.written == 5 and synced.unsettled == 2
    assert synced.sources == {"StockPrice": 3, "PredictionPriceHistory": 2}
    assert {row[0] for row in current(traded)} == set(HOURS[:3])


def test_a_second_sync_writes_nothing(traded):
    sync_outcomes(traded, 24, now=NOW)
    again = sync_outcomes(traded, 24, now=NOW)
    assert again.written == 0 and again.changed == () and len(again.windows) == 24


def test_a_market_that_settles_later_updates_the_hours_that_traded_it_and_only_those(traded):
    sync_outcomes(traded, 24, now=NOW)
    resolve(traded, None)
    assert late(traded) == []  # a resolution that is not known is no NO
    resolve(traded, False)
    assert late(traded) == HOURS[:2]
    month = NOW + timedelta(days=30)
    assert sync_outcomes(traded, 24, all_unsettled=False, now=month).changed == ()
    synced = sync_outcomes(traded, 24, now=month)
    assert synced.late == synced.changed == tuple(HOURS[:2]) and synced.unsettled == 0
    assert [row for row in current(traded) if row[1] == "moon"] == [(w, "moon", "NO", True) for w in HOURS[:2]]
    assert late(traded) == [] and sync_outcomes(traded, 24, now=month).written == 0


def test_rows_of_an_hour_that_was_open_are_computed_anew_when_it_is_over(traded):
    rows = outcome_windows(traded, [HOURS[3]], NOW)
    assert not rows.frame["settled"].any()
    with traded.connect() as connection:
        replace_windows(connection, market_outcomes, rows.computed, rows.frame)
    assert late(traded) == []
    assert late(traded, NOW + timedelta(hours=1)) == [HOURS[3]]
    assert sync_outcomes(traded, 0, now=NOW + timedelta(hours=1)).changed == (HOURS[3],)
    assert current(traded) == [(HOURS[3], "ACME", "up", True)]


def test_what_was_known_when_stays_answerable(traded):
    sync_outcomes(traded, 24, now=NOW)
    before = datetime.now(UTC)
    resolve(traded, True)
    sync_outcomes(traded, 24, now=NOW)
    with traded.connect() as connection:
        then = outcomes_as_of(connection, HOURS, before)
        now = outcomes_as_of(connection, HOURS, datetime.now(UTC))
        assert outcomes_as_of(connection, HOURS, START.replace(tzinfo=UTC)).empty
        assert provisional(connection, HOURS).empty
        with pytest.raises(DatabaseError, match="no time zone"):
            outcomes_as_of(connection, HOURS, START)
    asked = [frame[frame["instrument"] == "moon"] for frame in (then, now)]
    assert [list(frame["outcome"]) for frame in asked] == [[None, None], ["YES", "YES"]]
    assert len(then) == len(now) == 5
    # The revision is the whole window's: scores that rest on it are stale, those of the third hour are not.
    assert set(then["revision"]) & set(now["revision"]) == set(now.loc[now["window_id"] == HOURS[2], "revision"])


def test_a_price_that_a_position_showed_stays_known_when_the_position_moves_on(traded):
    with traded.connect() as connection:
        connection.execute('TRUNCATE "StockPrice"')
        perp(connection, 5, 100, 50, 120, id="first")
        perp(connection, 6, 100, 40, 110)
    sync_outcomes(traded, 24, now=NOW)
    with traded.connect() as connection:
        connection.execute(
            """UPDATE "PerpPosition" SET "lastUpdated" = %s, "currentPrice" = 7 WHERE id = 'first'""", (at(99),)
        )
    assert sync_outcomes(traded, 24, now=NOW).written == 0
    with traded.connect() as connection:
        connection.execute("""UPDATE "PerpPosition" SET "lastUpdated" = %s, "currentPrice" = 7""", (at(99),))
    assert sync_outcomes(traded, 24, now=NOW).written == 0
    # A price history that arrives later outranks it, and what is impossible there is not filled from positions.
    with traded.connect() as connection:
        put(connection, "StockPrice", organizationId="acme", timestamp=at(30), price=0)
    assert sync_outcomes(traded, 24, now=NOW).changed == (WINDOW,)
    frame = outcome_windows(traded, [WINDOW], NOW).frame
    assert frame["close"].isna().tolist() == [True, False]


def test_what_cannot_be_computed_for_one_window_holds_up_no_other(traded, monkeypatch):
    whole = rules.with_revision

    def broken(rows):
        if any(row["window_id"] == HOURS[1] for row in rows):
            raise ValueError("no digest")
        return whole(rows)

    monkeypatch.setattr(rules, "with_revision", broken)
    synced = sync_outcomes(traded, 24, now=NOW)
    assert synced.changed == (HOURS[0], HOURS[2]) and synced.failed[HOURS[1]].detail == "no digest"
    monkeypatch.undo()
    assert sync_outcomes(traded, 24, now=NOW).changed == (HOURS[1],)
    with traded.connect() as connection:
        assert not connection.execute("SELECT 1 FROM babylon_rl.window_failures WHERE resolved_at IS NULL").fetchall()


def test_a_database_without_any_market_has_no_rows_and_no_error(new_database):
    ours = new_database()
    migrate(ours, with_application_tables=False)
    synced = sync_outcomes(ours, 24, now=NOW)
    assert (synced.written, synced.sources, synced.failed) == (0, {}, {})
    assert late(ours) == []


def test_the_command_says_what_it_did_and_what_comes_next(database, tmp_path, monkeypatch):
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    hour = shift_window(window_of(datetime.now(UTC)), -2)
    begin = datetime.fromisoformat(hour)
    with database.connect() as connection:
        put(connection, "Organization", id="acme", name="ACME")
        put(connection, "StockPrice", organizationId="acme", timestamp=begin + timedelta(minutes=5), price=100)
    command = ["outcomes", "sync", "--database", database.url]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["changed"], told["written"], told["sources"]) == ([hour], 1, {"StockPrice": 1})
    assert told["windows"] == 24 and told["scores_to_compute"] == [] and told["next"] is None
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "Nothing changed" in done.output and "1 rows from StockPrice" in done.output


def test_the_applications_tables_may_be_in_another_database_where_nothing_is_written(traded, new_database):
    own = new_database()
    migrate(own, with_application_tables=False)
    both = Database(own.url, embedded=False, application_url=traded.url)
    assert sync_outcomes(both, 24, now=NOW).written == 5
    resolve(traded, True)
    assert late(both) == HOURS[:2]
    assert sync_outcomes(both, 0, now=NOW).changed == tuple(HOURS[:2])
    assert {row[2:] for row in current(both) if row[1] == "moon"} == {("YES", True)} and current(traded) == []
