"""A judge's answer: read strictly, matched by id, clamped; whatever does not fit is a named error and no score.

The answer is one JSON object, `{"scores": [{"trajectory_id": text, "score": number, "reason": text}, …]}`, alone or in
a Markdown block. Nothing is guessed: a judge that leaves a trajectory out has not judged the window.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from babylon_rl.errors import ScoringError
from babylon_rl.recording.row_reader import finite

LONGEST_REASON = 2_000  # letters that are kept
_BLOCK = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL | re.IGNORECASE)


class Fault(StrEnum):
    """What is wrong with an answer."""

    EMPTY = "empty"
    NOT_JSON = "not_json"
    NOT_SCORES = "not_scores"
    MISSING_ID = "missing_id"
    DOUBLED_ID = "doubled_id"
    UNKNOWN_ID = "unknown_id"
    NOT_A_NUMBER = "not_a_number"
    NOT_A_CHOICE = "not_a_choice"


class AnswerError(ScoringError):
    """The answer cannot be used, with the name of the fault."""

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(f"The judge's answer is refused ({fault}): {said}")
        self.fault, self.said = fault, said


class Judged(NamedTuple):
    """Score of one trajectory, 0..1, and the judge's words. `clamped`: the judge gave one outside of that."""

    trajectory_id: str
    score: float
    reason: str
    clamped: bool


class _Score(msgspec.Struct, frozen=True):
    trajectory_id: str
    score: Any
    reason: str = ""


class _Scores(msgspec.Struct, frozen=True):
    scores: list[_Score]


def read_answer(text: str, wanted: Sequence[str]) -> list[Judged]:
    """The scores in the order of `wanted`, each id exactly once. AnswerError otherwise."""
    scores = _scores(text)
    counts = Counter(one.trajectory_id for one in scores)
    for fault, names in (
        (Fault.UNKNOWN_ID, sorted(counts.keys() - set(wanted))),
        (Fault.DOUBLED_ID, sorted(name for name, count in counts.items() if count > 1)),
        (Fault.MISSING_ID, [name for name in wanted if name not in counts]),
    ):
        if names:
            raise AnswerError(fault, f"{len(names)} of {len(wanted)} ids, such as {names[0][:80]!r}")
    by_id = {one.trajectory_id: one for one in scores}
    return [_judged(by_id[name]) for name in wanted]


def _scores(text: str) -> list[_Score]:
    block = _BLOCK.match(text)
    told = (block[1] if block else text).strip()
    if not told:
        raise AnswerError(Fault.EMPTY, "there is no text")
    try:
        value = json.loads(told)
    except (ValueError, RecursionError) as error:
        raise AnswerError(Fault.NOT_JSON, str(error) or "it is nested too deeply") from None
    try:
        return msgspec.convert(value, _Scores).scores
    except msgspec.ValidationError as error:
        raise AnswerError(Fault.NOT_SCORES, str(error)) from None


def _judged(one: _Score) -> Judged:
    # A text that spells a number is none: who writes "1.0" may write "1.0 because" as well.
    score = None if isinstance(one.score, str) else finite(one.score)
    if score is None:
        raise AnswerError(Fault.NOT_A_NUMBER, f"{one.trajectory_id[:80]!r} has the score {str(one.score)[:40]!r}")
    within = min(max(score, 0.0), 1.0)
    # What no database can hold: NUL, and halves of surrogate pairs.
    reason = one.reason.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    return Judged(one.trajectory_id, within, reason[:LONGEST_REASON], within != score)


def read_choice(text: str, wanted: str, choices: Collection[str]) -> Judged:
    """The score of one run from an answer that is one of `choices`. AnswerError otherwise."""
    told = text.strip()
    if not told:
        raise AnswerError(Fault.EMPTY, "there is no text")
    if told not in choices:
        raise AnswerError(Fault.NOT_A_CHOICE, f"{wanted[:80]!r} has the answer {told[:40]!r}")
    return Judged(wanted, float(told), "", False)
