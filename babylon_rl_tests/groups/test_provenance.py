import pytest

from babylon_rl.groups.provenance import Lineage, Provenance, admitted, provenance_of

LINEAGE = Lineage("demo", {"demo@0": 0, "demo@3": 3, "demo@5": 5, "demo@6": 6}, current=5)


@pytest.mark.parametrize(
    ("recorded", "checkpoints", "label"),
    [
        ("logged", ["demo@5"], "on_policy"),
        ("logged", ["demo@3"], "stale(2)"),
        ("logged", ["demo@5", "demo@0"], "stale(5)"),
        ("logged", ["demo@6"], "foreign_model"),
        ("logged", ["gpt", "demo@5"], "foreign_model"),
        ("logged", [], "no_logprobs"),
        ("no_logprobs", ["demo@5"], "no_logprobs"),
        ("no_text", [], "no_text"),
    ],
)
def test_label_of_every_origin(recorded, checkpoints, label):
    assert str(provenance_of(recorded, checkpoints, LINEAGE)) == label


@pytest.mark.parametrize(
    ("provenance", "allowed"),
    [
        (Provenance("on_policy"), True),
        (Provenance("stale", 8), True),
        (Provenance("stale", 9), False),
        (Provenance("foreign_model"), False),
        (Provenance("no_logprobs"), False),
        (Provenance("no_text"), False),
    ],
)
def test_the_importance_weighted_loss_takes_recent_recordings_of_its_own_run_only(provenance, allowed):
    assert admitted(provenance, stale_limit=8) is allowed


def test_an_unknown_loss_takes_nothing():
    assert not admitted(Provenance("on_policy"), "imitation")
