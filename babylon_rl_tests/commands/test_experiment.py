"""`babylon-rl experiment` as a person types it, with all that can be typed wrong."""

import io
import json

import pytest

from babylon_rl.training.runs import promote
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl_tests.training.lineages import checkpoint, start

BASELINE, CANDIDATE = "run@1-aa", "run@2-bb"


@pytest.fixture
def typed(run, database, tmp_path):
    """Function that runs a command on two checkpoints, of which none is promoted."""
    with database.connect() as connection:
        start(connection)
        for name in (BASELINE, CANDIDATE):
            folder = tmp_path / "checkpoints" / name
            folder.mkdir(parents=True)
            (folder / WEIGHTS_FILE).write_text(name)
            weights = {"path": str(folder), "weights_sha256": weights_digest(folder)}
            checkpoint(connection, name, "run@0", None, weights)

    def typed(*arguments: str):
        return run("experiment", *arguments, "--database", database.url)

    return typed


@pytest.fixture
def promoted(typed, database):
    with database.connect() as connection:
        promote(connection, "run", BASELINE, "x", "it earns", {})
    return typed


def test_before_anything_is_promoted_or_started_it_says_what_to_do(typed):
    refused = typed("start", "--candidate", CANDIDATE, "--hours", "60")
    assert refused.returncode == 1 and "Nothing is promoted yet" in refused.stderr and "promote" in refused.stderr
    assert "no experiment yet" in typed("list").stdout and json.loads(typed("list", "--json").stdout) == []
    assert "There is no experiment yet" in typed("show").stderr
    assert "No experiment runs" in typed("look").stdout and typed("look", "--json").stdout.strip() == "null"
    assert "No experiment runs" in typed("stop", "--why", "x").stderr


def test_mistakes_get_a_sentence(promoted):
    def said(*arguments: str) -> str:
        done = promoted("start", *arguments, "--yes")
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    assert "Did you mean run@2-bb?" in said("--candidate", "rnu@2-bb", "--hours", "60")
    assert "is what is promoted" in said("--candidate", BASELINE, "--hours", "60")
    assert "Write 50 for half" in said("--candidate", CANDIDATE, "--share", "100", "--hours", "60")
    assert "There is no design 'ab'" in said("--candidate", CANDIDATE, "--design", "ab", "--hours", "60")
    assert "There is no metric 'sharpe'" in said("--candidate", CANDIDATE, "--metric", "sharpe")
    assert "say yourself for how many hours" in said("--candidate", CANDIDATE)
    assert "can show nothing" in said("--candidate", CANDIDATE, "--hours", "5")
    refused = promoted("start", "--candidate", CANDIDATE, "--hours", "60", "--json")
    assert refused.returncode == 2 and "--yes" in refused.stderr


def test_one_is_shown_before_it_starts_and_then_started_shown_and_stopped(promoted, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    dry = promoted("start", "--candidate", "run@2", "--share", "0.5", "--hours", "60", "--dry-run")
    assert dry.returncode == 0 and "No forecast: There are 0 past windows" in dry.stdout
    assert "Nothing was started" in dry.stdout and json.loads(promoted("list", "--json").stdout) == []
    asked = promoted("start", "--candidate", "run@2", "--hours", "60")  # nobody answers the question
    assert asked.returncode == 2 and "--yes" in asked.stderr and json.loads(promoted("list", "--json").stdout) == []
    started = promoted("start", "--candidate", "run@2", "--hours", "60", "--who", "ann", "--yes", "--json")
    made = json.loads(started.stdout)
    assert made["started"] and (made["candidate"], made["share"], made["who"]) == (CANDIDATE, 0.5, "ann")
    again = promoted("start", "--candidate", CANDIDATE, "--hours", "60", "--yes")
    assert again.returncode == 1 and "Experiment e1 runs" in again.stderr
    looked = json.loads(promoted("look", "--json").stdout)
    assert (looked["decision"], looked["windows"]) == ("go on", 0)
    picture = tmp_path / "plots" / "e1.png"
    shown = promoted("show", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG") and "nothing can be said yet" in shown.stdout
    assert len(json.loads(promoted("show", "e1", "--json").stdout)["looks"]) == 1
    assert "there are: e1" in promoted("show", "e7").stderr
    stopped = promoted("stop", "--why", "a mistake", "--who", "ann")
    assert stopped.returncode == 0 and f"{BASELINE} answers all agents" in stopped.stdout
    assert "ann: a mistake" in promoted("list").stdout
