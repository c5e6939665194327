"""Scorer `blend`: a declared mixture of other scorers, whose parts stay visible."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from babylon_rl.database.connect import Database
from babylon_rl.errors import SettingsError
from babylon_rl.scoring.seam import Runs, Score, Scorer, register, registered, registered_scorer, scores_of
from babylon_rl.settings import Settings

NAME = "blend"
VERSION = "1"

Weighed = Sequence[tuple[Scorer, float]]


def make_blend(settings: Settings, database: Database | None) -> Scorer:
    """The mixture that the setting `blend` declares. SettingsError where it names no scorer or no weight."""
    weights = weights_of(settings.blend)
    parts = [(registered_scorer(name, settings, database), weight) for name, weight in weights.items()]
    values = functools.partial(_values, parts) if all(one.values for one, weight in parts if weight) else None
    return Scorer(
        name=NAME,
        version="+".join((VERSION, *(f"{one.name}-{one.version}" for one, _ in parts))),
        score=functools.partial(_blend, parts),
        values=values,
        settings={"weights": weights, **{one.name: dict(one.settings) for one, _ in parts if one.settings}},
        noise=math.fsum(weight * one.noise for one, weight in parts),
        reads_texts=any(one.reads_texts for one, _ in parts),
    )


def weights_of(told: str) -> dict[str, float]:
    """Weights by scorer from a text such as "alpha=1,ruler=0.01", by name. SettingsError where it is something else."""
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in told.split(","))):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if name == NAME or name not in registered():
            known = ", ".join(one for one in registered() if one != NAME)
            raise SettingsError(f"BABYLON_RL_BLEND mixes {name!r}, which is none of the scorers: {known}.")
        if name in weights or not 0 <= value < math.inf:
            raise SettingsError(f"BABYLON_RL_BLEND says {part!r}; give each scorer one weight, 0 or more, as alpha=1.")
        weights[name] = value
    if not any(weights.values()):
        raise SettingsError("BABYLON_RL_BLEND gives no scorer a weight; write one, as in alpha=1,ruler=0.01.")
    return dict(sorted(weights.items()))


def _blend(parts: Weighed, window: Runs) -> list[Score]:
    given = [scores_of(one, window) for one, _ in parts]
    return [_sum(parts, scores) for scores in zip(*given, strict=True)]


def _sum(parts: Weighed, scores: Sequence[Score]) -> Score:
    """One run's score from its scores by each part."""
    shown, said = {}, []
    for (one, weight), score in zip(parts, scores, strict=True):
        shown[one.name] = score.reward
        shown |= {f"{one.name}.{part}": value for part, value in score.parts.items()}
        said.append(f"{weight:g} {one.name} ({score.reason})")
    return Score(
        reward=math.fsum(weight * score.reward for (_, weight), score in zip(parts, scores, strict=True)),
        parts=shown,
        reason=" + ".join(said),
        refused=_first(scores, "refused"),
        decision_rewards=_decision_rewards(parts, scores),
        counterfactuals=_first(scores, "counterfactuals"),
        process=_first(scores, "process"),
        hindsight=_first(scores, "hindsight"),
        signs=sorted({sign for score in scores for sign in score.signs}),
        judge=_first(scores, "judge"),
    )


def _first(scores: Sequence[Score], name: str) -> Any:
    return next((found for score in scores if (found := getattr(score, name)) is not None), None)


def _decision_rewards(parts: Weighed, scores: Sequence[Score]) -> dict[int, float] | None:
    """The same mixture decision by decision, where each part that weighs anything tells the same decisions apart."""
    own = [(weight, score.decision_rewards) for (_, weight), score in zip(parts, scores, strict=True) if weight]
    steps = own[0][1]
    if steps is None or any(rewards is None or rewards.keys() != steps.keys() for _, rewards in own):
        return None
    return {step: math.fsum(weight * rewards[step] for weight, rewards in own if rewards) for step in steps}


def _values(parts: Weighed, *told: Any) -> dict[str, float] | None:
    """The same mixture of each legal answer's reward, where all parts that weigh anything know it."""
    own = [(weight, one.values(*told)) for one, weight in parts if weight and one.values]
    answers = own[0][1]
    if answers is None or any(values is None or values.keys() != answers.keys() for _, values in own):
        return None
    return {answer: math.fsum(weight * values[answer] for weight, values in own if values) for answer in answers}


register(make_blend, NAME)
