"""Rows of `judge_calibration` for ranges of windows: the same whatever the range, and nothing from later windows."""

import pandas as pd
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import judge_calibration
from babylon_rl.database.window_rows import write_rows
from babylon_rl.errors import ScoringError
from babylon_rl.scoring import calibrated_windows
from babylon_rl.scoring.calibrated_windows import COLUMNS, calibrate_windows, floors_of
from babylon_rl.scoring.calibration import NO_JUDGE, SET_ASIDE, TRUSTED, UNPROVEN, Floors
from babylon_rl.settings import get_settings
from babylon_rl.windows import shift_window
from babylon_rl_tests.scoring.judged import judged_window

WINDOW = "2025-01-15T00:00"
FLOORS = Floors(agreement=0.0, repeat=0.3, least_windows=4)
IDS = [shift_window(WINDOW, place) for place in range(12)]
EMPTY, UNJUDGED = IDS[2], IDS[3]


def scored(window_ids, skill=0.8, digest="scores-1") -> pd.DataFrame:
    """Rows of `scored_trajectories` as the IO manager hands them over; one window has none, one was not judged."""
    rows = [
        row
        for w in window_ids
        if w != EMPTY
        for row in judged_window(w, 0, skill, **({"judge": None} if w == UNJUDGED else {}))
    ]
    return pd.DataFrame([{**row, "digest": f"{digest} {row['window_id']}"} for row in rows])


def calibrate(database, window_ids, frame=None, floors=FLOORS):
    found = calibrate_windows(database, window_ids, scored(window_ids) if frame is None else frame, floors)
    with database.connect() as connection:
        write_rows(connection, judge_calibration, found.rows)
    return found


def stored(database) -> list[dict]:
    with database.connect() as connection:
        frame = read_frame(connection, current_rows(judge_calibration))
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_every_window_has_a_row_also_one_without_a_judge_or_without_scores(database):
    found = calibrate(database, IDS)
    rows = {row["window_id"]: row for row in stored(database)}
    assert list(rows) == IDS and list(found.rows.frame.columns) == list(COLUMNS)
    assert [rows[w]["verdict"] for w in IDS] == [*[UNPROVEN] * 2, *[NO_JUDGE] * 2, UNPROVEN, *[TRUSTED] * 7]
    assert rows[EMPTY]["reason"] == "no run of this window is scored" and rows[EMPTY]["scores_digest"] is None
    assert "8 scored runs" in rows[UNJUDGED]["reason"]
    assert rows[UNJUDGED]["scores_digest"] == f"scores-1 {UNJUDGED}" and rows[UNJUDGED]["statistics"] is None
    last = rows[IDS[-1]]
    assert (last["judge"], last["runs"], last["windows"]) == ("judge-1 asked-1", 8, 10)
    assert last["agreement_low"] < last["agreement"] < last["agreement_high"] and last["noise"] > 0
    assert last["statistics"]["hindsight"]["agreement"] is not None
    assert found.courses.keys() == set(IDS) - {EMPTY, UNJUDGED} and len(found.courses[IDS[-1]]) == 10


def test_a_row_is_the_same_whatever_range_it_was_computed_in(database, new_database, _template):
    calibrate(database, IDS)
    together = stored(database)
    apart = new_database(template=_template)
    for part in (IDS[:1], IDS[1:5], *([w] for w in IDS[5:9]), IDS[9:]):
        calibrate(apart, part)
    assert stored(apart) == together
    # The windows after it stand in the table now, and change nothing.
    calibrate(apart, IDS[4:6])
    assert stored(apart) == together


def test_a_window_that_cannot_be_read_fails_alone_and_counts_with_the_row_that_stands(database):
    calibrate(database, IDS)
    before = stored(database)
    frame = scored(IDS)
    broken = frame["window_id"] == IDS[6]
    frame.loc[broken, "judge"] = pd.Series([{} for _ in range(int(broken.sum()))], index=frame.index[broken])
    found = calibrate(database, IDS, frame)
    assert list(found.rows.failed) == [IDS[6]] and "cannot be read" in found.rows.failed[IDS[6]].detail
    assert stored(database) == before


def test_another_way_of_asking_is_another_judge_and_starts_anew(database):
    calibrate(database, IDS[4:10])
    frame = scored(IDS[10:])
    frame["judge"] = [{**judge, "digest": "asked-2"} for judge in frame["judge"]]
    found = calibrate(database, IDS[10:], frame).rows.frame
    assert found["windows"].tolist() == [1, 2] and set(found["verdict"]) == {UNPROVEN}


def test_a_judge_that_guesses_is_set_aside_and_says_why(database):
    found = calibrate(database, IDS, scored(IDS, skill=0.0)).rows.frame.iloc[-1]
    assert found["verdict"] == SET_ASIDE and "set aside for alpha: " in found["reason"]
    assert "over 10 windows, floor" in found["reason"]


def test_windows_without_a_judge_ask_nothing_of_earlier_ones(database, monkeypatch):
    monkeypatch.setattr(calibrated_windows, "_earlier", lambda *_, **__: pytest.fail("earlier windows were read"))
    frame = scored(IDS)
    frame["judge"] = None
    assert set(calibrate(database, IDS, frame).rows.frame["verdict"]) == {NO_JUDGE}
    assert len(calibrate(database, IDS[:1], scored([EMPTY]).reindex(columns=frame.columns)).rows.frame) == 1


def test_stored_figures_that_cannot_be_read_say_what_to_do(database):
    calibrate(database, IDS[:2])
    with database.connect() as connection:
        connection.execute("UPDATE babylon_rl.judge_calibration SET statistics = '{}' WHERE window_id = %s", (IDS[0],))
    with pytest.raises(ScoringError, match=f"{IDS[0]} .*Materialize judge_calibration"):
        calibrate(database, IDS[1:2])


def test_the_floors_are_the_settings(monkeypatch):
    assert floors_of(get_settings()) == Floors(agreement=0.0, repeat=0.3, least_windows=10)
