"""The rows that benches measure on: of the stated size, readable by ours and by the first system's way."""

import pandas as pd

from babylon_rl.bench.first_system import SCORES, score_as_it_did
from babylon_rl.bench.made_rows import fill_copies, fill_recorded, scored_frame
from babylon_rl.bench.memory import cases
from babylon_rl.bench.reading import score_and_write
from babylon_rl.database.history import encode_windows
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
IDS = [shift_window(FIRST, hours) for hours in range(2)]
SIZE = 'SELECT avg(length("stepsJson")) FROM trajectories'


def test_large_rows_are_scored_by_ours_and_by_the_first_systems_way(database):
    with database.connect() as connection:
        fill_recorded(connection, IDS, 10)
        connection.execute(SCORES)
        assert 22_000 < connection.execute(SIZE).fetchone()[0] < 29_000
    assert score_and_write(database, IDS) == score_as_it_did(database.url, IDS) == 10


def test_the_servers_copies_stand_evenly_in_their_windows_and_are_scored(database):
    with database.connect() as connection:
        fill_copies(connection, FIRST, 2, 10, 1)
        assert 700 < connection.execute(SIZE).fetchone()[0] < 1_500
        by_window = connection.execute('SELECT "windowId", count(*) FROM trajectories GROUP BY 1 ORDER BY 1').fetchall()
    assert by_window == [(IDS[0], 5), (IDS[1], 5)]
    assert score_and_write(database, IDS) == 10
    assert [case.windows for case in cases(1.0)] == [2_000, 2_000, 100, 1]


def test_made_scores_are_about_a_kilobyte_and_the_same_for_the_same_seed():
    frames = [scored_frame(IDS, 50, seed=3) for _ in range(2)]
    pd.testing.assert_frame_equal(*frames)
    (part,) = encode_windows(scored_trajectories, IDS, frames[0]).parts
    sizes = [len(row) for _, rows in part.windows.values() for row in rows]
    assert 900 < sum(sizes) / len(sizes) < 1_500
