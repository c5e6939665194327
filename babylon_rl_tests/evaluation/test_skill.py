"""What rewards tell of skill: the measures themselves, on rewards made by hand and on draws of the market."""

import numpy as np
import pytest

from babylon_rl.bench.rewards import DEMO, RAW
from babylon_rl.evaluation.skill import (
    agent_share,
    correlation_with_decisions,
    correlation_with_edge,
    play_draw,
    ranked_right,
)
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.heuristic import HEURISTIC

EDGES = np.array([0.3, -0.1, 0.1])


def test_pairs_are_ranked_by_their_means_and_equal_means_count_half():
    right = np.array([[2.0, -2.0, 0.0]] * 4)
    assert ranked_right(right, EDGES, 1) == ranked_right(right, EDGES, 4) == 1.0
    assert ranked_right(-right, EDGES, 2) == 0.0
    assert ranked_right(np.zeros((4, 3)), EDGES, 2) == 0.5
    # Hour by hour half of the pairs stand wrong; over all hours none does.
    assert ranked_right(np.array([[3.0, -3.0, 0.0], [-1.0, 1.0, 0.0]]), EDGES, 1) == 0.5
    assert ranked_right(np.array([[3.0, -3.0, 0.0], [-1.0, 1.0, 0.0]]), EDGES, 2) == 1.0


def test_who_the_agent_is_and_what_it_decided_are_told_apart():
    generator = np.random.default_rng(0)
    balances = generator.choice([-1.0, 1.0], size=(500, 3))
    decided = balances - balances.mean(axis=1, keepdims=True)
    identity = np.tile(EDGES - EDGES.mean(), (500, 1))
    assert correlation_with_decisions(decided, balances) == pytest.approx(1)
    assert correlation_with_decisions(identity, balances) == pytest.approx(0, abs=1e-9)
    assert correlation_with_edge(identity, EDGES) == pytest.approx(1)
    assert abs(correlation_with_edge(decided, EDGES)) < 0.1
    assert agent_share(identity) == pytest.approx(1) and agent_share(decided) < 0.02


def test_only_a_scorer_that_reads_lifetime_pnl_depends_on_how_long_the_agent_lives():
    draw = play_draw(0, 0, [0.2], DEMO, [RAW, ALPHA, HEURISTIC], (1, 6))[0.2]
    for scorer in (RAW, ALPHA):
        assert (draw.advantages[scorer.name, 1] == draw.advantages[scorer.name, 6]).all()
    of_the_hour, of_the_life = (draw.advantages[HEURISTIC.name, life] for life in (1, 6))
    assert (of_the_hour[0] == of_the_life[0]).all() and (of_the_hour[1:] != of_the_life[1:]).any()
    assert np.allclose(draw.advantages[ALPHA.name, 6].sum(axis=1), 0)
