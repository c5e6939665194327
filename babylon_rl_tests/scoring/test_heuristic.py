"""Scorer `heuristic` against a transcription of the first system's formula that shares nothing with it."""

import random

import pytest

from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made

STATES = (0.0, 50.0, -1000.0, 1000.0, 0.1, 1e-9, -0.0, None)


def first_systems(window):
    """Score of each agent, as `babylon_trainer.score_locally` computes it from the recorded rows."""
    by_agent = {}
    for trajectory in sorted(window, key=lambda trajectory: trajectory.trajectory_id):
        by_agent.setdefault(trajectory.agent_id, []).append(trajectory)
    scores = {}
    for agent_id, trajectories in by_agent.items():
        total, wins, losses, actions = 0, 0, 0, 0
        for trajectory in trajectories:
            pnl = trajectory.steps[-1].environment_state.get("agentPnL", 0) or 0
            total += pnl
            if pnl > 0:
                wins += 1
            elif pnl < 0:
                losses += 1
            actions += len(trajectory.steps)
        profit = (total + 1000) / 2000
        profit = 0.0 if profit < 0 else 1.0 if profit > 1 else profit
        win_rate = wins / (wins + losses) if wins + losses > 0 else 0.5
        activity = actions / 20 if actions < 20 else 1.0
        scores[agent_id] = 0.5 * profit + 0.3 * win_rate + 0.2 * activity
    return scores


def random_run(chance, number):
    told = [
        chance.choice(STATES) if chance.random() < 0.2 else chance.gauss(0, 400)
        for _ in range(chance.choice((1, 1, 2, 3, 8)))
    ]
    steps = [made.step(at, made.action(chance.choice(("BUY", "HOLD"))), "BUY", pnl=pnl) for at, pnl in enumerate(told)]
    return made.trajectory(f"run-{number:03}", steps=steps, calls=[], agent_id=f"agent-{chance.randrange(8)}")


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_runs_have_the_first_systems_score_to_the_digit(seed):
    chance = random.Random(seed)
    outcomes = made.outcomes()
    for _ in range(50):
        window = [random_run(chance, number) for number in range(20)]
        expected = first_systems(window)
        scored = score_window(made.recorded(*made.shuffled(window, seed)), outcomes, "heuristic")
        assert len(scored) == 20
        assert all(
            reward == expected[agent] for agent, reward in zip(scored["agent_id"], scored["reward"], strict=True)
        )


def test_the_heuristic_clamps_profit_and_activity():
    rows = [made.step(n, made.action("BUY"), "BUY", pnl=5000.0) for n in range(30)]
    scored = score_window(made.recorded(made.trajectory("a", steps=rows)), made.outcomes(), "heuristic")
    assert scored.loc[0, "reward"] == 1.0
