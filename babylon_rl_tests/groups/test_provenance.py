import msgspec
import pytest

from babylon_rl.errors import SettingsError
from babylon_rl.groups.provenance import (
    ADMITTED,
    LOSSES,
    Admission,
    Lineage,
    Provenance,
    admit_of,
    labels_admitted,
    loss_for,
    provenance_of,
)

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
    ("provenance", "days", "loss", "kind"),
    [
        (Provenance("on_policy"), 0, "importance_weighted", ""),
        (Provenance("stale", 8), 14, "importance_weighted", ""),
        (Provenance("stale", 9), 0, None, "stale"),
        (Provenance("on_policy"), 14.5, None, "stale_days"),
        (Provenance("foreign_model"), 14, "weighted_supervised", ""),
        (Provenance("foreign_model"), 20, None, "stale_days"),
        (Provenance("no_logprobs"), 0, "weighted_supervised", ""),
        (Provenance("no_text"), 0, None, "no_text"),
    ],
)
def test_each_label_enters_the_loss_that_is_valid_for_it_within_both_limits_of_staleness(provenance, days, loss, kind):
    ruling = loss_for(provenance, Admission(), days)
    assert (ruling.loss, ruling.kind) == (loss, kind) and bool(ruling.reason) is (loss is None)


def test_a_refusal_says_by_how_much():
    assert loss_for(Provenance("stale", 9), Admission()).reason == "stale(9): 9 updates behind, the limit is 8"
    assert loss_for(Provenance("on_policy"), Admission(), 20).reason == "stale: 20 days, the limit is 14"
    narrow = loss_for(Provenance("foreign_model"), Admission.of({"admit": ("on_policy", "stale")}))
    assert narrow.reason == "narrowed: foreign_model is not among the labels that admit names, on_policy, stale"
    assert "backend wandb" in loss_for(Provenance("no_logprobs"), Admission.of({}, "wandb")).reason


@pytest.mark.parametrize("backend", sorted(LOSSES))
@pytest.mark.parametrize("label", [label for labels in ADMITTED.values() for label in sorted(labels)] + ["no_text"])
@pytest.mark.parametrize("admit", [None, ("stale",), ("on_policy", "no_logprobs")])
def test_settings_and_backends_narrow_the_table_and_never_widen_it(backend, label, admit):
    recipe = {} if admit is None else {"admit": admit}
    loss = loss_for(Provenance(label, 1 if label == "stale" else 0), Admission.of(recipe, backend)).loss
    allowed = {loss for loss in LOSSES[backend] if label in ADMITTED[loss] and (admit is None or label in admit)}
    assert allowed == ({loss} if loss else set())


@pytest.mark.parametrize("named", [("on_policy", "nonsense"), ("no_text",), (), "on_policy"])
def test_a_label_that_is_unknown_or_that_no_loss_takes_cannot_be_asked_for(named):
    with pytest.raises(SettingsError, match="may name|names no labels"):
        labels_admitted(named)


def test_an_unknown_backend_takes_nothing():
    with pytest.raises(SettingsError, match="art-local, torch, wandb"):
        Admission.of({}, "somewhere")


def test_the_setting_is_a_list_separated_by_commas_and_empty_admits_what_the_table_does():
    assert admit_of(" stale, on_policy,stale ") == ("on_policy", "stale") and admit_of(" ") is msgspec.UNSET
    with pytest.raises(SettingsError, match="No loss may take trajectories labelled no_text"):
        admit_of("on_policy,no_text")
