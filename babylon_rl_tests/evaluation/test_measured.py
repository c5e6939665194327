from babylon_rl.evaluation.measured import Entry, Measured, MeasuredSeed, entries, how_sure, measured_for
from babylon_rl.settings import REPOSITORY


def seed(number, promoted=True, unseen=(2.0, 1.0, 3.0)):
    return MeasuredSeed(seed=number, promoted=promoted, effect=(3.0, 2.0, 4.0), unseen=unseen, share=0.7)


def test_a_measurement_holds_for_its_model_and_plan_only():
    seeds = [seed(1), seed(2, unseen=(1.0, -1.0, 3.0)), seed(3, promoted=False, unseen=None)]
    among = [Entry(base_model="m", plan_digest="d", document="docs/learning.md", seeds=seeds)]
    assert measured_for("m", "other", among) is None and measured_for("other", "d", among) is None
    found = measured_for("m", "d", among)
    assert found == Measured(seeds=3, improved=2, unseen_improved=1, document="docs/learning.md")


def test_the_demo_says_how_many_seeds_were_measured_and_how_many_improved():
    measured = Measured(seeds=10, improved=9, unseen_improved=8, document="docs/learning.md")
    said = how_sure(measured, "m", 2, 1)
    assert "measured on 10 seeds: 9 improved" in said and "docs/learning.md" in said
    assert said.endswith("In this database: 2 seeds, 1 improved.")


def test_the_demo_says_how_to_measure_a_recipe_that_was_not():
    said = how_sure(None, "tiny", 1, 0)
    assert "not been measured" in said and "babylon-rl bench learning --model tiny" in said
    assert said.endswith("In this database: 1 seed, 0 improved.")


def test_what_the_package_comes_with_can_be_read_and_its_documents_are_there():
    assert all((REPOSITORY / entry.document).is_file() and entry.seeds for entry in entries())
