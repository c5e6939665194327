"""Scorer `ruler`: what a judge gives a run beside the others of its hour.

A relative judge over a whole group, after ART's RULER, with three differences: the judge is shown what the market did,
each run's own goal and capital, and it is asked a second time without the outcome, so that luck can be told from skill.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from babylon_rl.database.connect import Database
from babylon_rl.scoring.features import Features
from babylon_rl.scoring.judge.budget import Budget, Prices
from babylon_rl.scoring.judge.client import JudgeClient
from babylon_rl.scoring.judge.evidence import Texts, evidence_of
from babylon_rl.scoring.judge.kept import KeptAnswers
from babylon_rl.scoring.judge.panel import Given, How, Panel
from babylon_rl.scoring.judge.view import Question, rubric_of
from babylon_rl.scoring.seam import Runs, Score, Scorer, register
from babylon_rl.scoring.spoken import money
from babylon_rl.settings import Settings

NAME, VERSION = "ruler", "1"
# Judges answer in hundredths at best; scores that are nearer than two of them say nothing.
NOISE = 0.02
LONGEST_SENTENCE = 160  # letters of the judge's words in the reason


def make_ruler(settings: Settings, database: Database | None) -> Scorer:
    """The scorer of these settings; answers are kept in the database. SettingsError where no judge is named."""
    panel = panel_of(settings, database)
    reward, how = Question(settings.judge_reward), panel.how

    def score(window: Runs) -> list[Score]:
        return _scores(window, panel, reward, settings.judge_texts)

    told = {
        "model": panel.client.model,
        "base_url": panel.client.base_url,
        "form": how.form,
        "reward": str(reward),
        "texts": settings.judge_texts,
        "repeats": how.repeats,
        "runs_per_call": how.runs_per_call,
        "seed": how.seed,
        "asked": how.digest(panel.client.model),
    }
    return Scorer(NAME, VERSION, score, settings=told, noise=NOISE, reads_texts=True)


def panel_of(settings: Settings, database: Database | None) -> Panel:
    """The judge that the settings name, with a budget of its own. SettingsError where they name none."""
    how = How(
        form=settings.judge_form,
        rubrics={
            Question.HINDSIGHT: rubric_of(Question.HINDSIGHT, settings.judge_rubric),
            Question.PROCESS: rubric_of(Question.PROCESS, settings.judge_process_rubric),
        },
        repeats=settings.judge_repeats,
        runs_per_call=settings.judge_runs_per_call,
        seed=settings.judge_seed,
        thinking_tokens=settings.judge_thinking_tokens,
    )
    budget = Budget(settings.judge_budget_tokens, Prices(settings.judge_prices))
    return Panel(JudgeClient(settings), how, budget, KeptAnswers(database))


def _scores(window: Runs, panel: Panel, reward: Question, texts: Texts) -> list[Score]:
    evidence = evidence_of(window, texts)
    verdicts = panel.judge(window.window_id, evidence.runs, evidence.truth)
    who = {"model": panel.client.model, "form": panel.how.form, "digest": panel.how.digest(panel.client.model)}
    scores = []
    for one, run, signs in zip(window.features, evidence.runs, evidence.signs, strict=True):
        given = {question: [repeat[one.trajectory_id] for repeat in verdicts[question]] for question in Question}
        means = {question: statistics.fmean(each.score for each in given[question]) for question in Question}
        scores.append(
            Score(
                reward=means[reward],
                parts={str(question): mean for question, mean in means.items()},
                reason=_reason(one, means[reward], given[reward], signs if run.withheld else ()),
                process=means[Question.PROCESS],
                hindsight=means[Question.HINDSIGHT],
                signs=signs,
                judge={**who, "asked": {str(question): _told(given[question]) for question in Question}},
            )
        )
    return scores


def _told(given: Sequence[Given]) -> list[dict[str, Any]]:
    return [{"repeat": repeat, **each._asdict()} for repeat, each in enumerate(given)]


def _reason(one: Features, mean: float, given: Sequence[Given], withheld: Sequence[str]) -> str:
    """A line for a person: what was done and earned, what it was given, and the judge's first sentence."""
    each = "" if len(given) == 1 else f" ({', '.join(f'{score.score:.2f}' for score in given)})"
    said = f"{money(one)} {one.acted}; judge {mean:.2f}{each}"
    if withheld:
        said += f"; its text was withheld from the judge: {', '.join(withheld)}"
    words = next((" ".join(score.reason.split()) for score in given if score.reason.strip()), "")
    sentence = words.partition(". ")[0][:LONGEST_SENTENCE]
    return f"{said}: {sentence}" if sentence else said


register(make_ruler, NAME)
