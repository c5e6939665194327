"""Windows that fail by themselves: the others are computed, and the failure is kept until it is mended."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import rejected_trajectories, windows
from babylon_rl.database.window_rows import (
    WAITS,
    WindowError,
    WindowRows,
    book_windows,
    each_window,
    encode_rows,
    open_failures,
    waiting_for,
    write_rows,
)
from babylon_rl.errors import DatabaseError, SettingsError, WindowIdError
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
IDS = [shift_window(FIRST, hours) for hours in range(6)]


@given(st.sets(st.sampled_from(IDS)), st.sets(st.sampled_from(IDS)))
def test_each_window_is_computed_failed_or_waiting_and_order_is_kept(broken, waiting):
    def compute(window_id):
        if window_id in broken:
            raise KeyError(window_id)
        return window_id

    made, failed = each_window(IDS, compute, {w: WindowError(WAITS, "x") for w in waiting})
    assert made == [w for w in IDS if w not in broken | waiting]
    assert set(failed) == broken | waiting
    assert all(failed[w].error == (WAITS if w in waiting else "KeyError") for w in failed)


@pytest.mark.parametrize("error", [DatabaseError("x"), SettingsError("x"), MemoryError(), OSError("disk")])
def test_what_ails_the_whole_run_is_raised(error):
    def compute(_window_id):
        raise error

    with pytest.raises(type(error)):
        each_window(IDS, compute)


def test_a_text_that_is_no_window_id_is_raised():
    with pytest.raises(WindowIdError):
        each_window(["2025-01-15T00:30"], lambda window_id: window_id)


def test_a_failure_stays_open_once_until_its_own_asset_computes_its_own_window(database):
    with database.connect() as connection:
        for detail in ("first", "half \ud800 pair\x00"):
            book_windows(connection, "windows", [IDS[0]], {IDS[1]: WindowError("KeyError", detail)})
        assert open_failures(connection, ["windows"])[["window_id", "detail"]].values.tolist() == [
            [IDS[1], "half ? pair"]
        ]
        book_windows(connection, "art_groups", [IDS[1]], {})
        book_windows(connection, "windows", [IDS[2]], {})
        assert set(waiting_for(connection, ["windows"], IDS)) == {IDS[1]}
        assert waiting_for(connection, ["windows"], [IDS[0]]) == waiting_for(connection, ["art_groups"], IDS) == {}
        book_windows(connection, "windows", [IDS[1]], {})
        assert open_failures(connection, ["windows"]).empty
        assert connection.execute("SELECT count(*) FROM babylon_rl.window_failures").fetchone() == (1,)


def test_a_value_that_a_table_cannot_hold_fails_its_window_and_no_other(database):
    rejected = pd.DataFrame(
        [{"window_id": w, "trajectory_id": "t", "agent_id": "a", "reason": "r", "detail": "d"} for w in IDS[:3]]
    )
    books = pd.DataFrame(
        [
            {
                "window_id": w, "status": "ready", "reason": "", "agents": 1, "recorded": 1, "usable": 1, "rejected": 0,
                "reasons": {"x": math.nan if w == IDS[1] else 1}, "revision": "r",
            }
            for w in IDS[:3]
        ]
    )  # fmt: skip
    rows = WindowRows(books, tuple(IDS[:3]), {}, {"rejected_trajectories": rejected})
    with pytest.raises(DatabaseError, match=f"{IDS[1]}.*reasons"), database.connect() as connection:
        write_rows(connection, windows, rows)
    encoded = encode_rows(windows, rows)
    assert encoded.computed == [IDS[0], IDS[2]] == encoded.frame["window_id"].tolist()
    assert set(encoded.failed) == {IDS[1]} and "nan" in encoded.failed[IDS[1]].detail
    with database.connect() as connection:
        assert write_rows(connection, windows, encoded).written == 2
        for table in (windows, rejected_trajectories):
            assert read_frame(connection, current_rows(table))["window_id"].tolist() == [IDS[0], IDS[2]]
        assert set(waiting_for(connection, ["windows"], IDS)) == {IDS[1]}
