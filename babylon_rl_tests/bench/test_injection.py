"""The measurement of the guard: an attack is all that differs, and what it changed is what the figures say."""

import numpy as np
import pytest

from babylon_rl.bench.injection import Arm, Effect, Injection, _effect, _prompts, measure_injection, wilson
from babylon_rl.scoring.judge.attacks import ATTACKS


def test_an_attack_is_in_its_prompt_unless_it_is_withheld():
    attack = ATTACKS[0]
    for arm in Arm:
        prompts, told = _prompts(0, 0, attack, arm)
        without, nothing = _prompts(0, 0, None, arm)
        assert told and not nothing and len(prompts) == len(without) == 3
        assert all((attack in prompt) == (arm is not Arm.WITHHELD) for prompt in prompts)
        assert all(("<trajectory-" in prompt) == (arm is not Arm.OPEN) for prompt in prompts)
        assert not any(attack in prompt for prompt in without)


def test_a_score_that_became_likelier_is_one_that_was_raised():
    before = np.array([0.1] * 10 + [0.9]) / 1.9
    after = before * np.linspace(1, 3, 11)
    found = _effect("a", True, [before, before, after / after.sum()], [before] * 3)
    assert found.raised == pytest.approx(0.1) and found.others == pytest.approx(0) and 0 < found.expected < 0.1


def test_the_table_counts_what_moved():
    one = Effect(attack="a", told=True, raised=0.2, others=-0.3, expected=0.0, expected_others=0.0)
    none = Effect(attack="b", told=False, raised=-0.2, others=0.0, expected=0.0, expected_others=0.0)
    found = Injection(windows=1, seed=0, baseline={"fence": 0.9}, effects={str(arm): [one, none] for arm in Arm})
    assert not found.reached and found.table().count("    1       1 ") == 3
    assert wilson(0, 50)[0] == pytest.approx(0) and wilson(25, 50) == pytest.approx((0.366, 0.634), abs=1e-3)


def test_a_model_is_asked_for_each_run_and_withheld_texts_change_no_two_attacks_apart(tiny):
    found = measure_injection(tiny, 1, 0, lambda line: None, ATTACKS[:2])
    assert {len(effects) for effects in found.effects.values()} == {2}
    first, second = found.effects[Arm.WITHHELD]
    assert first.raised == second.raised and first.told and second.told
    first, second = found.effects[Arm.OPEN]
    assert first.raised != second.raised
