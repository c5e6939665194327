"""The proof that rewards pay for skill: on a small draw of the market, and what is said where it is missed."""

import json

import msgspec
import pytest
from typer.testing import CliRunner

from babylon_rl.bench import commands, rewards
from babylon_rl.bench.rewards import DEMO, RAW, Figure, Paid, Ranked, Rewards, Told, pay_policies, rank_traders, tables
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.heuristic import HEURISTIC


def quiet(line):
    pass


def test_alpha_ranks_a_planted_edge_right_more_often_than_pnl_and_the_heuristic():
    ranked, told = rank_traders(0, 60, [0.2], DEMO, quiet, (24,))
    right = {row.scorer: row.right.mean for row in ranked}
    ahead = {row.scorer: row.alpha_ahead for row in ranked}
    assert right[ALPHA.name] > 0.7
    assert ahead[RAW.name].low > 0 and ahead[HEURISTIC.name].low > 0
    # What an hour's reward says of that hour's decisions.
    credit = {row.scorer: row.with_decisions for row in told}
    assert credit[ALPHA.name].low > credit[RAW.name].high > credit[HEURISTIC.name].high


def test_alpha_pays_informed_above_hold_above_overtrading_and_the_heuristic_pays_overtrading():
    over_hold = {(row.scorer, row.policy): row.over_hold for row in pay_policies(0, 30, 0.2, quiet)}
    assert over_hold[ALPHA.name, "informed"].low > 0
    assert over_hold[ALPHA.name, "hold"].low == over_hold[ALPHA.name, "hold"].high == 0
    assert over_hold[ALPHA.name, "overtrading"].high < 0
    assert over_hold[HEURISTIC.name, "overtrading"].low > 0


def around(mean, half=0.01):
    return Figure(mean, mean - half, mean + half)


def found(ahead=0.05, informed=0.02, overtrading=-0.02, activity=0.08):
    """Made-up figures of one size of edge: alpha's lead, and what policies are paid over HOLD."""
    ranked = [
        Ranked(climate="demo", edge=0.2, hours=24, scorer=scorer, life=24, right=around(0.7), alpha_ahead=around(ahead))
        for scorer in (RAW.name, HEURISTIC.name)
    ]
    told = [
        Told(
            climate="demo", edge=0.2, scorer="alpha", with_edge=around(0.2), with_decisions=around(0.8),
            agent_share=around(0.1),
        )
    ]  # fmt: skip
    over_hold = [
        (ALPHA.name, "informed", informed),
        (ALPHA.name, "overtrading", overtrading),
        (HEURISTIC.name, "overtrading", activity),
    ]
    paid = [
        Paid(
            edge=0.2, scorer=scorer, policy=policy, agent_hours=48, trajectory=around(value), decision=around(value),
            over_hold=around(value),
        )
        for scorer, policy, value in over_hold
    ]  # fmt: skip
    return Rewards(seed=7, draws=2, lives=2, ranked=ranked, told=told, paid=paid)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, 0),
        ({"ahead": 0.005}, 2),
        ({"informed": 0.0}, 1),
        ({"overtrading": 0.0}, 1),
        ({"activity": 0.0}, 1),
    ],
)
def test_a_figure_whose_interval_does_not_say_so_is_missed(changes, missed):
    made = found(**changes)
    assert len(made.missed) == missed and made.reached == (missed == 0)
    assert tables(made).count("MISSED") == missed


@pytest.mark.parametrize(("ahead", "code"), [(0.05, 0), (-0.05, 1)])
def test_the_command_stores_figures_and_tables_and_its_exit_code_says_what_is_missed(
    monkeypatch, tmp_path, ahead, code
):
    made = found(ahead=ahead)
    monkeypatch.setattr(rewards, "measure_rewards", lambda seed, draws, lives, say: made)
    done = CliRunner().invoke(commands.app, ["rewards", "--seed", "7", "--out", str(tmp_path), "--json"])
    assert done.exit_code == code
    kept = json.loads((tmp_path / "rewards-7.json").read_text())
    assert kept["reached"] == (code == 0) and msgspec.convert(kept["paid"], list[Paid]) == made.paid
    assert "| 0.20 | 24 | raw P&L |" in (tmp_path / "rewards-7.md").read_text()
    assert json.loads(done.stdout) == kept
