"""The bench of snapshots: what it makes is of the size it says, what it saves is there, and a missed limit is said."""

import msgspec
import pytest

from babylon_rl.bench.snapshots import FIRST, MEMBERS, Measured, Snapshots, fill, made_group, work
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.groups.trained_view import digest_of


def test_made_groups_are_of_a_realistic_size_and_the_same_for_a_seed():
    group = made_group(FIRST, 0)
    assert digest_of(group) == digest_of(made_group(FIRST, 0)) != digest_of(made_group(FIRST, 1))
    for member in group.members:
        (decision,) = member.decisions
        assert 1200 <= len((decision.system_prompt + decision.user_prompt).encode()) <= 1900
        assert 200 <= len(decision.prompt_token_ids) <= 300


def test_all_of_it_is_saved_and_the_advantages_are_centred(database):
    fill(database.url, 6, 0)
    found = work(database.url, 6, 0)
    assert (found.trajectories, found.windows) == (6 * MEMBERS, 6) and found.json_bytes > 6 * MEMBERS * 2_500
    assert found.seconds > 0 and found.read_seconds > 0 and found.peak_bytes > 0
    with database.connect() as connection:
        (snapshot_id,) = connection.execute("SELECT snapshot_id FROM babylon_rl.snapshots").fetchone()
        snapshot = load_snapshot(connection, snapshot_id)
    assert any(member.advantage for group in snapshot.groups for member in group.members)


@pytest.mark.parametrize("missed", [{"seconds": 60.1}, {"peak_bytes": 1_000_000_001}])
def test_a_limit_that_is_missed_is_said(missed):
    good = Measured(trajectories=800, windows=100, seconds=60.0, cpu=1.0, server_cpu=1.0, peak_bytes=900_000_000,
                    read_seconds=1.0, json_bytes=10)  # fmt: skip
    bad = msgspec.structs.replace(good, trajectories=1000, **missed)
    assert Snapshots(seed=0, measured=[good]).reached and not Snapshots(seed=0, measured=[good, bad]).reached
    assert "MISSED" in Snapshots(seed=0, measured=[good, bad]).table()
    grown = Snapshots(seed=0, measured=[good, msgspec.structs.replace(good, trajectories=900, peak_bytes=900_100_000)])
    assert grown.bytes_a_trajectory == 1000 and grown.as_json()["reached"]
