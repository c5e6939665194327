"""Scorer `heuristic`: the first system's formula, for comparison."""

from babylon_rl.scoring.features import Features
from babylon_rl.scoring.seam import Runs, Score, Scorer, register
from babylon_rl.scoring.spoken import money


def heuristic(window: Runs) -> list[Score]:
    """The first system's score, to the digit: 0.5 clamped P&L + 0.3 win rate + 0.2 activity, one figure an agent.

    Its P&L is the lifetime figure of the last step's state, summed over the agent's trajectories. It pays for
    activity and saturates; it exists for comparison.
    """
    agents: dict[str, list[Features]] = {}
    for one in sorted(window.features, key=lambda one: one.trajectory_id):
        agents.setdefault(one.agent_id, []).append(one)
    scores = {agent: _scored(own) for agent, own in agents.items()}
    return [_of_run(one, *scores[one.agent_id]) for one in window.features]


def _of_run(one: Features, reward: float, parts: dict[str, float], said: str) -> Score:
    return Score(reward, parts, f"{money(one)} {one.acted}; agent: {said}")


def _scored(own: list[Features]) -> tuple[float, dict[str, float], str]:
    """Reward of an agent, what it is made of, and that in words."""
    parts = _heuristic(own)
    pnl, wins, activity = parts["pnl"], parts["win_rate"], parts["activity"]
    said = f"P&L {pnl:.2f}, win rate {wins:.2f}, activity {activity:.2f}"
    return 0.5 * pnl + 0.3 * wins + 0.2 * activity, parts, said


def _heuristic(own: list[Features]) -> dict[str, float]:
    pnl = 0.0
    for one in own:
        pnl += one.last_state_pnl  # not sum(), which from Python 3.12 on rounds otherwise than the first system did
    wins = sum(one.last_state_pnl > 0 for one in own)
    losses = sum(one.last_state_pnl < 0 for one in own)
    return {
        "pnl": max(0.0, min(1.0, (pnl + 1000) / 2000)),
        "win_rate": wins / (wins + losses) if wins + losses else 0.5,
        "activity": min(1.0, sum(one.steps for one in own) / 20),
    }


HEURISTIC = Scorer("heuristic", "1", heuristic)
register(HEURISTIC)
