"""`babylon-rl checkpoints`, `lineage` and `forget` as a person types them, with all that can be typed wrong."""

import json

import pytest

from babylon_rl.training.runs import promote
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.lineages import checkpoint, group, snapshot, start

WINDOWS = [f"2025-01-16T{hour:02}:00" for hour in range(1, 4)]
NAMES = ["run@1-aa", "run@2-aa", "run@3-aa"]


@pytest.fixture
def typed(run, database, tmp_path):
    """Function that runs a command on three checkpoints, of which the second is promoted."""
    with database.connect() as connection:
        start(connection)
        parent = "run@0"
        for name, window in zip(NAMES, WINDOWS, strict=True):
            folder = tmp_path / "checkpoints" / name
            folder.mkdir(parents=True)
            (folder / WEIGHTS_FILE).write_text(name)
            made_from = snapshot(connection, [group(window, ["ann", name[-4:]], "on_policy")])
            weights = {"path": str(folder), "weights_sha256": weights_digest(folder)}
            parent = checkpoint(connection, name, parent, made_from, weights)
        promote(connection, "run", NAMES[1], "x", "it earns", {})

    def typed(*arguments: str, **environment: str):
        return run(*arguments, "--database", database.url, BABYLON_RL_KEEP_CHECKPOINTS="1", **environment)

    return typed


def test_checkpoints_are_listed_with_the_reason_why_each_stays(typed):
    done = typed("checkpoints")
    assert done.returncode == 0 and all(name in done.stdout for name in NAMES)
    for said in ("may go", "promoted: it is what is served", "the latest of its run", "1 of 3 may go"):
        assert said in done.stdout
    found = {one["checkpoint_id"]: one for one in json.loads(typed("checkpoints", "--json").stdout)}
    assert list(found) == NAMES and found[NAMES[0]]["why"] == [] and found[NAMES[0]]["bytes"] == len(NAMES[0])
    assert json.loads(typed("checkpoints", "--run", "other", "--json").stdout) == []


def test_a_run_without_checkpoints_is_told_by_its_name(typed):
    assert "of a training run 'other'" in typed("checkpoints", "--run", "other").stdout


def test_pruning_says_what_it_would_do_and_does_it_once_it_is_told_to(typed, tmp_path):
    dry = typed("checkpoints", "prune")
    assert (
        dry.returncode == 0 and "Nothing was changed" in dry.stdout and (tmp_path / "checkpoints" / NAMES[0]).is_dir()
    )
    assert "Checkpoints that would go: 1" in dry.stdout and f"{NAMES[1]}: promoted" in dry.stdout
    done = json.loads(typed("checkpoints", "prune", "--apply", "--json").stdout)
    assert done["applied"] and done["freed"] == len(NAMES[0]) and not (tmp_path / "checkpoints" / NAMES[0]).exists()
    shown = json.loads(typed("checkpoints", "show", "run@1", "--json").stdout)
    assert shown["state"] == "deleted" and shown["bytes"] == 0 and shown["why_it_stays"] == []
    refused = typed("serve", "--checkpoint", NAMES[0])
    assert refused.returncode == 1 and "train again from its snapshot" in refused.stderr
    # The chain is told as before.
    assert "deleted" in typed("lineage", NAMES[2]).stdout
    assert "Checkpoints that would go: 0" in typed("checkpoints", "prune").stdout


def test_pruning_at_the_service_asks_for_its_key(typed):
    refused = typed("checkpoints", "prune", "--hosted")
    assert refused.returncode == 2 and "WANDB_API_KEY" in refused.stderr


def test_a_checkpoint_is_shown_in_full_by_the_beginning_of_its_id(typed):
    done = typed("checkpoints", "show", "promoted")
    assert NAMES[1] in done.stdout and "0.0 trained" in done.stdout and "babylon-rl lineage" in done.stdout
    assert typed("checkpoints", "show", "run@").returncode == 1


def test_lineage_goes_down_to_trajectories_in_text_and_in_json(typed):
    short = typed("lineage", "run@3").stdout
    assert [line.split()[0] for line in short.splitlines() if line.startswith("run@")] == [*NAMES[::-1], "run@0"]
    assert "2 members of 2 agents: on_policy" in short and "base model tiny" in short and "-ann" not in short
    long = typed("lineage", "run@3", "--trajectories").stdout
    assert f"{WINDOWS[0]} {WINDOWS[0]}-ann ann: reward +0, advantage +0, on_policy; alpha 7" in long
    found = json.loads(typed("lineage", "promoted", "--trajectories", "--json").stdout)
    assert [len(one["trajectories"]) for one in found] == [2, 2, 0]
    assert found[0]["trajectories"][1]["calls"] == [f"{WINDOWS[1]}-{NAMES[1][-4:]}/0"]
    assert "trajectories" not in json.loads(typed("lineage", "promoted", "--json").stdout)[0]


def test_lineage_goes_up_from_a_trajectory(typed):
    said = typed("lineage", "--trajectory", f"{WINDOWS[1]}-ann").stdout
    assert f"{NAMES[1]} (step 2): trained on it, served now" in said
    assert f"{NAMES[2]} (step 3): descends from {NAMES[1]}" in said and NAMES[0] not in said
    found = json.loads(typed("lineage", "--trajectory", f"{WINDOWS[1]}-ann", "--json").stdout)
    assert [one["direct"] for one in found["checkpoints"]] == [True, False] and len(found["used"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("lineage",), 2, "Name a checkpoint"),
        (("lineage", "run@1", "--trajectory", "x"), 2, "Name a checkpoint"),
        (("lineage", "other"), 1, "There is no checkpoint 'other'"),
        (("lineage", "--trajectory", "other"), 1, "No trajectory 'other'"),
        (("forget", "other"), 1, "No agent 'other'"),
    ],
)
def test_what_is_not_there_is_told_with_where_to_look(typed, arguments, code, said):
    done = typed(*arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


def test_forgetting_lists_and_leaves_everything_as_it_is(typed, tmp_path):
    said = typed("forget", NAMES[1][-4:])
    assert said.returncode == 0 and "Nothing was deleted" in said.stdout
    found = json.loads(typed("forget", "ann", "--json").stdout)
    assert [one["checkpoint_id"] for one in found["checkpoints"]] == NAMES
    assert all((tmp_path / "checkpoints" / name).is_dir() for name in NAMES)
