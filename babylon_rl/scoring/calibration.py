"""How far a judge can be trusted: its scores held against what was earned and against its own on repeats.

Pure: from the rows of a window to its figures, from the figures of windows to their means, from those to a verdict.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import msgspec

from babylon_rl.errors import ScoringError
from babylon_rl.scoring.intervals import Mean, mean_of
from babylon_rl.scoring.rank_correlation import partial_tau, tau_b

NO_JUDGE, UNPROVEN, TRUSTED, SET_ASIDE = "no_judge", "unproven", "trusted", "set_aside"
MOST_POOLED = 200  # windows that a verdict rests on
LEAST_RUNS = 3
RULER = "ruler"  # the scorer that asks a judge, by its name in a blend's settings
# Means of the same repeats differ by rounding; what is equal up to here is a tie.
_DIGITS = 9

Question = Literal["hindsight", "process"]


class Asked(msgspec.Struct, frozen=True):
    """One score that a judge gave a run. `place`: in the prompt, of `of`; `length`: letters that it was shown."""

    repeat: int
    score: float
    place: int | None = None
    of: int | None = None
    length: int | None = None


class Judgment(msgspec.Struct, frozen=True):
    """Column `judge` of a run. `digest`: of how the judge was asked, the same for all that it can be compared with."""

    model: str
    digest: str
    asked: dict[str, list[Asked]]

    @property
    def judge(self) -> str:
        """The judge's name: the model and how it was asked."""
        return f"{self.model} {self.digest}"


class Figures(msgspec.Struct, frozen=True):
    """A window's figures of one question; each but `runs` is None where it is not defined.

    `agreement`: rank correlation (tau-b) of score and alpha, 0 where all scores are alike. `repeat`: mean one between
    two repeats. `order`, `length`: of score and place in the prompt (mean over repeats), and length of the shown text.
    `length_given_outcome`: the latter with alpha held fixed. `noise`: standard deviation of a run's score from repeat
    to repeat.
    """

    runs: int = 0
    agreement: float | None = None
    repeat: float | None = None
    order: float | None = None
    length: float | None = None
    length_given_outcome: float | None = None
    noise: float | None = None


class WindowFigures(msgspec.Struct, frozen=True):
    """A judged window: who judged it, how many runs, which question gives the reward, and the figures of both."""

    judge: str
    runs: int
    reward: Question
    hindsight: Figures
    process: Figures

    def of(self, question: Question) -> Figures:
        """The figures of that question."""
        return self.hindsight if question == "hindsight" else self.process


class Pooled(msgspec.Struct, frozen=True):
    """Means over windows of one judge and question, up to the last of them. `noise`: root of the mean variance."""

    agreement: Mean = Mean()
    repeat: Mean = Mean()
    order: Mean = Mean()
    length: Mean = Mean()
    noise: float | None = None


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """Below what a judge is set aside: the lower end of agreement with alpha, mean agreement with itself.

    `least_windows`: windows in which a figure must be known before it is held to its floor.
    """

    agreement: float
    repeat: float
    least_windows: int


def judgment_of(row: Mapping[str, Any]) -> Judgment:
    """Column `judge` of a row of `scored_trajectories` by its types; ScoringError where it does not fit them."""
    try:
        return msgspec.convert(row["judge"], Judgment)
    except msgspec.ValidationError as error:
        raise ScoringError(
            f"What the judge answered for trajectory {row['trajectory_id']} cannot be read ({error}). Materialize "
            "scored_trajectories of its window again."
        ) from None


def window_figures(rows: Iterable[Mapping[str, Any]]) -> WindowFigures | None:
    """Figures of a window from its rows of `scored_trajectories`, in any order; None where no run was judged.

    ScoringError where several judges, or one judge asked in several ways, judged the window: they cannot be compared.
    """
    # pandas says NaN for what is missing.
    judged = [row for row in rows if isinstance(row["judge"], Mapping)]
    judged.sort(key=lambda row: str(row["trajectory_id"]))
    if not judged:
        return None
    judgments = [judgment_of(row) for row in judged]
    judges = sorted({one.judge for one in judgments})
    if len(judges) > 1:
        raise ScoringError(
            f"Window {judged[0]['window_id']} was judged by {len(judges)} judges ({', '.join(judges)[:200]}). "
            "Materialize its scored_trajectories again, so that one judges all its runs."
        )
    settings = judged[0].get("scorer_settings") or {}
    by_process = settings.get(RULER, settings).get("reward") == "process"  # a blend has its parts' settings
    return WindowFigures(
        judge=judges[0],
        runs=len(judged),
        reward="process" if by_process else "hindsight",
        hindsight=_figures("hindsight", judged, judgments),
        process=_figures("process", judged, judgments),
    )


def _figures(question: Question, rows: Sequence[Mapping[str, Any]], judgments: Sequence[Judgment]) -> Figures:
    asked = [one.asked.get(question, []) for one in judgments]
    scores = [_number(row[f"{question}_score"]) for row in rows]
    runs = sum(map(math.isfinite, scores))
    if runs < LEAST_RUNS:
        return Figures(runs=runs, noise=_noise(asked))
    earned = [_number(row["outcome_score"]) for row in rows]
    lengths = [_mean([one.length for one in own if one.length is not None]) for own in asked]
    agreement, length = _agreement(scores, earned), tau_b(scores, lengths)
    return Figures(
        runs=runs,
        agreement=agreement,
        repeat=_repeat(asked),
        order=_order(asked),
        length=length,
        length_given_outcome=partial_tau(length, agreement, tau_b(lengths, earned)),
        noise=_noise(asked),
    )


def _agreement(scores: Sequence[float], earned: Sequence[float]) -> float | None:
    """Rank correlation of score and alpha; 0 where the judge gave all the same and alpha did not: it told nothing."""
    told = [(score, alpha) for score, alpha in zip(scores, earned, strict=True) if math.isfinite(score + alpha)]
    if len(told) >= LEAST_RUNS and len({score for score, _ in told}) == 1 < len({alpha for _, alpha in told}):
        return 0.0
    return tau_b(scores, earned)


def _repeat(asked: Sequence[Sequence[Asked]]) -> float | None:
    """Mean rank correlation between any two repeats, over the runs that both scored."""
    repeats = sorted({one.repeat for own in asked for one in own})
    # A run that is an anchor of several prompts has several scores in one repeat.
    by_repeat = {
        repeat: [_mean([one.score for one in own if one.repeat == repeat]) for own in asked] for repeat in repeats
    }
    return _mean_known(tau_b(by_repeat[a], by_repeat[b]) for a, b in combinations(repeats, 2))


def _order(asked: Sequence[Sequence[Asked]]) -> float | None:
    """Mean over repeats of the rank correlation between a run's score and its place, as a share of the prompt."""
    repeats: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in (one for own in asked for one in own):
        if one.place is not None:
            repeats[one.repeat].append((one.score, one.place / (one.of or 1)))
    return _mean_known(tau_b(*zip(*repeats[repeat], strict=True)) for repeat in sorted(repeats))


def _noise(asked: Sequence[Sequence[Asked]]) -> float | None:
    """Standard deviation of a score about its run's mean, over all runs that were scored more than once."""
    repeated = [[one.score for one in own] for own in asked if len(own) > 1]
    if not repeated:
        return None
    squares = math.fsum((score - _mean(own)) ** 2 for own in repeated for score in own)
    return math.sqrt(squares / sum(len(own) - 1 for own in repeated))


def courses_of(history: Mapping[str, WindowFigures]) -> dict[str, list[WindowFigures]]:
    """What each window's verdict rests on: the windows of its judge up to it, by time, at most `MOST_POOLED`.

    `history`: figures by window id. No window's course depends on a later window.
    """
    by_judge: dict[str, list[WindowFigures]] = defaultdict(list)
    courses = {}
    for window_id in sorted(history):
        own = by_judge[history[window_id].judge]
        own.append(history[window_id])
        courses[window_id] = own[-MOST_POOLED:]
    return courses


def pooled(course: Sequence[WindowFigures]) -> Pooled:
    """Means over windows of one judge by time, of the question that gives the last one's reward.

    Neighbouring windows share their agents and are not quite independent, which the intervals leave out of account.
    """
    figures = [one.of(course[-1].reward) for one in course]
    noises = [one.noise**2 for one in figures if one.noise is not None]
    return Pooled(
        agreement=_pooled(one.agreement for one in figures),
        repeat=_pooled(one.repeat for one in figures),
        order=_pooled(one.order for one in figures),
        length=_pooled(one.length for one in figures),
        noise=math.sqrt(math.fsum(noises) / len(noises)) if noises else None,
    )


def _pooled(values: Iterable[float | None]) -> Mean:
    return mean_of([value for value in values if value is not None], -1.0, 1.0)


def verdict_of(means: Pooled, floors: Floors) -> tuple[str, str]:
    """Verdict on a judge, and its reason in a sentence: unproven, trusted, or set aside with the figure and its floor.

    Agreement with alpha must be shown: the lower end of its interval must be above the floor, for half of all judges
    that guess have a mean above 0, and one that says the same of all has exactly 0. Agreement with itself is held by
    its mean. A judge that is unproven is used, and so is one whose repeats are not known, of which the reason says so.
    """
    agreement, repeat = means.agreement, means.repeat
    if agreement.windows < floors.least_windows:
        return UNPROVEN, (
            f"its scores are used unproven: agreement with alpha is known in {_windows(agreement)} of the "
            f"{floors.least_windows} that are needed, {agreement} so far"
        )
    repeated = repeat.windows >= floors.least_windows
    shown = agreement.low is not None and agreement.low > floors.agreement
    below = [] if shown else [_told("agreement with alpha", agreement, floors.agreement)]
    if repeated and repeat.below(floors.repeat):
        below.append(_told("agreement with itself", repeat, floors.repeat))
    if below:
        return SET_ASIDE, f"set aside for alpha: {'; '.join(below)}"
    told = [_told("agreement with alpha", agreement, floors.agreement)]
    if repeated:
        told.append(_told("agreement with itself", repeat, floors.repeat))
    else:
        told.append(f"agreement with itself is known in {_windows(repeat)} and not held to its floor")
    return TRUSTED, "; ".join(told)


def _told(name: str, mean: Mean, floor: float) -> str:
    return f"{name} is {mean} over {_windows(mean)}, floor {floor:+.2f}"


def _windows(mean: Mean) -> str:
    return f"{mean.windows} window{'' if mean.windows == 1 else 's'}"


def _number(value: Any) -> float:
    """The figure with ties as such; NaN where there is none."""
    return math.nan if value is None else round(float(value), _DIGITS)


def _mean(values: Sequence[float]) -> float:
    """Mean in any order, NaN of nothing."""
    return round(math.fsum(values) / len(values), _DIGITS) if values else math.nan


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
