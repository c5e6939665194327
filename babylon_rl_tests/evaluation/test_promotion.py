"""Promotion, rollback and what was served when, on planted checkpoints."""

from datetime import UTC, datetime, timedelta

import pytest

from babylon_rl.errors import ServingError, SettingsError
from babylon_rl.evaluation.promotion import promote_checkpoint, roll_back, standing
from babylon_rl.evaluation.promotion_history import history, in_short, served_at
from babylon_rl.training.runs import promoted
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.lineages import checkpoint, group, snapshot, start

A, B, C = "run@1-aa", "run@2-aa", "run@3-aa"


@pytest.fixture
def folders(database, tmp_path):
    """Three checkpoints whose weights lie in the folders."""
    with database.connect() as connection:
        start(connection)
        parent = "run@0"
        for hour, name in enumerate((A, B, C), start=1):
            (tmp_path / name).mkdir()
            (tmp_path / name / WEIGHTS_FILE).write_text(name)
            made_from = snapshot(connection, [group(f"2025-01-16T{hour:02}:00", ["ann", name], "on_policy")])
            weights = {"path": str(tmp_path / name), "weights_sha256": weights_digest(tmp_path / name)}
            parent = checkpoint(connection, name, parent, made_from, weights)
    return tmp_path


def promote(database, *names: str) -> None:
    for name in names:
        with database.connect() as connection:
            promote_checkpoint(connection, name, "ann", "it earns", despite_evidence=True)


def back(database, to: str | None = None, **more) -> str:
    with database.connect() as connection:
        return roll_back(connection, "ann", "it loses", to, **more).after


def test_each_rollback_goes_one_further_back_and_in_the_end_to_the_base_model(database, folders):
    promote(database, A, B, C)
    assert [back(database) for _ in range(3)] == [B, A, "run@0"]
    with pytest.raises(ServingError, match=r"Nothing was served before run@0"):
        back(database)


def test_what_was_taken_back_is_not_gone_back_to_when_something_else_was_promoted_since(database, folders):
    promote(database, A, B)
    assert back(database) == A
    promote(database, C)
    assert back(database) == A  # and not B, which was served in between


def test_a_rollback_over_several_counts_as_one_step(database, folders):
    promote(database, A, B, C)
    assert back(database, A) == A
    assert back(database) == "run@0"


def test_a_checkpoint_that_is_promoted_again_after_its_rollback_can_be_taken_back_again(database, folders):
    promote(database, A, B)
    back(database)
    promote(database, B)
    assert back(database) == A


def test_what_is_deleted_or_damaged_is_passed_over_and_named(database, folders):
    promote(database, A, B, C)
    (folders / B / WEIGHTS_FILE).write_text("others")
    with database.connect() as connection:
        made = roll_back(connection, "watch", "drawdown")
        row = promoted(connection)
    assert made.after == A and B in made.said and "hash differs" in made.said
    assert row is not None and row["kind"] == "rollback" and len(row["evidence"]["passed_over"]) == 1
    promote(database, C)
    with database.connect() as connection:
        connection.execute("UPDATE babylon_rl.checkpoints SET state = 'deleted' WHERE checkpoint_id = %s", (A,))
    assert back(database) == "run@0"


def test_the_way_back_is_refused_with_what_to_do_instead(database, folders):
    with pytest.raises(ServingError, match="the base model is served"):
        back(database)
    promote(database, A, B)
    for to, said in ((B, "is what is served"), (C, "babylon-rl promote run@3-aa")):
        with pytest.raises(ServingError, match=said):
            back(database, to)
    (folders / A / WEIGHTS_FILE).write_text("others")
    with pytest.raises(ServingError, match="hash differs"):
        back(database, A)
    with database.connect() as connection, pytest.raises(SettingsError, match="who decided it and why"):
        roll_back(connection, "ann", " ")


def test_an_experiments_word_stands_in_place_of_an_evaluation_and_is_kept(database, folders):
    with database.connect() as connection:
        promote_checkpoint(connection, A, "experiment", "it won", experiment_id="x-1", decided={"effect": 2.0})
        (one,) = history(connection)
    assert (one.experiment_id, one.evidence["experiment"]) == ("x-1", {"effect": 2.0})
    assert in_short(one.evidence) == "an experiment"


def test_a_rollback_keeps_the_evidence_of_both_and_names_what_it_took_back(database, folders):
    promote(database, A, B)
    back(database, evidence={"guardrail": "drawdown"}, experiment_id="x-2")
    with database.connect() as connection:
        latest, taken_back, _ = history(connection)
    assert latest.kind == "rollback" and latest.evidence["guardrail"] == "drawdown" and latest.experiment_id == "x-2"
    assert latest.evidence["took_back"] == taken_back.promotion_id and taken_back.evidence["despite_evidence"] is True


def deploy(database, role: str, name: str | None, state: str) -> datetime:
    with database.connect() as connection:
        row = connection.execute(
            """INSERT INTO babylon_rl.deployments (gateway, role, checkpoint_id, upstream, model, state, reason)
               VALUES ('http://127.0.0.1:8100', %s, %s, 'http://127.0.0.1:1/v1', %s, %s, 'said') RETURNING at""",
            (role, name, name, state),
        ).fetchone()
    assert row is not None
    return row[0]


def test_what_was_served_at_a_time_is_what_was_decided_and_what_really_answered(database, folders):
    before = datetime.now(UTC) - timedelta(hours=1)
    promote(database, A)
    first = deploy(database, "promoted", A, "served")
    promote(database, B)
    refused = deploy(database, "promoted", B, "refused")
    candidate = deploy(database, "candidate", C, "served")
    ended = deploy(database, "candidate", None, "withdrawn")
    with database.connect() as connection:
        nothing, at_first, at_refused, with_candidate, without = (
            served_at(connection, time) for time in (before, first, refused, candidate, ended)
        )
        latest, earlier = history(connection)
    assert nothing.decided is None and nothing.answered == []
    assert at_first.decided is not None and at_first.decided.after == A
    # B was decided and refused: A went on answering.
    assert at_refused.decided is not None and at_refused.decided.after == B
    assert [one.checkpoint_id for one in at_refused.answered] == [A]
    assert {one.role: one.checkpoint_id for one in with_candidate.answered} == {"promoted": A, "candidate": C}
    assert [one.role for one in without.answered] == ["promoted"]
    assert [one.state for one in latest.deployed] == ["refused"] and [d.state for d in earlier.deployed] == ["served"]


def test_what_stands_after_a_rollback_to_the_base_model_is_the_base_model_alone():
    rows = [("promotion", A), ("promotion", B), ("rollback", "run@0"), ("promotion", C)]
    assert standing([{"kind": kind, "to_checkpoint": to} for kind, to in rows]) == ["run@0", C]
