"""The scoring of a window with one scorer: its rows of `scored_trajectories`."""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from babylon_rl.errors import RecordingError
from babylon_rl.scoring import blend
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.features import Features, features, market_of
from babylon_rl.scoring.heuristic import HEURISTIC
from babylon_rl.scoring.judge import ruler
from babylon_rl.scoring.seam import Runs, RunText, Score, Scorer, scorer_of, scores_of
from babylon_rl.scoring.texts import run_text

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

# Those that come with this package; importing their modules registers them.
OURS = (ALPHA, HEURISTIC)
OURS_BY_SETTINGS = (ruler.NAME, blend.NAME)

COLUMNS = (
    "window_id",
    "trajectory_id",
    "agent_id",
    "scorer",
    "scorer_version",
    "scorer_settings",
    "reward",
    "parts",
    "decision_rewards",
    "counterfactuals",
    "process_score",
    "outcome_score",
    "hindsight_score",
    "judge",
    "injection_signs",
    "features",
    "rank",
    "reason",
    "provenance",
    "checkpoint",
    "action_values",
    "window_revision",
    "outcome_revision",
)


class Seen(msgspec.Struct, frozen=True):
    """What scoring keeps of a trajectory once its steps are let go."""

    features: Features
    provenance: str
    checkpoint: str | None
    action_values: dict[str, float] | None
    text: RunText | None


def score_window(recorded: "RecordedWindow", outcomes: pd.DataFrame, scorer: str | Scorer = "alpha") -> pd.DataFrame:
    """Scores of all usable trajectories of a window, best first, in the columns of `scored_trajectories`.

    `outcomes`: rows of `market_outcomes`; those of other windows are ignored. The result does not depend on the order
    of either input. RecordingError where a recorded number is not finite, ScoringError where the scorer fails.
    """
    scorer = scorer_of(scorer) if isinstance(scorer, str) else scorer
    return WindowScoring(recorded.window_id, outcomes, scorer).scores(recorded.usable, lambda: recorded.revision)


class WindowScoring:
    """The scoring of one window; its trajectories may come one by one, and only what is scored of them is kept."""

    def __init__(self, window_id: str, outcomes: pd.DataFrame, scorer: Scorer) -> None:
        self._window_id, self._scorer = window_id, scorer
        if "window_id" in outcomes:
            outcomes = outcomes[outcomes["window_id"] == window_id]
        self._outcomes, self._market = outcomes, market_of(outcomes)

    def scores(self, usable: Iterable["UsableTrajectory"], revision: Callable[[], str]) -> pd.DataFrame:
        """As `score_window`; `revision`: the window's, asked for when all trajectories have come."""
        seen = sorted(map(self._seen, usable), key=lambda one: one.features.trajectory_id)
        runs = Runs(
            window_id=self._window_id,
            features=[one.features for one in seen],
            market=self._market,
            outcomes=self._outcomes,
            texts=[one.text for one in seen if one.text is not None],
        )
        given = scores_of(self._scorer, runs)
        earned = given if self._scorer is ALPHA else ALPHA.score(runs)
        # The trajectories stand by id, and sorting is stable: equal rewards are ranked by id.
        scored = sorted(zip(seen, given, earned, strict=True), key=lambda row: -row[1].reward)
        window_revision, outcome_revision = revision(), revision_of(self._outcomes)
        rows = [
            (
                self._window_id,
                one.features.trajectory_id,
                one.features.agent_id,
                self._scorer.name,
                self._scorer.version,
                self._scorer.settings,
                score.reward,
                score.parts,
                score.decision_rewards,
                score.counterfactuals if score.counterfactuals is not None else outcome.counterfactuals,
                score.process,
                None if outcome.refused else outcome.reward,
                score.hindsight,
                score.judge,
                list(score.signs) or None,
                msgspec.to_builtins(one.features),
                rank,
                score.reason,
                score.refused or one.provenance,
                one.checkpoint,
                one.action_values,
                window_revision,
                outcome_revision,
            )
            for rank, (one, score, outcome) in enumerate(scored, start=1)
            if _finite(one.features, score, self._scorer)
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return pd.DataFrame({name: list(values) for name, values in zip(COLUMNS, columns, strict=True)})

    def _seen(self, trajectory: "UsableTrajectory") -> Seen:
        one = features(trajectory, self._market)
        valued = self._scorer.values
        values = None if valued is None else valued(trajectory, one.capital, self._market, self._outcomes)
        text = run_text(trajectory) if self._scorer.reads_texts else None
        return Seen(one, trajectory.provenance, behaviour_policy(trajectory), values, text)


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
