"""Rows of a window are replaced together, only where they changed, and nothing is lost."""

import json
import threading

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows, replace_windows
from babylon_rl.database.tables import market_outcomes, scored_trajectories
from babylon_rl.errors import DatabaseError, WindowIdError
from babylon_rl.windows import shift_window, window_range

TEN, ELEVEN, TWELVE = window_range("2025-01-15T10:00", "2025-01-15T12:00")


def outcomes(*rows: tuple[str, str, float | None]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "window_id": w,
                "instrument": i,
                "kind": "ticker",
                "close": c,
                "settled": True,
                "source": "t",
                "revision": "r",
            }
            for w, i, c in rows
        ]
    )


def write(database: Database, window_ids: list[str], frame: pd.DataFrame):
    with database.connect() as connection:
        return replace_windows(connection, market_outcomes, window_ids, frame)


def read(database: Database, window_ids: list[str] | None = None) -> list[tuple]:
    with database.connect() as connection:
        frame = read_frame(connection, current_rows(market_outcomes, window_ids))
    return list(frame[["window_id", "instrument", "close"]].itertuples(index=False, name=None))


def count(database: Database) -> int:
    with database.connect() as connection:
        return connection.execute("SELECT count(*) FROM babylon_rl.market_outcomes").fetchone()[0]


def test_the_same_content_writes_nothing_in_any_order_of_rows_and_columns(database):
    frame = outcomes((TEN, "AAA", 1.0), (TEN, "BBB", 2.0), (ELEVEN, "AAA", None))
    assert write(database, [TEN, ELEVEN], frame).written == 3
    again = write(database, [ELEVEN, TEN], frame.iloc[::-1][sorted(frame.columns)].assign(question=None))
    assert (again.written, again.superseded, again.unchanged) == (0, 0, (TEN, ELEVEN))
    assert count(database) == 3


def test_changed_content_supersedes_the_rows_of_its_window_only(database):
    write(database, [TEN, ELEVEN], outcomes((TEN, "AAA", 1.0), (ELEVEN, "AAA", 2.0)))
    replaced = write(database, [TEN, ELEVEN], outcomes((TEN, "AAA", 1.0), (ELEVEN, "AAA", 3.0), (ELEVEN, "BBB", 4.0)))
    assert (replaced.written, replaced.superseded, replaced.unchanged) == (2, 1, (TEN,))
    assert read(database) == [(TEN, "AAA", 1.0), (ELEVEN, "AAA", 3.0), (ELEVEN, "BBB", 4.0)]
    assert count(database) == 4


def test_what_was_known_when_can_be_asked(database):
    for close in (1.0, 2.0, 3.0):
        write(database, [TEN], outcomes((TEN, "AAA", close)))
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT close, created_at, superseded_at FROM babylon_rl.market_outcomes ORDER BY row_id"
        ).fetchall()
    assert [close for close, _, _ in rows] == [1.0, 2.0, 3.0]
    assert [ended for _, _, ended in rows] == [rows[1][1], rows[2][1], None]


def test_a_window_without_rows_loses_its_current_ones(database):
    write(database, [TEN, ELEVEN], outcomes((TEN, "AAA", 1.0), (ELEVEN, "AAA", 2.0)))
    replaced = write(database, [TEN, ELEVEN], outcomes((ELEVEN, "AAA", 2.0)))
    assert (replaced.written, replaced.superseded, replaced.unchanged) == (0, 1, (ELEVEN,))
    assert write(database, [ELEVEN], pd.DataFrame()).superseded == 1
    assert read(database) == []


def test_rows_of_another_window_are_refused_and_the_old_ones_stay(database):
    write(database, [TEN], outcomes((TEN, "AAA", 1.0)))
    with pytest.raises(DatabaseError, match=TWELVE):
        write(database, [TEN], outcomes((TEN, "AAA", 2.0), (TWELVE, "AAA", 1.0)))
    with pytest.raises(DatabaseError, match="window_id"):
        write(database, [TEN], outcomes((TEN, "AAA", 2.0)).drop(columns="window_id"))
    with pytest.raises(DatabaseError, match="digest"):
        write(database, [TEN], outcomes((TEN, "AAA", 2.0)).assign(digest="mine"))
    with pytest.raises(WindowIdError):
        write(database, ["2025-01-15T10:30"], outcomes())
    assert read(database) == [(TEN, "AAA", 1.0)]


def test_a_failure_after_the_write_leaves_everything_as_it_was(database):
    write(database, [TEN], outcomes((TEN, "AAA", 1.0)))
    with pytest.raises(RuntimeError), database.connect() as connection:
        replace_windows(connection, market_outcomes, [TEN], outcomes((TEN, "AAA", 2.0)))
        raise RuntimeError
    with pytest.raises(psycopg.errors.UniqueViolation):
        write(database, [TEN], outcomes((TEN, "AAA", 2.0), (TEN, "AAA", 3.0)))
    assert read(database) == [(TEN, "AAA", 1.0)]
    assert count(database) == 1


@pytest.mark.parametrize("windows", [1, 201])
def test_two_writers_of_one_window_end_with_one_current_set(database, windows):
    many = [shift_window(TEN, i) for i in range(windows)]
    start = threading.Barrier(3)
    failures = []

    def writer(number: int, window_ids: list[str]) -> None:
        try:
            for turn in range(4):
                start.wait(30)
                write(database, window_ids, outcomes(*((w, f"{number}-{turn}", 1.0) for w in window_ids)))
        except Exception as error:
            failures.append(error)
            start.abort()

    # One of them takes locks by window, whatever the other takes.
    threads = [threading.Thread(target=writer, args=(i, w)) for i, w in enumerate((many, many[::-1], [TEN]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [w for w, _, _ in read(database)] == many
    assert count(database) == windows * 8 + 4
    with database.connect() as connection:
        ends = "SELECT count(*) FROM babylon_rl.market_outcomes WHERE superseded_at < created_at"
        assert connection.execute(ends).fetchone() == (0,)


def test_a_range_is_read_by_its_windows(database):
    write(database, [TEN, ELEVEN, TWELVE], outcomes(*((w, "AAA", 1.0) for w in (TEN, ELEVEN, TWELVE))))
    assert [w for w, _, _ in read(database, [TWELVE, TEN])] == [TEN, TWELVE]
    assert read(database, []) == []


def test_what_was_read_can_be_written_again_without_change(database):
    row = {
        "window_id": TEN, "trajectory_id": "t", "agent_id": "a", "scorer": "s", "scorer_version": "1", "reward": 0.1,
        "parts": {"b": 1, "a": [1.5, None]}, "features": json.dumps({"x": "\u00e9"}), "rank": 1, "reason": "r",
        "provenance": "logged", "checkpoint": None, "window_revision": "w", "outcome_revision": "o",
    }  # fmt: skip
    with database.connect() as connection:
        assert replace_windows(connection, scored_trajectories, [TEN], pd.DataFrame([row])).written == 1
        frame = read_frame(connection, current_rows(scored_trajectories, [TEN]))
        assert frame["parts"].iloc[0] == row["parts"] and frame["features"].iloc[0] == {"x": "\u00e9"}
        again = replace_windows(connection, scored_trajectories, [TEN], frame.drop(columns="digest"))
        turned = frame.drop(columns="digest").assign(parts=[{"a": [1.5, None], "b": 1}])
        assert replace_windows(connection, scored_trajectories, [TEN], turned).unchanged == (TEN,)
    assert again.unchanged == (TEN,)


def test_the_database_itself_refuses_a_window_off_the_hour(database):
    for wrong in ("2025-01-15T10:30", "2025-01-15T25:00", "2025-1-15T10:00", "2025-01-15T10:00\n", "x"):
        with pytest.raises(psycopg.errors.CheckViolation), database.connect() as connection:
            statement = sa.insert(market_outcomes).values(
                window_id=wrong, instrument="A", kind="ticker", settled=True, source="s", revision="r", digest="d"
            )
            form = statement.compile(dialect=database.engine().dialect)
            connection.execute(str(form), form.params)
