"""A mixture is the sum it declares, and hides none of its parts."""

import msgspec
import pytest

from babylon_rl.errors import SettingsError
from babylon_rl.scoring import seam
from babylon_rl.scoring.blend import make_blend, weights_of
from babylon_rl.scoring.scorers import score_window, scorer_of
from babylon_rl.scoring.seam import Score, Scorer, register
from babylon_rl.settings import Settings
from babylon_rl_tests.scoring import made


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """Two more scorers, for this test alone."""
    monkeypatch.setattr(seam, "_REGISTERED", dict(seam._REGISTERED))
    given = Score(
        0.5,
        {"a": 1.0},
        "reads",
        None,
        {0: 0.2, 1: 0.3},
        {"flat": 0.1},
        0.4,
        0.6,
        ("demand",),
        {"model": "m"},
    )
    register(
        Scorer(
            "reader",
            "7",
            lambda runs: [given] * len(runs.features),
            lambda *told: {"BUY": 0.4, "HOLD": 0.0},
            {"how": "so"},
            0.02,
            True,
        )
    )
    plain = msgspec.structs.replace(given, decision_rewards=None, refused="no_capital", signs=())
    register(Scorer("refuser", "2", lambda runs: [plain] * len(runs.features)))


def blended(told, *trajectories):
    return score_window(made.recorded(*trajectories), made.outcomes(), make_blend(Settings(blend=told), None))


def test_the_reward_is_the_weighted_sum_and_its_parts_are_visible():
    own = [made.trajectory("a", "BUY", 4.8), made.trajectory("b", "HOLD")]
    alone = {
        name: score_window(made.recorded(*own), made.outcomes(), name).set_index("trajectory_id")
        for name in ("alpha", "heuristic")
    }
    found = blended("alpha=0.7, heuristic=0.3", *own).set_index("trajectory_id")
    for name in "ab":
        rewards = {scorer: frame.loc[name, "reward"] for scorer, frame in alone.items()}
        assert found.loc[name, "reward"] == pytest.approx(0.7 * rewards["alpha"] + 0.3 * rewards["heuristic"])
        parts = found.loc[name, "parts"]
        assert {scorer: parts[scorer] for scorer in alone} == rewards
        assert {f"heuristic.{part}" for part in alone["heuristic"].loc[name, "parts"]} <= parts.keys()
    assert found.loc["a", "scorer_version"].startswith("1+alpha-") and found.loc["a", "scorer"] == "blend"
    assert found.loc["a", "scorer_settings"]["weights"] == {"alpha": 0.7, "heuristic": 0.3}


def test_what_a_part_says_beside_its_reward_is_passed_on():
    (row,) = blended("heuristic=1,reader=2", made.trajectory("a")).to_dict("records")
    assert (row["process_score"], row["hindsight_score"], row["judge"]) == (0.4, 0.6, {"model": "m"})
    assert row["injection_signs"] == ["demand"] and row["counterfactuals"] == {"flat": 0.1}
    assert row["scorer_settings"]["reader"] == {"how": "so"} and row["provenance"] == "logged"


def test_rewards_of_decisions_need_every_part_that_weighs():
    assert blended("reader=2,heuristic=0", made.trajectory("a")).loc[0, "decision_rewards"] == {"0": 0.4, "1": 0.6}
    assert blended("reader=2,heuristic=1", made.trajectory("a")).loc[0, "decision_rewards"] is None
    assert blended("reader=2,heuristic=0", made.trajectory("a")).loc[0, "action_values"] == {"BUY": 0.8, "HOLD": 0.0}
    assert blended("reader=2,heuristic=1", made.trajectory("a")).loc[0, "action_values"] is None


def test_a_run_that_a_part_refuses_is_refused():
    assert blended("reader=1,refuser=0.1", made.trajectory("a")).loc[0, "provenance"] == "no_capital"


def test_it_reads_texts_and_has_the_noise_of_its_parts():
    mixed = make_blend(Settings(blend="heuristic=1,reader=2"), None)
    assert mixed.reads_texts and mixed.noise == pytest.approx(0.04 + 1e-6)
    assert not make_blend(Settings(blend="alpha=1"), None).reads_texts


@pytest.mark.parametrize(
    "told",
    ["", "luck=1", "alpha", "alpha=x", "alpha=-1", "alpha=nan", "alpha=inf", "alpha=0", "alpha=1,alpha=2", "blend=1"],
)
def test_an_odd_mixture_is_refused(told):
    with pytest.raises(SettingsError, match="BABYLON_RL_BLEND"):
        weights_of(told)


def test_the_default_mixture_asks_for_a_judge():
    with pytest.raises(SettingsError, match="JUDGE_MODEL"):
        scorer_of("blend", Settings())
