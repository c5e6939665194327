"""The scoring of a window with one scorer: its rows of `scored_trajectories`."""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.errors import RecordingError, ScoringError
from babylon_rl.scoring import blend
from babylon_rl.scoring.alpha import ALPHA, alpha_outcomes
from babylon_rl.scoring.features import Features, features, market_of
from babylon_rl.scoring.heuristic import HEURISTIC
from babylon_rl.scoring.judge import ruler
from babylon_rl.scoring.seam import Runs, RunText, Score, Scorer, import_modules, registered_scorer, scores_of
from babylon_rl.scoring.texts import run_text
from babylon_rl.scoring.values import alpha_values
from babylon_rl.settings import Settings, get_settings

if TYPE_CHECKING:
    from babylon_rl.recording.window import RecordedWindow, UsableTrajectory

# Those that come with this package; importing their modules registers them.
OURS = (ALPHA, HEURISTIC)
OURS_BY_SETTINGS = (ruler.NAME, blend.NAME)

# Share of the decisions' rewards that adding them up may round away.
SUM_ROUNDING = 1e-9

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


def scorer_of(name: str, settings: Settings | None = None, database: Database | None = None) -> Scorer:
    """The scorer of that name, of this package or of the modules that the setting `scorer_modules` names.

    SettingsError names the known ones, or says what is wrong with a module.
    """
    settings = settings or get_settings()
    import_modules(settings.scorer_modules)
    return registered_scorer(name, settings, database)


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What scoring keeps of a trajectory once its steps are let go.

    `action_values`: by the scorer; `alpha_values`: by `alpha`, whichever the scorer is.
    """

    features: Features
    provenance: str
    checkpoint: str | None
    action_values: dict[str, float] | None
    text: RunText | None
    alpha_values: dict[str, float] | None = None


class Ranked(NamedTuple):
    """A trajectory, its score, and what `alpha` says of it: reward and counterfactuals."""

    seen: Seen
    score: Score
    outcome: Score


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
        if "window_id" in outcomes and not set(outcomes["window_id"].tolist()) <= {window_id}:
            outcomes = outcomes[outcomes["window_id"] == window_id]
        self._outcomes, self._market = outcomes, market_of(outcomes)

    def ranked(self, usable: Iterable["UsableTrajectory"]) -> list[Ranked]:
        """Scores of the trajectories, best first; equal rewards by trajectory id. Errors as of `score_window`."""
        seen = sorted(map(self._seen, usable), key=lambda one: one.features.trajectory_id)
        runs = Runs(
            window_id=self._window_id,
            features=[one.features for one in seen],
            market=self._market,
            outcomes=self._outcomes,
            texts=[one.text for one in seen if one.text is not None],
            values=[one.alpha_values for one in seen],
        )
        given = scores_of(self._scorer, runs)
        earned = given if self._scorer is ALPHA else alpha_outcomes(runs)
        for one, score in zip(seen, given, strict=True):
            _check(one.features, score, self._scorer)
        # The trajectories stand by id, and sorting is stable.
        return sorted(map(Ranked, seen, given, earned), key=lambda row: -row.score.reward)

    def scores(self, usable: Iterable["UsableTrajectory"], revision: Callable[[], str]) -> pd.DataFrame:
        """As `score_window`; `revision`: the window's, asked for when all trajectories have come."""
        ranked = self.ranked(usable)
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
                # As JSON has it, whose keys are texts.
                score.decision_rewards and {str(step): value for step, value in score.decision_rewards.items()},
                score.counterfactuals if score.counterfactuals is not None else outcome.counterfactuals,
                score.process,
                None if outcome.refused else outcome.reward,
                score.hindsight,
                score.judge,
                list(score.signs) or None,
                msgspec.structs.asdict(one.features),
                rank,
                score.reason,
                score.refused or one.provenance,
                one.checkpoint,
                one.action_values,
                window_revision,
                outcome_revision,
            )
            for rank, (one, score, outcome) in enumerate(ranked, start=1)
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return pd.DataFrame({name: list(values) for name, values in zip(COLUMNS, columns, strict=True)})

    def _seen(self, trajectory: "UsableTrajectory") -> Seen:
        one, scorer = features(trajectory, self._market), self._scorer
        by_alpha = alpha_values(trajectory, one.capital, self._market)
        values = by_alpha
        if scorer.values is not alpha_values:
            valued = scorer.values
            values = None if valued is None else valued(trajectory, one.capital, self._market, self._outcomes)
        text = run_text(trajectory) if scorer.reads_texts else None
        return Seen(one, trajectory.provenance, behaviour_policy(trajectory), values, text, by_alpha)


def behaviour_policy(trajectory: "UsableTrajectory") -> str | None:
    """Checkpoint that answered the trajectory's calls; several joined by a comma, None where none is recorded."""
    calls = trajectory.calls
    if len(calls) < 2:
        return calls[0].checkpoint or None if calls else None
    return ",".join(sorted({call.checkpoint for call in calls})) or None


def revision_of(outcomes: pd.DataFrame) -> str:
    """Digest of the outcomes that a window's scores rest on, in any row order."""
    if not len(outcomes):
        return hashlib.sha256(b"").hexdigest()
    told = zip(outcomes["instrument"].tolist(), outcomes["revision"].tolist(), strict=True)
    return hashlib.sha256("\n".join(sorted(f"{name}={revision}" for name, revision in told)).encode()).hexdigest()


def _check(one: Features, score: Score, scorer: Scorer) -> None:
    """RecordingError where a number is not finite, ScoringError where decisions do not add up to the run."""
    total = score.reward + one.window_pnl + sum(score.parts.values())
    for value in (score.counterfactuals or {}).values():
        total += value or 0.0
    # A sum is finite only where all are; that of large ones may not be although they are.
    if not math.isfinite(total) and not all(map(math.isfinite, _numbers(one, score))):
        raise RecordingError(
            f"Scorer {scorer.name} gives trajectory {one.trajectory_id} the reward {score.reward}: its recorded P&L "
            f"({one.window_pnl}) or capital ({one.capital}) is not a usable number. Correct or reject that recording."
        )
    if score.decision_rewards:
        rewards = score.decision_rewards.values()
        total = sum(rewards)
        if total != score.reward and not abs(total - score.reward) <= SUM_ROUNDING * (1 + sum(map(abs, rewards))):
            raise ScoringError(
                f"Scorer {scorer.name} gives the decisions of trajectory {one.trajectory_id} {total} together, and the "
                f"run {score.reward}. Make `decision_rewards` sum to `reward`, or leave them None."
            )


def _numbers(one: Features, score: Score) -> list[float]:
    others = (score.counterfactuals or {}).values()
    return [score.reward, one.window_pnl, *score.parts.values(), *(value for value in others if value is not None)]
