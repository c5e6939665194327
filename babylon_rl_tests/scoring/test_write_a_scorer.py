"""docs/write-a-scorer.md: its example is under 40 lines, its test passes, and the command line scores with it."""

import json
import os
import re
import subprocess
import sys

import pytest

from babylon_rl.scoring import seam
from babylon_rl.scoring.scorers import score_window, scorer_of
from babylon_rl.settings import REPOSITORY, Settings
from babylon_rl_tests.commands.played import FIRST, play
from babylon_rl_tests.scoring import made

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "write-a-scorer.md").read_text(), re.DOTALL)
EXAMPLE, FACTORY, TEST = BLOCKS


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example as a user's module, registered for this test alone."""
    (tmp_path / "my_scorers.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(seam, "_REGISTERED", dict(seam._REGISTERED))
    yield scorer_of("frugal", Settings(scorer_modules="my_scorers"))
    sys.modules.pop("my_scorers")


def test_the_example_is_short():
    assert len(EXAMPLE.splitlines()) < 40


def test_the_example_scores_a_window_and_passes_the_documents_own_test(example):
    own: dict = {}
    exec(TEST, own)
    own["test_fees_are_counted_three_times"]()
    frame = score_window(made.recorded(made.trajectory("a", balance=0.0, verb="HOLD")), made.outcomes(), example)
    assert frame.loc[0, "provenance"] == "no_capital"
    assert frame.loc[0, "scorer_settings"] == {"fee_weight": 3.0}


def test_the_documents_factory_makes_a_scorer_from_the_settings(example, tmp_path):
    (tmp_path / "fee_weight").write_text("1.5")
    names: dict = {}
    exec("import functools\n" + EXAMPLE.partition("register(")[0] + FACTORY.replace('"frugal")', '"frugal-2")'), names)
    made_one = scorer_of("frugal-2", Settings(home=tmp_path))
    assert (made_one.version, made_one.settings) == ("2", {"fee_weight": 1.5})


def test_the_command_line_scores_with_a_module_on_the_path(database, tmp_path):
    play(database, tmp_path, agents=3)
    (tmp_path / "my_scorers.py").write_text(EXAMPLE)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    own = {"PYTHONPATH": path, "BABYLON_RL_SCORER_MODULES": "my_scorers", "BABYLON_RL_HOME": str(tmp_path)}
    command = ["-m", "babylon_rl.cli", "score", "--window", FIRST, "--scorer", "frugal", "--json"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, "--database", database.url],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["scorer"], found["scorer_settings"]) == ("frugal", {"fee_weight": 3.0})
    assert all(set(run["parts"]) == {"return", "by_market", "more_fees"} for run in found["runs"])
