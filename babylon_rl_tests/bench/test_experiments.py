"""The measurement of what decides experiments: what counts as reached, and what the command says."""

import json

import msgspec
import pytest
from typer.testing import CliRunner

from babylon_rl.bench import commands, experiments
from babylon_rl.bench.experiments import ALIKE, Alike, Experiments, Planted, measure_alike

GOOD = Experiments(
    seed=3,
    simulations=10_000,
    alike=[Alike(name="fat tails", simulations=10_000, promoted=0.01, harmed=0.02, plain=0.3)],
    planted=[
        Planted(name="normal", simulations=2_000, effect=0.2, hours=318, plain_hours=142, power=0.85, harm=0.84),
    ],
    family=0.005,
    family_undeflated=0.09,
    ratio_false=0.004,
    ratio_needed=(1035, 2072),
    rare_losses={20: 0.02, 1_000: 0.84},
)


def changed(**fields):
    return msgspec.structs.replace(GOOD, **fields)


@pytest.mark.parametrize(
    "missed",
    [
        changed(alike=[msgspec.structs.replace(GOOD.alike[0], promoted=0.051)]),
        changed(alike=[msgspec.structs.replace(GOOD.alike[0], harmed=0.051)]),
        changed(planted=[msgspec.structs.replace(GOOD.planted[0], power=0.79)]),
        changed(family=0.06),
        changed(ratio_false=0.02),
    ],
)
def test_one_figure_that_is_missed_ends_the_command_with_1(missed, monkeypatch):
    assert GOOD.reached and not missed.reached
    monkeypatch.setattr(experiments, "measure_experiments", lambda seed, simulations, say: missed)
    assert CliRunner().invoke(commands.app, ["experiments"]).exit_code == 1


def test_the_command_prints_the_tables_and_as_json_all_figures(monkeypatch):
    monkeypatch.setattr(experiments, "measure_experiments", lambda seed, simulations, say: GOOD)
    told = CliRunner().invoke(commands.app, ["experiments"])
    assert told.exit_code == 0
    assert "| fat tails | 1.00% | 2.00% | 30.0% |" in told.stdout
    assert "| normal | 0.2 | 318 h | 85.0% | 84.0% | 142 h |" in told.stdout
    assert "84.0% (one in 1000 h)" in told.stdout
    figures = json.loads(CliRunner().invoke(commands.app, ["experiments", "--json"]).stdout)
    assert figures["reached"] and figures["ratio_needed"] == [1035, 2072] and figures["alike"][0]["promoted"] == 0.01


def test_a_row_depends_on_its_seed_and_on_nothing_that_was_simulated_before():
    name = "one week"
    first = measure_alike(name, ALIKE[name], 5, 100)
    measure_alike("fat tails", ALIKE["one week"], 5, 100)
    assert measure_alike(name, ALIKE[name], 5, 100) == first
