"""Guardrails over figures that are known: what breaches them, what chance explains, and what is too little to tell."""

import pytest

from babylon_rl.evaluation.arms import ArmWindow
from babylon_rl.evaluation.guardrails import FLOOR_MS, Limits, breach, guard, largest_drawdown
from babylon_rl.windows import shift_window

LIMITS = Limits(valid=0.05, drawdown=0.05, latency=2.0)


def side(windows: int = 4, agents: int = 4, **fields) -> list[ArmWindow]:
    """Windows of an arm; a list among the fields has a figure for each."""
    made = []
    for n in range(windows):
        own = {name: value[n] if isinstance(value, list) else value for name, value in fields.items()}
        figures = {"value": 0.0, "pnl": 0.0, "earned": 0.0, "valid": 1.0, "drawdown": 0.0, "valued": agents, **own}
        made.append(ArmWindow(window_id=shift_window("2026-01-01T00:00", n), arm="x", agents=agents, **figures))
    return made


def breached(candidate: list[ArmWindow], baseline: list[ArmWindow]) -> set[str]:
    return {one.name for one in guard(candidate, baseline, LIMITS) if one.breached}


def test_equal_arms_breach_nothing_and_each_guardrail_says_what_it_saw():
    guards = guard(side(latency_ms=40.0), side(latency_ms=40.0), LIMITS)
    assert breach(guards) is None and [one.name for one in guards] == ["valid", "drawdown", "latency"]
    assert all(one.candidate is not None and one.said for one in guards)


def test_two_windows_tell_nothing():
    guards = guard(side(2, valid=0.0), side(9), LIMITS)
    assert breach(guards) is None and "2 windows of the candidate and 9" in guards[0].said


def test_a_fall_of_valid_actions_counts_once_chance_does_not_explain_it():
    assert breached(side(3, valid=0.0), side(3)) == {"valid"}
    assert breached(side(3, valid=0.9), side(3)) == set()  # of 12 agents one or two
    assert "too few to tell it from chance" in guard(side(3, valid=0.9), side(3), LIMITS)[0].said
    assert breached(side(60, valid=0.9), side(60)) == {"valid"}
    assert breached(side(600, valid=0.96), side(600)) == set()  # clear, and within the limit
    assert breached(side(60), side(60, valid=0.9)) == set()  # more valid than before


@pytest.mark.parametrize(
    ("falls", "expected"), [([-0.02, -0.02, -0.02, 0.0], {"drawdown"}), ([-0.02, -0.02, 0.0, 0.0], set())]
)
def test_losses_add_up_over_windows(falls, expected):
    assert breached(side(earned=falls), side(earned=[0.0, 0.001, 0.0, 0.0])) == expected
    assert breached(side(earned=falls), side(earned=falls)) == set()  # the market fell for both


def test_drawdown_is_from_the_peak_or_within_a_window():
    assert largest_drawdown(side(earned=[0.1, -0.03, 0.01, -0.04])) == pytest.approx(0.06)
    assert largest_drawdown(side(drawdown=[0.0, 0.2, 0.0, 0.0])) == 0.2
    assert largest_drawdown(side(earned=0.01)) == 0.0


def test_latency_counts_by_its_median_and_not_where_nobody_would_notice():
    assert breached(side(latency_ms=500.0), side(latency_ms=200.0)) == {"latency"}
    assert breached(side(latency_ms=[200.0, 9000.0, 200.0, 200.0]), side(latency_ms=200.0)) == set()
    assert breached(side(latency_ms=4 * FLOOR_MS / 5), side(latency_ms=2.0)) == set()
    assert breached(side(latency_ms=None), side(latency_ms=200.0)) == set()
