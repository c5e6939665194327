"""The seam of scorers: what one sees of a window, what it answers with, and the names that it is found by.

A scorer is a name, a version, settings, and a function from the runs of a window to one score each, in the same order.
A scorer whose numbers change gets another version: scores are versioned, never overwritten.
"""

import importlib
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import OF_THE_WHOLE
from babylon_rl.errors import BabylonError, ScoringError, SettingsError
from babylon_rl.scoring.features import Features, Market
from babylon_rl.settings import Settings

# Provenance of a trajectory whose reward cannot be computed: it is shown, and never trained on.
NO_CAPITAL = "no_capital"


class RunText(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent was told, wrote and did, for a scorer that reads. `goal`: its system prompt.

    `decisions`: a text each, oldest first; `actions`: the same decisions by what was done alone; `answers`: the same by
    what the agent wrote alone, or none where that cannot be told apart.
    """

    trajectory_id: str
    agent_id: str
    goal: str
    decisions: Sequence[str]
    actions: Sequence[str]
    answers: Sequence[str] = ()


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """What a scorer sees of a window: its runs by trajectory id, and what the market did.

    `outcomes`: the window's rows of `market_outcomes`. `texts`: of the runs, in the same order, where the scorer reads
    them (`Scorer.reads_texts`), else empty. `values`: of each run, in the same order, reward `alpha` of every legal
    answer of its decision by its text, None where that is not known; empty where nobody looked.
    """

    window_id: str
    features: Sequence[Features]
    market: Market
    outcomes: pd.DataFrame
    texts: Sequence[RunText] = ()
    values: Sequence[dict[str, float] | None] = ()


class Score(msgspec.Struct, frozen=True, gc=False):
    """Reward of one trajectory, what it is made of, and a line for a person.

    `refused`: provenance that replaces the recorded one where there is no valid reward. `decision_rewards`: reward of
    each decision by the number of its step, where its position can be attributed; they sum to `reward`. None where the
    reward is the whole run's. `counterfactuals`: rewards of what was not done (flat, hold, best). `process`,
    `hindsight`: a judge's scores, 0..1. `signs`: of injection. `judge`: what a judge was asked and answered, as JSON
    values.
    """

    reward: float
    parts: dict[str, float]
    reason: str
    refused: str | None = None
    decision_rewards: dict[int, float] | None = None
    counterfactuals: dict[str, float | None] | None = None
    process: float | None = None
    hindsight: float | None = None
    signs: Sequence[str] = ()
    judge: dict[str, Any] | None = None


class Scorer(msgspec.Struct, frozen=True):
    """A named, versioned way from the runs of a window to one score each, in the same order.

    `settings`: what its numbers depend on beside the runs, stored with each row. `values`: the reward of every legal
    answer of a trajectory's decision, on the same scale, where the scorer knows it. `noise`: rewards that differ by
    less are equal. `reads_texts`: whether it looks at what agents were told and wrote.
    """

    name: str
    version: str
    score: Callable[[Runs], list[Score]]
    values: Callable[..., dict[str, float] | None] | None = None
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    noise: float = 1e-6
    reads_texts: bool = False


# A scorer that depends on settings, or keeps something in the database, is made anew for each run.
Factory = Callable[[Settings, Database | None], Scorer]

_REGISTERED: dict[str, Scorer | Factory] = {}


def register(scorer: Scorer | Factory, name: str | None = None) -> None:
    """Make a scorer known by its name; a factory needs one. SettingsError where another has the name."""
    known = name or (scorer.name if isinstance(scorer, Scorer) else None)
    if known is None:
        raise SettingsError("A factory of a scorer is registered with a name: register(make, 'mine').")
    if _REGISTERED.setdefault(known, scorer) is not scorer:
        raise SettingsError(f"There is a scorer {known!r} already; choose another name.")


def registered_scorer(name: str, settings: Settings, database: Database | None) -> Scorer:
    """The scorer that was registered under the name, made with the settings; SettingsError names the known ones."""
    found = _REGISTERED.get(name)
    if found is None:
        known = ", ".join(sorted(_REGISTERED))
        raise SettingsError(
            f"There is no scorer {name!r}. Set BABYLON_RL_SCORER to one of: {known}. One of your own is known once "
            "BABYLON_RL_SCORER_MODULES names its module (docs/write-a-scorer.md)."
        )
    made = found if isinstance(found, Scorer) else found(settings, database)
    if not isinstance(made, Scorer):
        raise SettingsError(f"The factory of scorer {name!r} must return a Scorer, not {type(made).__name__}.")
    return made


def import_modules(names: str) -> None:
    """Import the modules, separated by commas, which registers their scorers. SettingsError where one fails."""
    for module in filter(None, (part.strip() for part in names.split(","))):
        _import(module)


def _import(module: str) -> None:
    """Import a module of the user's; SettingsError says what fails in it and where."""
    named = f"BABYLON_RL_SCORER_MODULES names {module!r}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise SettingsError(f"{named}, whose import fails: {_told(error)}. Install that, or correct it.") from None
        raise SettingsError(
            f"{named}, which is not found. Write the module's name without .py, and have its folder on PYTHONPATH."
        ) from None
    except BabylonError as error:
        raise SettingsError(f"{named}, whose import fails: {error}") from None
    except Exception as error:
        raise SettingsError(f"{named}, whose import fails: {_told(error)}. Correct it.") from None


def _told(error: Exception) -> str:
    """An error of somebody else's code in one line, with the file's line in which it came up."""
    # A syntax error names its own line; the trace ends in Python's importer.
    lines = [] if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)
    where = f" ({lines[-1].filename.rpartition('/')[2]}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def scores_of(scorer: Scorer, runs: Runs) -> list[Score]:
    """What the scorer gives the runs, one score each with a finite reward; ScoringError names the scorer otherwise."""
    said = f"Scorer {scorer.name} {scorer.version} in {runs.window_id}"
    try:
        given = list(scorer.score(runs))
    except (BabylonError, *OF_THE_WHOLE):
        raise
    except Exception as error:
        raise ScoringError(f"{said} fails: {_told(error)}. Correct the scorer.") from error
    if len(given) != len(runs.features):
        raise ScoringError(
            f"{said} gives {len(given)} scores for {len(runs.features)} runs. It must return one Score a run, in the "
            "order of runs.features."
        )
    for one, score in zip(runs.features, given, strict=True):
        if not isinstance(score, Score):
            raise ScoringError(f"{said} gives run {one.trajectory_id} a {type(score).__name__}; it must be a Score.")
        if _adds_up(score):
            continue
        # A number that the recording itself spoilt is told as such, by the caller.
        if not _finite(score.reward, *score.parts.values()) and _finite(one.window_pnl):
            numbers = {"reward": score.reward, **score.parts}
            name, value = next((name, value) for name, value in numbers.items() if not _finite(value))
            raise ScoringError(
                f"{said} gives run {one.trajectory_id} the {name} {value!r}, which is no finite number. Correct the "
                f"scorer, or the recording where its P&L ({one.window_pnl}) or capital ({one.capital}) is at fault."
            )
    return given


def _adds_up(score: Score) -> bool:
    """Whether the numbers have a finite sum, which only finite ones have; large ones may have none."""
    try:
        return math.isfinite(score.reward + sum(score.parts.values()))
    except (TypeError, OverflowError):
        return False


def _finite(*values: Any) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # no number, or one that no float holds
        return False


def registered() -> list[str]:
    """Names of the known scorers."""
    return sorted(_REGISTERED)
