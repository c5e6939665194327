"""What counts as new is what the snapshot would keep: the SQL that finds updates due agrees with what makes them."""

import random
from typing import NamedTuple
from unittest import mock

import msgspec
import pandas as pd
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows, replace_windows
from babylon_rl.database.tables import art_groups, scored_trajectories
from babylon_rl.errors import TrainingError
from babylon_rl.groups.admitting import labels_of
from babylon_rl.groups.baselines import Identity
from babylon_rl.groups.build import GroupSettings, build_group
from babylon_rl.groups.leaks import Leak
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import load_snapshot, make_snapshot
from babylon_rl.groups.trained_view import Group, decode_group
from babylon_rl.training.lineage import lineage_at, new_groups, state_before
from babylon_rl_tests.scoring import made
from babylon_rl_tests.training.rounds import OpenRun, due, make_due_updates, plant, window


@pytest.fixture
def opened(database, tmp_path) -> OpenRun:
    return OpenRun(database, tmp_path)


def without_values(database, window_id: str) -> None:
    """Take the values of the actions from a window's scores and group."""
    with database.connect() as connection:
        connection.execute(
            "UPDATE babylon_rl.scored_trajectories SET action_values = NULL WHERE window_id = %s", (window_id,)
        )
        connection.execute(
            """UPDATE babylon_rl.art_groups SET "group" = jsonb_set("group", '{members}', (
               SELECT coalesce(jsonb_agg(m || '{"action_values": null}'), '[]')
               FROM jsonb_array_elements("group"->'members') m)) WHERE window_id = %s""",
            (window_id,),
        )


@pytest.mark.parametrize("advantages", ["all_actions", "leave_one_out"])
def test_what_counts_as_new_is_what_the_snapshot_would_keep(database, tmp_path, advantages):
    opened = OpenRun(database, tmp_path, advantages=advantages, windows_per_update=1, stale_limit=0)
    stream = random.Random(1)
    for place in range(24):
        verbs = stream.choices(("BUY", "SELL", "HOLD"), k=3)
        players = stream.choices(("run@0", "other@3", str(tmp_path)), (3, 4, 1), k=3)
        plant(database, [window(place)], verbs, players)
        if place % 3 == 0:
            without_values(database, window(place))
    with database.connect() as connection:
        parent = state_before(connection, opened.run, window(24))
        new = new_groups(connection, opened.run, parent, window(24))
        rows = read_frame(connection, current_rows(art_groups))
        lineage = lineage_at(connection, opened.run, parent, window(24))
    groups = [decode_group(group) for group in rows[rows["status"] == "trainable"]["group"]]
    kept = make_snapshot(groups, "run", opened.run.recipe.as_json(), 0, lineage=lineage).window_ids
    assert tuple(new.digests) == kept and 3 < len(kept) < len(groups) == len(kept) + new.not_admitted


def made_again(database, window_id: str, **choices) -> None:
    """Build the window's group anew, from its stored scores, with other choices."""
    with database.connect() as connection:
        scored = read_frame(connection, current_rows(scored_trajectories, [window_id]))
        before = decode_group(read_frame(connection, current_rows(art_groups, [window_id]))["group"][0])
        said = {member.trajectory_id: (member.decisions[0].response, member.checkpoint) for member in before.members}
        runs = [
            made.trajectory(name, verb, window_id=window_id, calls=[made.call(name, verb, checkpoint=checkpoint)])
            for name, (verb, checkpoint) in said.items()
        ]
        recorded = made.recorded(*runs, window_id=window_id)
        row = build_group({"status": "ready", "reason": ""}, recorded, scored, **choices)
        replace_windows(connection, art_groups, [window_id], pd.DataFrame([row], dtype=object))


def judged(database, window_id: str, reward: str) -> None:
    """Make the window's scores those of a judge."""
    with database.connect() as connection:
        connection.execute(
            "UPDATE babylon_rl.scored_trajectories SET scorer = 'ruler', action_values = NULL, reward = CASE %s "
            "WHEN 'equal' THEN 0.5 ELSE rank END WHERE window_id = %s",
            (reward, window_id),
        )


ASIDE = {"verdict": "set_aside", "reason": "below its floor", "judge": "m"}


@pytest.mark.parametrize("seed", range(2))
def test_what_counts_as_new_is_what_the_snapshot_would_keep_however_groups_are_made(database, tmp_path, seed):
    opened = OpenRun(database, tmp_path, advantages="leave_one_out", windows_per_update=1, stale_limit=0)
    stream = random.Random(seed)
    for place in range(20):
        verbs = stream.choices(("BUY", "SELL", "HOLD"), k=4)
        plant(database, [window(place)], verbs, stream.choices(("run@0", "other@3"), (3, 1), k=4))
        if place % 2:
            judged(database, window(place), stream.choice(("equal", "rank")))
        made_again(
            database,
            window(place),
            verdict=stream.choice((None, ASIDE)),
            settings=GroupSettings(max_per_group=stream.choice((0, 2, 3)), seed=seed),
            tolerance=stream.choice((1e-6, 1e-3)),
            leaks=stream.choice((None, {f"{window(place)}-1": [Leak("a price", "105.3", 0)]})),
        )
    with database.connect() as connection:
        parent = state_before(connection, opened.run, window(20))
        new = new_groups(connection, opened.run, parent, window(20))
        rows = read_frame(connection, current_rows(art_groups))
        lineage = lineage_at(connection, opened.run, parent, window(20))
    groups = [decode_group(group) for group in rows[rows["status"] == "trainable"]["group"]]
    kept = make_snapshot(groups, "run", opened.run.recipe.as_json(), 0, lineage=lineage).window_ids
    assert tuple(new.digests) == kept and 3 < len(kept) < len(groups) == len(kept) + new.not_admitted


class BySide(NamedTuple):
    """A history in which agents differ by chance."""

    window_id: str
    stream: random.Random

    def at(self, window_id: str, scorer: str, version: str) -> Identity:
        names = [f"agent-{self.window_id}-{place}" for place in range(4)]
        return Identity({name: self.stream.gauss(0, 0.002) for name in names}, 5, None, 1.0, None, 0.0)


def drawn_freely(group: Group) -> Group:
    """The group as if its answers were drawn from all tokens, which is what a hosted service is sent."""
    return msgspec.structs.replace(
        group,
        members=[
            msgspec.structs.replace(
                member,
                action_values=None,
                decisions=[msgspec.structs.replace(one, choices=None) for one in member.decisions],
            )
            for member in group.members
        ],
    )


NARROWED = (msgspec.UNSET, ("on_policy",), ("stale",), ("on_policy", "stale"), ("foreign_model",), ("no_logprobs",))


@pytest.mark.parametrize("backend", ["torch", "wandb"])
@pytest.mark.parametrize("admit", NARROWED)
def test_what_counts_as_new_is_what_the_snapshot_would_keep_with_texts_and_both_limits(
    database, tmp_path, backend, admit
):
    recipe = {"stale_limit": 1, "stale_days": 1.0, "admit": admit, "windows_per_update": 1}
    opened = OpenRun(database, tmp_path, advantages="leave_one_out", **recipe)
    opened.run = msgspec.structs.replace(opened.run, backend=backend)
    checkpoints = ("run@0", "run@1", "run@2", "run@9", "other@3", "aside@1", "run@1,run@2")
    stream = random.Random(3)
    for place in range(44):
        verbs = stream.choices(("BUY", "SELL", "HOLD"), k=4)
        players = stream.choices(checkpoints, (1, 2, 3, 1, 2, 1, 1), k=4)
        choices = {
            "settings": GroupSettings(min_group_size=stream.choice((2, 3))),
            "history": BySide(window(place), stream),
            "tolerance": stream.choice((1e-6, 3e-4)),
        }
        without = [one for one in range(4) if stream.random() < 0.4]
        plant(database, [window(place)], verbs, players, texts=without, **choices)
    lineage = Lineage("run", {"run@0": 0, "run@1": 1, "run@2": 2, "run@9": 9}, 2, ("aside@1",))
    with database.connect() as connection:
        parent = msgspec.structs.replace(state_before(connection, opened.run, window(44)), step=2)
        with mock.patch("babylon_rl.training.lineage.lineage_at", return_value=lineage):
            new = new_groups(connection, opened.run, parent, window(44))
        rows = read_frame(connection, current_rows(art_groups))
    groups = [decode_group(group) for group in rows[rows["status"] == "trainable"]["group"]]
    try:
        settings = {**opened.run.recipe.as_json(), "backend": backend}
        snapshot = make_snapshot(map(drawn_freely, groups), "run", settings, 0, lineage=lineage)
        kept = snapshot.window_ids
    except TrainingError:
        kept = ()
    assert tuple(new.digests) == kept and len(groups) == len(kept) + new.not_admitted
    assert bool(kept) is (backend == "torch" or admit not in (("foreign_model",), ("no_logprobs",)))
    assert all(window_id >= window(43 - 24) for window_id in kept) and len(kept) < 25


def test_a_group_whose_judge_is_set_aside_counts_as_new_by_alphas_rewards(opened):
    opened.play(0, 1)
    for place in (0, 1):
        judged(opened.database, window(place), "equal")
    made_again(opened.database, window(0))
    made_again(opened.database, window(1), verdict=ASIDE)
    (said,) = due(opened)[1]
    assert said == "run: 1 of 2 new groups."


def test_a_group_that_is_refused_for_its_agents_is_not_new(opened):
    opened.play(0)
    with opened.database.connect() as connection:
        connection.execute("UPDATE babylon_rl.art_groups SET status = 'agent_bias'")
    assert due(opened)[1] == ["run: 0 of 2 new groups."]


def test_groups_of_which_no_loss_takes_a_member_are_told_and_never_ask_for_an_update(database, tmp_path):
    opened = OpenRun(database, tmp_path, admit=("on_policy", "stale"))
    opened.play(0, 1, 2, checkpoint="somebody-else")
    opened.play(3)
    (said,) = due(opened)[1]
    assert said.startswith("run: 1 of 2 new groups; of 3 more no loss takes a member")
    (row,) = opened.compute(window(3), window(3))
    assert not row["updated"] and row["reason"] == said.removeprefix("run: ").removesuffix(".")


def test_what_another_model_played_is_imitated_where_it_did_better_and_nothing_narrows_that(opened):
    opened.play(0, checkpoint="somebody-else")
    opened.play(1, texts=range(8))
    assert make_due_updates(opened) == 1
    with opened.database.connect() as connection:
        (checkpoint,) = opened.checkpoints().values()
        snapshot = load_snapshot(connection, checkpoint.snapshot_id)
    assert labels_of(m for group in snapshot.groups for m in group.members) == {
        "weighted_supervised": {"foreign_model": 2, "no_logprobs": 2}
    }
    assert all(member.advantage > 0 for group in snapshot.groups for member in group.members)
    assert snapshot.left_out == {"members not_better_than_baseline": 12}
