import hashlib
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import psycopg
import pytest

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshots import (
    build_snapshot,
    load_header,
    load_snapshot,
    make_snapshot,
    save_snapshot,
    stream_groups,
)
from babylon_rl.groups.trained_view import Decision, Group, Member, canonical_json, digest_of

SETTINGS = {"advantages": "leave_one_out", "learning_rate": 5e-4}
CENTRED = {**SETTINGS, "advantages": "leave_one_out_action_centred", "minibatches": 3}
PARTS = ("snapshots", "snapshot_groups", "snapshot_members")


def plain_group(hour, rewards, day=5, prompt=""):
    """A group that depends on no scorer, so that its digest stays."""
    window_id, own = f"2026-01-{day:02d}T{hour:02d}:00", []
    for place, reward in enumerate(rewards):
        decision = Decision(
            call_id=f"{window_id}-{place}-call", system_prompt="You trade.",
            user_prompt=f"{window_id}-{place}-call{prompt}", response=("BUY", "SELL", "HOLD")[place % 3],
            token_ids=[4, 2], logprobs=[-0.7, 0.0], prompt_token_ids=[1], choices=["BUY", "SELL", "HOLD"],
            temperature=1.0, top_p=1.0, exploration=0.1,
        )  # fmt: skip
        own.append(
            Member(trajectory_id=f"{window_id}-{place}", agent_id=f"agent-{place}", reward=reward, advantage=0.0,
                   checkpoint="run@0", decisions=[decision], action_values=[reward, -reward, 0.0])
        )  # fmt: skip
    return Group(window_id=window_id, scorer="alpha", scorer_version="1", members=own)


def two():
    return [plain_group(10, [0.5, -0.5, 0.25]), plain_group(11, [0.125, 0.5, -0.25])]


def random_batch():
    """Groups whose numbers are of all sizes, with characters that encoders write in different ways."""
    chance = random.Random(1)
    return [
        plain_group(hour, [chance.gauss(0, 1) * 10.0 ** chance.randint(-30, 30) for _ in range(5)],
                    prompt=" é \u2028 \x7f \ud83d \U0001f600 </b> \" \\")
        for hour in range(12)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("advantages", "snapshot_id"),
    [
        ("leave_one_out", "d89ee752183043cee5e949dbcb618cd52f2bb996b86404ec776e282888f94ff4"),
        ("all_actions", "5f93164764de10bbafd2d62f7f3932ef0fa19b35f10b1e319a5f1c61e440b8e3"),
    ],
)
def test_what_is_stored_without_baselines_and_dropout_keeps_its_name(advantages, snapshot_id):
    """Digests that stand in databases; training goes on from them."""
    assert digest_of(two()[0]) == "5d182b016c435cef70552cbb6c2908b00c78ab79ac60aa4a1d98211b05455821"
    assert make_snapshot(two(), "run", {"advantages": advantages}, 1).snapshot_id == snapshot_id


@pytest.mark.parametrize("settings", [SETTINGS, CENTRED, {**SETTINGS, "advantages": "all_actions"}])
def test_the_id_is_the_same_in_any_order_of_groups_and_members_made_at_once_or_as_it_is_saved(database, settings):
    expected = make_snapshot(random_batch(), "run", settings, 7)
    for seed in range(3):
        chance, groups = random.Random(seed), random_batch()
        chance.shuffle(groups)
        groups = [msgspec.structs.replace(g, members=chance.sample(g.members, len(g.members))) for g in groups]
        assert make_snapshot(groups, "run", settings, 7) == expected
        with database.connect() as connection:
            header = build_snapshot(connection, iter(groups), "run", settings, 7)
            assert header == load_header(connection, expected.snapshot_id)
    with database.connect() as connection:
        assert load_snapshot(connection, expected.snapshot_id) == expected


IN_A_PROCESS = """
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl_tests.groups.test_snapshot_store import CENTRED, random_batch
print(make_snapshot(random_batch(), "run", {**CENTRED, "dropout_target": 20}, 7, left_out={"a": 1, "b": 2}).snapshot_id)
"""


def test_the_id_is_the_same_in_every_process_whatever_its_hashes_and_language():
    def run(**changed):
        told = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **changed}
        return subprocess.run([sys.executable, "-c", IN_A_PROCESS], env=told, check=True, stdout=subprocess.PIPE).stdout

    found = {run(PYTHONHASHSEED="1", LC_ALL="C"), run(PYTHONHASHSEED="2", LC_ALL="C.UTF-8", TZ="Asia/Tokyo")}
    here = make_snapshot(random_batch(), "run", {**CENTRED, "dropout_target": 20}, 7, left_out={"b": 2, "a": 1})
    assert {text.decode().strip() for text in found} == {here.snapshot_id}


def rows(connection):
    return [
        connection.execute(psycopg.sql.SQL("SELECT t.*, t.xmin::text FROM babylon_rl.{} t ORDER BY 1, 2").format(
            psycopg.sql.Identifier(name))).fetchall()
        for name in PARTS
    ]  # fmt: skip


def test_a_stored_snapshot_comes_back_the_same_and_a_second_save_changes_nothing(database):
    snapshot = make_snapshot(two(), "run", SETTINGS, 1)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
        assert load_snapshot(connection, snapshot.snapshot_id) == snapshot
        before = rows(connection)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
        build_snapshot(connection, two(), "run", SETTINGS, 1)
        assert rows(connection) == before and [len(part) for part in before] == [1, 2, 6]


def test_each_group_and_member_stands_in_a_row_of_its_own(database):
    labelled = two()
    labelled[0] = msgspec.structs.replace(
        labelled[0],
        members=[
            msgspec.structs.replace(labelled[0].members[0], label="stale(2)"),
            *labelled[0].members[1:],
        ],
    )
    snapshot = make_snapshot(labelled, "run", SETTINGS, 1)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
        groups = connection.execute(
            "SELECT place, window_id, content, content_sha256 FROM babylon_rl.snapshot_groups ORDER BY place"
        ).fetchall()
        members = connection.execute(
            "SELECT window_id, trajectory_id, agent_id, label, loss, reward, advantage "
            "FROM babylon_rl.snapshot_members ORDER BY 1, 2"
        ).fetchall()
    texts = [canonical_json(group) for group in snapshot.groups]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    windows = snapshot.window_ids
    assert groups == [(i, windows[i], texts[i], digests[i]) for i in range(2)]
    assert json.loads(snapshot.content)["groups"] == [list(pair) for pair in zip(windows, digests, strict=True)]
    assert members == [
        (group.window_id, m.trajectory_id, m.agent_id, "stale(2)" if m.label == "stale(2)" else None,
         "importance_weighted", m.reward, m.advantage)
        for group in snapshot.groups
        for m in group.members
    ]  # fmt: skip


def test_a_snapshot_whose_groups_stand_in_its_header_is_read_as_ever(database):
    settings = {"advantages": "leave_one_out"}
    snapshot = make_snapshot(two(), "run", settings, 1)
    content = canonical_json(
        {"format": 1, "training_run": "run", "settings": settings, "seed": 1, "groups": snapshot.groups, "left_out": {}}
    )
    old = "989190535467cc65ab2c0f0d1b5396248306a7d69140676ae5c5d036ef322681"
    assert hashlib.sha256(content.encode()).hexdigest() == old
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO babylon_rl.snapshots (snapshot_id, training_run, content, window_ids) VALUES (%s, %s, %s, %s)",
            (old, "run", content, list(snapshot.window_ids)),
        )
        header = load_header(connection, old)
        assert (header.snapshot_id, header.groups, header.window_ids) == (old, 2, snapshot.window_ids)
        assert list(stream_groups(connection, old)) == list(snapshot.groups)
        assert load_snapshot(connection, old).groups == snapshot.groups


DAMAGE = {
    "the header": "UPDATE babylon_rl.snapshots SET content = replace(content, 'run', 'ran')",
    "a group": "UPDATE babylon_rl.snapshot_groups SET content = replace(content, 'BUY', 'SELL') WHERE place = 1",
    "a group's window": "UPDATE babylon_rl.snapshot_groups SET window_id = '2026-01-05T12:00' WHERE place = 1",
    "a group is gone": "DELETE FROM babylon_rl.snapshot_groups WHERE place = 1",
    "a group too many": """INSERT INTO babylon_rl.snapshot_groups (snapshot_id, place, window_id, content,
        content_sha256) SELECT snapshot_id, 9, window_id, content, content_sha256 FROM babylon_rl.snapshot_groups
        WHERE place = 1""",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_missing_snapshot_is_never_trained_on(database, damage):
    snapshot = make_snapshot(two(), "run", SETTINGS, 1)
    with database.connect() as connection:
        with pytest.raises(TrainingError, match="no snapshot"):
            list(stream_groups(connection, snapshot.snapshot_id))
        save_snapshot(connection, snapshot)
        connection.execute("SET LOCAL session_replication_role = replica")  # past the trigger that refuses it
        connection.execute(DAMAGE[damage])
        for read in (load_snapshot, lambda *given: list(stream_groups(*given))):
            with pytest.raises(TrainingError, match="damaged"):
                read(connection, snapshot.snapshot_id)


@pytest.mark.parametrize(
    ("table", "column"), [("snapshots", "training_run"), ("snapshot_groups", "content"), ("snapshot_members", "label")]
)
def test_no_part_of_a_snapshot_can_be_changed(database, table, column):
    with database.connect() as connection:
        save_snapshot(connection, make_snapshot(two(), "run", SETTINGS, 1))
    statement = psycopg.sql.SQL("UPDATE babylon_rl.{} SET {} = 'other'").format(
        psycopg.sql.Identifier(table), psycopg.sql.Identifier(column)
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="immutable"), database.connect() as connection:
        connection.execute(statement)


def test_a_snapshot_goes_with_its_parts(database):
    with database.connect() as connection:
        save_snapshot(connection, make_snapshot(two(), "run", SETTINGS, 1))
        connection.execute("DELETE FROM babylon_rl.snapshots")
        assert rows(connection) == [[], [], []]


def test_a_trajectory_that_is_in_a_group_twice_is_refused():
    group = two()[0]
    doubled = msgspec.structs.replace(group, members=[*group.members, group.members[0]])
    with pytest.raises(TrainingError, match="twice"):
        make_snapshot([doubled], "run", SETTINGS, 1)


def peak_bytes(database, many):
    """Most memory while so many groups of half a megabyte each become a snapshot and are read back."""

    def groups():
        for place in range(many):
            yield plain_group(place % 24, [0.1 * place, -0.5], day=6 + place // 24, prompt="x" * 250_000)

    with database.connect() as connection:
        tracemalloc.start()
        header = build_snapshot(connection, groups(), "run", CENTRED, 1)
        assert sum(len(group.members) for group in stream_groups(connection, header.snapshot_id)) == 2 * many
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_memory_holds_no_texts_of_the_batch(database):
    peak_bytes(database, 12)  # what is imported on the way
    assert abs(peak_bytes(database, 72) - peak_bytes(database, 36)) < 1_000_000
