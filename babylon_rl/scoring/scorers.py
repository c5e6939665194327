"""The scorers by name, and the scoring of a window with one of them.

A scorer sees the features of a whole window at once and answers with one score a trajectory. A scorer whose numbers
change gets another version: scores are versioned, never overwritten.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.errors import RecordingError, SettingsError
from babylon_rl.scoring.features import TICKER, Features, Market, features, market_of
from babylon_rl.scoring.values import alpha_values

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

# Provenance of a trajectory whose reward cannot be computed: it is shown, and never trained on.
NO_CAPITAL = "no_capital"

COLUMNS = (
    "window_id",
    "trajectory_id",
    "agent_id",
    "scorer",
    "scorer_version",
    "reward",
    "parts",
    "features",
    "rank",
    "reason",
    "provenance",
    "checkpoint",
    "action_values",
    "window_revision",
    "outcome_revision",
)


class Score(msgspec.Struct, frozen=True):
    """Reward of one trajectory, what it is made of, and a line for a person."""

    reward: float
    parts: dict[str, float]
    reason: str
    refused: str | None = None  # provenance that replaces the recorded one where there is no valid reward


class Scorer(msgspec.Struct, frozen=True):
    """A named, versioned way from the features of a window to one score each, in the same order.

    `values`: the reward of every legal answer of a trajectory's decision, on the same scale, where the scorer knows it.
    """

    name: str
    version: str
    score: Callable[[Sequence[Features], Market], list[Score]]
    values: Callable[..., dict[str, float] | None] | None = None


def alpha(window: Sequence[Features], market: Market) -> list[Score]:
    """P&L after fees over capital, less the part that the market's own move gave to the ticker exposure.

    A question's price already nets its consensus, so nothing is taken off there. Who makes no trade gets exactly 0,
    whatever older positions did: holding is not paid and not punished.
    """
    return [_alpha(one, market) for one in window]


def _alpha(one: Features, market: Market) -> Score:
    if one.capital is None:
        return Score(0.0, {}, f"{_money(one)} {one.acted}: no capital is recorded, so no reward", NO_CAPITAL)
    share = one.window_pnl / one.capital
    exposure = one.exposure_to(TICKER) / one.capital
    by_market = exposure * market.move
    parts = {
        "pnl_over_capital": share,
        "exposure": exposure,
        "market_move": market.move,
        "market_part": by_market,
        "fees_over_capital": one.fees / one.capital,
    }
    reward = share - by_market if one.trades_succeeded else 0.0
    reason = (
        f"{_money(one)} ({100 * share:.2f} % of ${one.capital:,.0f}) {one.acted}; market {100 * market.move:+.1f} %"
    )
    return Score(reward, parts, reason)


def heuristic(window: Sequence[Features], market: Market) -> list[Score]:
    """The first system's score, to the digit: 0.5 clamped P&L + 0.3 win rate + 0.2 activity, one figure an agent.

    Its P&L is the lifetime figure of the last step's state, summed over the agent's trajectories. It pays for
    activity and saturates; it exists for comparison.
    """
    agents: dict[str, list[Features]] = {}
    for one in sorted(window, key=lambda one: one.trajectory_id):
        agents.setdefault(one.agent_id, []).append(one)
    parts = {agent: _heuristic(own) for agent, own in agents.items()}
    scores = []
    for one in window:
        pnl, wins, activity = (parts[one.agent_id][name] for name in ("pnl", "win_rate", "activity"))
        reason = f"{_money(one)} {one.acted}; agent: P&L {pnl:.2f}, win rate {wins:.2f}, activity {activity:.2f}"
        scores.append(Score(0.5 * pnl + 0.3 * wins + 0.2 * activity, parts[one.agent_id], reason))
    return scores


def _heuristic(own: list[Features]) -> dict[str, float]:
    pnl = sum(one.last_state_pnl for one in own)
    wins = sum(one.last_state_pnl > 0 for one in own)
    losses = sum(one.last_state_pnl < 0 for one in own)
    return {
        "pnl": max(0.0, min(1.0, (pnl + 1000) / 2000)),
        "win_rate": wins / (wins + losses) if wins + losses else 0.5,
        "activity": min(1.0, sum(one.steps for one in own) / 20),
    }


SCORERS = {
    scorer.name: scorer for scorer in (Scorer("alpha", "1", alpha, alpha_values), Scorer("heuristic", "1", heuristic))
}


def scorer_of(name: str) -> Scorer:
    """The scorer of that name; SettingsError names the known ones."""
    try:
        return SCORERS[name]
    except KeyError:
        known = ", ".join(sorted(SCORERS))
        raise SettingsError(f"There is no scorer {name!r}. Set BABYLON_RL_SCORER to one of: {known}.") from None


class Seen(msgspec.Struct, frozen=True):
    """What scoring keeps of a trajectory once its steps are let go."""

    features: Features
    provenance: str
    checkpoint: str | None
    action_values: dict[str, float] | None


def score_window(recorded: "RecordedWindow", outcomes: pd.DataFrame, scorer: str = "alpha") -> pd.DataFrame:
    """Scores of all usable trajectories of a window, best first, in the columns of `scored_trajectories`.

    `outcomes`: rows of `market_outcomes`; those of other windows are ignored. The result does not depend on the order
    of either input. RecordingError where a reward is not finite.
    """
    return WindowScoring(recorded.window_id, outcomes, scorer).scores(recorded.usable, lambda: recorded.revision)


class WindowScoring:
    """The scoring of one window; its trajectories may come one by one, and only their features are kept."""

    def __init__(self, window_id: str, outcomes: pd.DataFrame, scorer: str) -> None:
        self._window_id, self._scorer = window_id, scorer_of(scorer)
        if "window_id" in outcomes:
            outcomes = outcomes[outcomes["window_id"] == window_id]
        self._outcomes, self._market = outcomes, market_of(outcomes)

    def scores(self, usable: Iterable["UsableTrajectory"], revision: Callable[[], str]) -> pd.DataFrame:
        """As `score_window`; `revision`: the window's, asked for when all trajectories have come."""
        seen = sorted(map(self._seen, usable), key=lambda one: one.features.trajectory_id)
        given = self._scorer.score([one.features for one in seen], self._market)
        # The trajectories stand by id, and sorting is stable: equal rewards are ranked by id.
        scored = sorted(zip(seen, given, strict=True), key=lambda row: -row[1].reward)
        window_revision, outcome_revision = revision(), revision_of(self._outcomes)
        rows = [
            (
                self._window_id,
                one.features.trajectory_id,
                one.features.agent_id,
                self._scorer.name,
                self._scorer.version,
                score.reward,
                score.parts,
                msgspec.to_builtins(one.features),
                rank,
                score.reason,
                score.refused or one.provenance,
                one.checkpoint,
                one.action_values,
                window_revision,
                outcome_revision,
            )
            for rank, (one, score) in enumerate(scored, start=1)
            if _finite(one.features, score, self._scorer)
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return pd.DataFrame({name: list(values) for name, values in zip(COLUMNS, columns, strict=True)})

    def _seen(self, trajectory: "UsableTrajectory") -> Seen:
        one = features(trajectory, self._market)
        valued = self._scorer.values
        values = None if valued is None else valued(trajectory, one.capital, self._market, self._outcomes)
        return Seen(one, trajectory.provenance, behaviour_policy(trajectory), values)


def behaviour_policy(trajectory: "UsableTrajectory") -> str | None:
    """Checkpoint that answered the trajectory's calls; several joined by a comma, None where none is recorded."""
    return ",".join(sorted({call.checkpoint for call in trajectory.calls})) or None


def revision_of(outcomes: pd.DataFrame) -> str:
    """Digest of the outcomes that a window's scores rest on, in any row order."""
    pairs = sorted(f"{row.instrument}={row.revision}" for row in outcomes.itertuples())
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def _finite(one: Features, score: Score, scorer: Scorer) -> bool:
    """True, or RecordingError."""
    numbers: list[Any] = [score.reward, *score.parts.values(), one.window_pnl]
    if not all(math.isfinite(number) for number in numbers):
        raise RecordingError(
            f"Scorer {scorer.name} gives trajectory {one.trajectory_id} the reward {score.reward}: its recorded P&L "
            f"({one.window_pnl}) or capital ({one.capital}) is not a usable number. Correct or reject that recording."
        )
    return True


def _money(one: Features) -> str:
    return f"{'earned' if one.window_pnl >= 0 else 'lost'} ${abs(one.window_pnl):,.2f}"
