"""Attempts to sway the judge are told; trading is not."""

import pytest

from babylon_rl.scoring.judge.attacks import ATTACKS, HONEST
from babylon_rl.scoring.judge.injection import SIGNS, signs_of_injection


def test_the_corpus_is_as_large_as_it_says():
    assert len(set(ATTACKS)) >= 40


@pytest.mark.parametrize("text", ATTACKS)
def test_an_attack_is_told(text):
    assert signs_of_injection(text, ["t-other-run"])


@pytest.mark.parametrize("text", HONEST)
def test_trading_is_no_attack(text):
    assert signs_of_injection(text, ["t-other-run"]) == []


def test_each_sign_is_found_somewhere():
    found = {sign for text in ATTACKS for sign in signs_of_injection(text, ["t-other-run"])}
    assert found == {*SIGNS, "other_id", "hidden_letters", "encoded"}
