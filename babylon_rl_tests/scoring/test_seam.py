"""Scorers of a user's own: found by their module, refused by name where they answer what no scorer may."""

import math

import pytest

from babylon_rl.errors import RecordingError, ScoringError, SettingsError
from babylon_rl.scoring import seam
from babylon_rl.scoring.scorers import score_window, scorer_of
from babylon_rl.scoring.seam import Score, Scorer, register
from babylon_rl.settings import Settings
from babylon_rl_tests.scoring import made

WINDOW = made.recorded(made.trajectory("a", "BUY", 4.8), made.trajectory("h", "HOLD"))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Function that looks for scorer `mine` with a module of this text on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(seam, "_REGISTERED", dict(seam._REGISTERED))

    def look(name: str, text: str | None):
        if text is not None:
            (tmp_path / f"{name}.py").write_text(text)
        return scorer_of("mine", Settings(scorer_modules=f" {name}, "))

    return look


def test_a_module_that_is_named_registers_its_scorers(module):
    text = "from babylon_rl.scoring.seam import *\nregister(Scorer('mine', '1', lambda runs: []))\n"
    assert module("mine_found", text).version == "1"
    with pytest.raises(SettingsError, match="alpha, blend, heuristic, mine, ruler.*SCORER_MODULES"):
        scorer_of("others")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine_missing", None, "'mine_missing', which is not found.*PYTHONPATH"),
        ("mine_needs", "import no_such_library", "No module named 'no_such_library'.*Install that"),
        ("mine_typo", "def f(:", r"SyntaxError.*\(mine_typo.py, line 1\)"),
        ("mine_raises", "\n\nraise ValueError('no weights')", r"ValueError: no weights \(mine_raises.py, line 3\)"),
        ("mine_taken", "from babylon_rl.scoring.seam import *\nregister(Scorer('alpha', '9', len))", "'alpha' already"),
    ],
)
def test_a_module_that_fails_is_named_with_its_error_and_line(module, name, text, said):
    with pytest.raises(SettingsError, match=said):
        module(name, text)


def test_a_factory_gets_the_settings_and_must_make_a_scorer(monkeypatch):
    monkeypatch.setattr(seam, "_REGISTERED", dict(seam._REGISTERED))
    register(lambda settings, database: Scorer("made", settings.scorer, len, settings={"db": database}), "made")
    settings = Settings(scorer="made")
    made_one = scorer_of("made", settings, None)
    assert (made_one.version, made_one.settings) == ("made", {"db": None})
    register(lambda settings, database: None, "nothing")
    with pytest.raises(SettingsError, match="'nothing' must return a Scorer, not NoneType"):
        scorer_of("nothing")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda runs: [], "gives 0 scores for 2 runs"),
        (lambda runs: [Score(0.0, {}, "")] * 3, "gives 3 scores for 2 runs"),
        (lambda runs: [1.0, 2.0], "run a a float; it must be a Score"),
        (lambda runs: [Score(math.nan, {}, "")] * 2, "run a the reward nan"),
        (lambda runs: [Score(0.0, {"share": math.inf}, "")] * 2, "the share inf"),
        (lambda runs: [Score("much", {}, "")] * 2, "the reward 'much'"),
        (lambda runs: {}["x"], r"fails: KeyError: 'x' \(test_seam.py"),
        (lambda runs: None, "fails: TypeError"),
    ],
)
def test_an_answer_that_no_scorer_may_give_is_refused_by_the_scorers_name(answer, said):
    with pytest.raises(ScoringError, match=f"Scorer odd 2 in {made.WINDOW}.*{said}"):
        score_window(WINDOW, made.outcomes(), Scorer("odd", "2", answer))


def test_a_number_that_the_recording_spoilt_is_the_recordings_fault():
    spoilt = made.recorded(made.trajectory("a", "BUY", math.nan))
    with pytest.raises(RecordingError, match="Correct or reject that recording"):
        score_window(spoilt, made.outcomes(), Scorer("odd", "2", lambda runs: [Score(math.nan, {}, "")]))
