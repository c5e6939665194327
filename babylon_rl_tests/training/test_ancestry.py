"""Lineage both ways over planted chains: every checkpoint, trajectory and branch is told, in either format."""

import pytest

from babylon_rl.commands.forget import lines
from babylon_rl.errors import TrainingError
from babylon_rl.training.ancestry import chain, trajectories, users, with_trajectory
from babylon_rl.training.forgetting import what_rests_on
from babylon_rl.training.retention import find_checkpoint
from babylon_rl.training.runs import promote
from babylon_rl_tests.training.lineages import ORIGIN, checkpoint, group, snapshot, start

W = [f"2025-01-15T{hour:02}:00" for hour in range(6)]


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        start(connection)
        yield connection
        connection.rollback()


@pytest.fixture(params=[1, 2], ids=["format 1", "format 2"])
def tree(connection, request) -> dict[str, str]:
    """run@0 - run@1 - run@2-aa - run@3 (promoted), and the branch run@1 - run@2-bb; snapshots by checkpoint."""
    made = {
        "run@1-aa": [group(W[0], ["ann", "bob"], "on_policy", calls=2), group(W[1], ["ann", "cid"], "stale(1)")],
        "run@2-aa": [group(W[2], ["bob", "cid"])],
        "run@2-bb": [group(W[2], ["bob", "dan"])],
        "run@3-aa": [group(W[3], ["cid", "eve"])],
    }
    parents = {"run@1-aa": "run@0", "run@2-aa": "run@1-aa", "run@2-bb": "run@1-aa", "run@3-aa": "run@2-aa"}
    snapshots = {name: snapshot(connection, groups, request.param) for name, groups in made.items()}
    for name, made_from in snapshots.items():
        checkpoint(connection, name, parents[name], made_from)
    promote(connection, "run", "run@3-aa", "an operator", "it earns", {})
    return snapshots


def test_a_chain_goes_back_to_the_base_model_with_what_each_update_was_made_of(connection, tree):
    found = chain(connection, "run@3-aa")
    assert [one.checkpoint_id for one in found] == ["run@3-aa", "run@2-aa", "run@1-aa", "run@0"]
    first, base = found[2], found[3]
    assert [(one.label, one.members, one.agents) for one in first.members] == [("on_policy", 2, 2), ("stale(1)", 2, 2)]
    assert (first.windows, first.snapshot_id, first.snapshot_code) == (W[:2], tree["run@1-aa"], "0.0 made")
    assert first.job_id and first.code_version == "0.0 trained" and found[0].promoted and not first.promoted
    assert found[1].members[0].label == "unlabelled"
    assert base.snapshot_id is None and base.members == [] and base.windows == []


def test_a_snapshot_is_told_down_to_scores_revisions_and_calls(connection, tree):
    found = list(trajectories(connection, tree["run@1-aa"]))
    assert [one.trajectory_id for one in found] == [f"{W[0]}-ann", f"{W[0]}-bob", f"{W[1]}-ann", f"{W[1]}-cid"]
    bob = found[1]
    assert (bob.reward, bob.advantage, bob.scorer, bob.scorer_version) == (0.1, 0.5, "alpha", "7")
    assert bob.calls == [f"{W[0]}-bob/0", f"{W[0]}-bob/1"]
    stored = (bob.group_digest, bob.scores_digest, bob.window_revision, bob.outcome_revision)
    parts = connection.execute("SELECT count(*) FROM babylon_rl.snapshot_groups").fetchone()[0]
    assert stored == (ORIGIN if parts else (None,) * 4)


def test_a_trajectory_is_told_up_to_every_checkpoint_directly_and_through_descent(connection, tree):
    (used,) = with_trajectory(connection, f"{W[1]}-cid")
    assert used.snapshot_id == tree["run@1-aa"] and used.label == "stale(1)"
    found = users(connection, {used.snapshot_id})
    assert [(one.checkpoint_id, one.direct, one.through) for one in found] == [
        ("run@1-aa", True, "run@1-aa"), ("run@2-aa", False, "run@1-aa"), ("run@2-bb", False, "run@1-aa"),
        ("run@3-aa", False, "run@1-aa"),
    ]  # fmt: skip
    assert [one.checkpoint_id for one in found if one.served] == ["run@3-aa"]
    # In both branches, once each.
    assert {one.snapshot_id for one in with_trajectory(connection, f"{W[2]}-bob")} == {
        tree["run@2-aa"], tree["run@2-bb"]
    }  # fmt: skip
    assert with_trajectory(connection, f"{W[2]}-bo") == []


def test_what_is_direct_is_told_so_also_where_an_ancestor_used_it_too(connection, tree):
    found = users(connection, set(tree.values()))
    assert [one.checkpoint_id for one in found] == sorted(tree) and all(one.direct for one in found)


def test_forgetting_an_agent_names_all_that_rests_on_it_and_deletes_nothing(connection, tree):
    connection.execute(
        """INSERT INTO babylon_rl.checkpoint_evaluations (window_id, candidate, baseline, split, design, windows,
           effect, low, high, candidate_pnl, baseline_pnl, decision, reason, digest)
           SELECT %s, c, 'run@0', 'test', 'x', 1, 0, 0, 0, 0, 0, 'keep', 'x', 'x' FROM unnest(%s::text[]) c""",
        (W[5], ["run@2-bb", "run@3-aa"]),
    )
    count = "SELECT (SELECT count(*) FROM babylon_rl.snapshots), (SELECT count(*) FROM babylon_rl.checkpoints)"
    before = connection.execute(count).fetchone()
    found = what_rests_on(connection, "dan")
    assert found.gateway == {}
    assert found.trained == [f"{W[2]}-dan"] and found.windows == [W[2]]
    assert found.snapshots == {tree["run@2-bb"]: 1}
    assert [one.checkpoint_id for one in found.checkpoints] == ["run@2-bb"] and found.promoted == []
    assert [one.candidate for one in found.evaluations] == ["run@2-bb"]
    everyone = what_rests_on(connection, "ann")
    assert [one.checkpoint_id for one in everyone.checkpoints] == sorted(tree)
    assert [one.checkpoint_id for one in everyone.promoted] == ["run@3-aa"]
    assert everyone.commands[0] == f"babylon-rl rescore --from {W[0]} --to {W[1]}" and W[3] in everyone.commands[1]
    assert what_rests_on(connection, "nobody").trajectories == [] and what_rests_on(connection, "an").checkpoints == []
    assert connection.execute(count).fetchone() == before


def test_forgetting_counts_what_the_gateway_holds_of_an_agent_that_was_never_scored(connection):
    connection.execute(
        """INSERT INTO babylon_rl.gateway_trajectories (trajectory_id, key_id, agent_id, state, started)
           SELECT 't-' || agent, 'k', agent, 'open', '{}' FROM unnest(ARRAY['zoe', 'other']) agent"""
    )
    connection.execute(
        """INSERT INTO babylon_rl.gateway_steps (trajectory_id, step_number, content, taken_at)
           SELECT name, number, '{}', now() FROM unnest(ARRAY['t-zoe', 't-other']) name, generate_series(0, 1) number"""
    )
    found = what_rests_on(connection, "zoe")
    assert found.gateway == {"gateway_trajectories": 1, "gateway_steps": 2} and found.trajectories == []
    (told,) = [line for line in lines(found) if "gateway" in line]
    assert "1 rows of gateway_trajectories, 2 rows of gateway_steps" in told


def test_the_beginning_of_an_id_names_a_checkpoint_where_it_is_only_one_ones(connection, tree):
    checkpoint(connection, "run@30-aa", "run@3-aa", None)
    for named, meant in {
        "promoted": "run@3-aa", "run@3": "run@3-aa", "run@1": "run@1-aa", "run@2-b": "run@2-bb", "run@0": "run@0"
    }.items():  # fmt: skip
        assert find_checkpoint(connection, named).checkpoint_id == meant
    with pytest.raises(TrainingError, match="run@2-aa, run@2-bb. Write more"):
        find_checkpoint(connection, "run@2")
    with pytest.raises(TrainingError, match="There is no checkpoint 'other'"):
        find_checkpoint(connection, "other")
