import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from typer.testing import CliRunner

from babylon_rl.cli import app
from babylon_rl.database.retention import delete_superseded
from babylon_rl.errors import TrainingError
from babylon_rl.groups import rebuilding
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.rebuilding import Difference, rebuild_snapshot
from babylon_rl.groups.snapshot_listing import find_snapshot, list_snapshots, show_snapshot
from babylon_rl.groups.snapshots import Origin, build_snapshot, make_snapshot, save_snapshot
from babylon_rl.groups.stored import group_rows, sources_of, stream_trainable
from babylon_rl_tests.groups.test_snapshot_store import SETTINGS, two
from babylon_rl_tests.training.rounds import MIXED, OpenRun, plant, window

FIRST = f"{window(0)}-0"


@pytest.fixture
def opened(database, tmp_path):
    """A run with one update over three windows: one with a foreign member, one that has no spread once it is out."""
    opened = OpenRun(database, tmp_path, windows_per_update=2, dropout_target=12)
    opened.play(0)
    opened.play(1, verbs=MIXED)
    opened.play(2, verbs=("SELL", "HOLD", "HOLD"), checkpoint="gpt")
    opened.play(3, verbs=("HOLD", "HOLD", "HOLD"))
    opened.compute(window(0), window(3))
    return opened


def snapshot_id(opened):
    (checkpoint,) = opened.checkpoints().values()
    return checkpoint.snapshot_id


def rebuilt(opened):
    with opened.database.connect() as connection:
        return rebuild_snapshot(connection, snapshot_id(opened))


def change(opened, statement, **values):
    with opened.database.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")  # past the triggers that refuse it
        assert connection.execute(statement, values).rowcount


def test_an_update_is_made_again_to_the_same_id(opened):
    found = rebuilt(opened)
    assert found.equal and found.rebuilt_id == snapshot_id(opened) and found.differences == []
    with opened.database.connect() as connection:
        shown = show_snapshot(connection, found.snapshot_id)
    assert shown.left_out["members dropout"] > 0 and shown.settings["dropout"]["left_out"] > 0


def build(database, windows, refused, settings):
    """Id of the snapshot of the planted windows, as an update makes it that refuses these members."""
    with database.connect() as connection:
        sources = sources_of(group_rows(connection, windows))
        groups = [group for part in stream_trainable(connection, sources) for group in part]
        kept = [
            msgspec.structs.replace(
                group,
                members=[one for one in group.members if one.trajectory_id not in refused.get(group.window_id, ())],
            )
            for group in groups
        ]
        header = build_snapshot(
            connection,
            iter(kept),
            "run",
            settings,
            0,
            lineage=Lineage("run", {"run@0": 0}, 0),
            left_out={"members prompt_too_long": sum(map(len, refused.values()))},
            origin=Origin(windows=windows, sources=sources, refused=refused),
        )
        return header.snapshot_id


def test_members_that_the_base_model_refused_are_left_out_again(database):
    windows, players = [window(0), window(1)], ["run@0"] * len(MIXED)
    plant(database, windows, MIXED, players)
    whole = build(database, windows, {window(0): [f"{window(0)}-1"], window(1): [f"{window(1)}-0"]}, SETTINGS)
    with database.connect() as connection:
        assert rebuild_snapshot(connection, whole).equal
        shown = show_snapshot(connection, whole)
    assert shown.left_out == {"members prompt_too_long": 2} and shown.members == 2 * len(MIXED) - 2


def test_it_is_made_of_the_rows_that_were_current_then_also_after_the_clean_up(database):
    windows, players = [window(0), window(1)], ["run@0"] * len(MIXED)

    def age(days):
        with database.connect() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            for statement in (
                "UPDATE babylon_rl.art_groups SET created_at = created_at - %(d)s, "
                "superseded_at = superseded_at - %(d)s",
                "UPDATE babylon_rl.snapshots SET created_at = created_at - %(d)s",
            ):
                connection.execute(statement, {"d": timedelta(days=days)})

    plant(database, windows, MIXED, players)
    # Of the second window one member is left, which is none to learn from; the dropout counts it all the same.
    alone = [f"{window(1)}-{place}" for place in range(1, len(MIXED))]
    whole = build(database, windows, {window(1): alone}, {**SETTINGS, "dropout_target": 8})
    for scale in (2.0, 3.0):
        age(5)
        plant(database, windows, MIXED, players, scale=scale)
    age(5)
    deleted = delete_superseded(database, datetime.now(UTC) - timedelta(days=1), lambda *_: None)
    with database.connect() as connection:
        assert list_snapshots(connection)[0].windows == 1
        # Of both windows the first version stays: the one that was only looked at belongs to what went in.
        assert deleted["art_groups"] == 2 and rebuild_snapshot(connection, whole).equal


CHANGED = {
    "a row's text": (
        """UPDATE babylon_rl.art_groups SET "group" = jsonb_set("group", '{members,0,decisions,0,user_prompt}', '"X"')
           WHERE window_id = %(window)s""",
        {(None, "its row of art_groups was changed: it does not match its digest"), (0, "decisions[0].user_prompt")},
    ),
    "a stored group's number": (
        """UPDATE babylon_rl.snapshot_groups SET content = jsonb_set(content::jsonb, '{members,0,reward}', '0.77')::text
           WHERE window_id = %(window)s""",
        {(0, "reward")},
    ),
    "a row that is gone": (
        "DELETE FROM babylon_rl.art_groups WHERE window_id = %(window)s",
        {(None, "its row of art_groups is gone"), (None, "the window")},
    ),
    "a stored group that is gone": (
        "DELETE FROM babylon_rl.snapshot_groups WHERE window_id = %(window)s",
        {(None, "the window")},
    ),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_what_differs_is_named_by_window_member_and_field(database, tmp_path, changed):
    opened = OpenRun(database, tmp_path)
    opened.play(0, 1)
    opened.compute(window(0), window(1))
    statement, expected = CHANGED[changed]
    change(opened, statement, window=window(0))
    found = rebuilt(opened)
    assert not found.equal
    told = {(one.trajectory_id, one.field.partition(":")[0]) for one in found.differences if one.window_id}
    names = {(None if place is None else FIRST, field.partition(":")[0]) for place, field in expected}
    assert names <= told and {one.window_id for one in found.differences if one.window_id} == {window(0)}


def test_counts_that_come_out_otherwise_are_named(opened):
    change(opened, "UPDATE babylon_rl.snapshots SET made_from = jsonb_set(made_from, '{left_out,not_ready}', '7')")
    assert rebuilt(opened).differences == [Difference(field="left_out.not_ready", stored="-", rebuilt="7")]


def test_differences_beyond_the_most_that_are_told_are_counted(opened, monkeypatch):
    monkeypatch.setattr(rebuilding, "MOST", 2)
    change(opened, "UPDATE babylon_rl.snapshot_groups SET content = replace(content, 'You', 'We')")
    found = rebuilt(opened)
    assert len(found.differences) == 2 and found.more > 2 and not found.equal


def test_a_snapshot_without_its_origin_says_that_it_cannot_be_made_again(database, opened):
    snapshot = make_snapshot(two(), "run", SETTINGS, 1)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
        with pytest.raises(TrainingError, match="without what it was made from"):
            rebuild_snapshot(connection, snapshot.snapshot_id)


def test_each_group_names_the_rows_it_was_made_from(opened):
    with opened.database.connect() as connection:
        rows = connection.execute(
            """SELECT g.group_digest = a.group_digest, g.scores_digest IS NOT DISTINCT FROM a.scores_digest,
                      g.window_revision = a.window_revision, g.outcome_revision = s.outcome_revision
               FROM babylon_rl.snapshot_groups g JOIN babylon_rl.art_groups a USING (window_id)
               JOIN babylon_rl.scored_trajectories s USING (window_id)"""
        ).fetchall()
    assert rows and set(rows) == {(True, True, True, True)}


def test_a_short_id_is_enough_where_it_names_one(database, opened):
    whole = snapshot_id(opened)
    with database.connect() as connection:
        assert find_snapshot(connection, whole[:6]) == find_snapshot(connection, whole) == whole
        for short in ("", "x", "%", whole + "0"):
            with pytest.raises(TrainingError, match="No snapshot begins"):
                find_snapshot(connection, short)
        connection.execute(
            "INSERT INTO babylon_rl.snapshots (snapshot_id, training_run, content, window_ids) "
            "VALUES (%s, '', '', '{}')",
            (whole[:8] + "?",),
        )
        with pytest.raises(TrainingError, match="several"):
            find_snapshot(connection, whole[:8])


def test_the_commands_show_and_rebuild_and_say_by_their_exit_code(database, opened):
    def run(*words):
        return CliRunner().invoke(app, ["snapshot", *words, "--database", database.url])

    whole = snapshot_id(opened)
    listed = json.loads(run("list", "--json").stdout)
    assert [one["snapshot_id"] for one in listed] == [whole] and listed[0]["checkpoints"] == [*opened.checkpoints()]
    assert whole[:12] in run("list").stdout
    shown = json.loads(run("show", whole[:8], "--json").stdout)
    assert shown["members"] == shown["listed"]["members"] == sum(shown["labels"].values()) > 0
    assert "by label" in run("show", whole[:8]).stdout
    same = run("rebuild", whole[:8])
    assert same.exit_code == 0 and "Equal" in same.stdout
    change(opened, "UPDATE babylon_rl.snapshot_groups SET content = replace(content, 'You', 'We') WHERE place = 0")
    other = run("rebuild", whole[:8])
    assert other.exit_code == 1 and "damaged" in other.stdout
    assert f"{window(0)}-1: decisions[0].system_prompt: stored We trade" in other.stdout
    assert json.loads(run("rebuild", whole[:8], "--json").stdout)["equal"] is False
    with database.connect() as connection:
        assert [one.snapshot_id for one in list_snapshots(connection)] == [whole]
