"""`babylon-rl promote`, `rollback` and `history` as a person types them."""

import getpass
import json

import pytest

from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.lineages import checkpoint, group, snapshot, start

A, B = "run@1-aa", "run@2-aa"


@pytest.fixture
def typed(run, database, tmp_path):
    """Function that runs a command on two checkpoints; none is promoted."""
    with database.connect() as connection:
        start(connection)
        parent = "run@0"
        for hour, name in enumerate((A, B), start=1):
            (tmp_path / name).mkdir()
            (tmp_path / name / WEIGHTS_FILE).write_text(name)
            made_from = snapshot(connection, [group(f"2025-01-16T{hour:02}:00", ["ann", name], "on_policy")])
            weights = {"path": str(tmp_path / name), "weights_sha256": weights_digest(tmp_path / name)}
            parent = checkpoint(connection, name, parent, made_from, weights)

    def typed(*arguments: str, **environment: str):
        return run(*arguments, "--database", database.url, **environment)

    return typed


def test_a_promotion_and_the_way_back_are_booked_and_shown(typed):
    assert "Nothing was promoted yet" in typed("history").stdout
    refused = typed("promote", "run@1", "--why", "it trades better")
    assert refused.returncode == 1 and "Not promoted." in refused.stderr
    for name in ("run@1", "run@2"):  # the beginning of an id is enough
        done = typed("promote", name, "--why", "it trades better", "--despite-evidence")
        assert done.returncode == 0 and f"-> {name}-aa" in done.stdout
    assert f"{B} is served already" in typed("promote", B, "--why", "again", "--despite-evidence").stdout
    back = json.loads(typed("rollback", "--why", "it loses", "--who", "ann", "--json").stdout)
    assert (back["before"], back["after"], back["booked"]) == (B, A, True)
    shown = typed("history").stdout
    for said in ("rollback", "promotion", "it loses", "ann", "without evidence", getpass.getuser()):
        assert said in shown
    rows = json.loads(typed("history", "--json").stdout)
    assert [(row["kind"], row["before"], row["after"]) for row in rows] == [
        ("rollback", B, A), ("promotion", A, B), ("promotion", None, A)
    ]  # fmt: skip


def test_what_was_served_at_a_time_is_told(typed):
    typed("promote", A, "--why", "it trades better", "--despite-evidence")
    before = typed("history", "--at", "2025-01-01T00:00").stdout
    assert "nothing was promoted" in before and "No gateway" in before
    later = typed("history", "--at", "2099-01-01T02:00+02:00").stdout
    assert f"2099-01-01 00:00:00 UTC it was decided to serve {A}" in later
    asked = json.loads(typed("history", "--at", "2099-01-01T00:00", "--json").stdout)
    assert asked["decided"]["after"] == A and asked["answered"] == []
    assert "is not a time" in typed("history", "--at", "yesterday").stderr


def test_what_is_typed_wrong_is_answered_with_what_there_is(typed, tmp_path):
    for arguments, said in (
        (("promote", "run@9", "--why", "x"), "babylon-rl checkpoints"),
        (("promote", "run@", "--why", "x"), "Write more of its id"),
        (("promote", A, "--why", " ", "--despite-evidence"), "who decided it and why"),
        (("promote", A), "--why"),
        (("rollback", "--why", "x"), "nothing to go back from"),
    ):
        refused = typed(*arguments)
        assert refused.returncode != 0 and said in refused.stderr
    (tmp_path / A / WEIGHTS_FILE).write_text("others")
    assert "hash differs" in typed("promote", A, "--why", "x", "--despite-evidence").stderr


def test_a_failure_of_publishing_is_told_and_the_decision_stands(typed):
    done = typed(
        *("promote", A, "--why", "it trades better", "--despite-evidence"),
        BABYLON_RL_PUBLISH_URL="postgresql://nobody:secret@127.0.0.1:1/none",
    )
    assert done.returncode == 0 and f"nothing -> {A}" in done.stdout
    assert "Not published" in done.stderr and "secret" not in done.stderr
