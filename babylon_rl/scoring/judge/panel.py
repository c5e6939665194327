"""Judging a window: which questions are asked, how often and in how many calls, and what is made of the answers.

Two questions a repeat, hindsight and process, each in chunks where the window is long. An answer that cannot be read is
asked for once more; then the window fails by the name of the fault, and what was answered is kept.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from babylon_rl.errors import ScoringError
from babylon_rl.scoring.judge.answers import AnswerError, Judged, read_answer, read_choice
from babylon_rl.scoring.judge.budget import Budget, prompt_tokens
from babylon_rl.scoring.judge.chunks import Arrangement, arrange, level
from babylon_rl.scoring.judge.client import JudgeClient, JudgeError, Reply, Trouble
from babylon_rl.scoring.judge.kept import KeptAnswer, KeptAnswers
from babylon_rl.scoring.judge.view import CHOICES, TEMPLATE, JudgedRun, Prompt, Question, ask_all, ask_one, prompt_of

ATTEMPTS = 2
# Tokens that an answer may have: for the frame, for each run beside its id, and for one of the choices.
FRAME_TOKENS, RUN_TOKENS, CHOICE_TOKENS = 300, 200, 16

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class How(NamedTuple):
    """How a judge is asked. `form`: `json`, all runs of a chunk at once, or `choices`, a run at a time.

    `thinking_tokens`: what it may write before its answer, where the endpoint counts that.
    """

    form: str
    rubrics: dict[Question, str]
    repeats: int
    runs_per_call: int
    seed: int
    thinking_tokens: int = 0

    def digest(self, model: str) -> str:
        """SHA-256 of how that judge is asked: model, form, rubrics, template, repeats."""
        return _digest(model, self.form, {str(q): text for q, text in self.rubrics.items()}, TEMPLATE, self.repeats)


class Given(NamedTuple):
    """What a judge gave a run in one repeat: its score, 0..1, its place (from 0) among `of` runs that were shown, the
    letters that were shown of it, and the judge's words. `clamped`: it gave one outside of 0..1."""

    score: float
    place: int
    of: int
    length: int
    reason: str
    clamped: bool


# By question, a record for each repeat: what each run was given, by id.
Verdicts = dict[Question, list[dict[str, Given]]]


class _Call(NamedTuple):
    """One request. `ids`: runs that are asked for, of those in the prompt."""

    question: Question
    repeat: int
    chunk: int
    order: tuple[str, ...]
    ids: tuple[str, ...]
    prompt: Prompt
    digest: str


class Panel:
    """A judge with its way of being asked, its budget, and what it answered before."""

    def __init__(self, client: JudgeClient, how: How, budget: Budget, kept: KeptAnswers) -> None:
        self.client, self.how, self.budget, self._kept = client, how, budget, kept

    def judge(self, window_id: str, runs: Sequence[JudgedRun], truth: Sequence[str]) -> Verdicts:
        """What the judge gives each run. AnswerError, JudgeError or BudgetError where it cannot be had."""
        if not runs:
            return {question: [] for question in Question}
        ids = [run.trajectory_id for run in runs]
        how = self.how
        arrangements = arrange(ids, window_id, how.seed, how.repeats, how.runs_per_call)
        calls = self._calls(window_id, runs, truth, arrangements)
        read = {call.digest: self._read(call, text) for call, text in self._known(calls)}
        asked = [call for call in calls if call.digest not in read]
        if asked:
            self._check(window_id, asked)
            read |= _run(self._ask(window_id, {call.digest: call for call in asked}.values()))
        return _verdicts(calls, read, arrangements)

    def _calls(
        self, window_id: str, runs: Sequence[JudgedRun], truth: Sequence[str], arrangements: Sequence[Arrangement]
    ) -> list[_Call]:
        by_id = {run.trajectory_id: run for run in runs}
        calls = []
        for question in Question:
            for repeat, arrangement in enumerate(arrangements):
                for number, order in enumerate(arrangement.chunks):
                    shown = [by_id[name] for name in order]
                    prompt = prompt_of(shown, truth, self.how.rubrics[question], question)
                    for ids in [tuple(order)] if self.how.form == "json" else [(name,) for name in order]:
                        digest = self._digest(window_id, question, repeat, ids, prompt)
                        calls.append(_Call(question, repeat, number, tuple(order), ids, prompt, digest))
        return calls

    def _digest(self, window_id: str, question: Question, repeat: int, ids: tuple[str, ...], prompt: Prompt) -> str:
        """Of everything that goes in, but for the nonce: the rubric, the truth, the runs as shown and their order stand
        in the prompt's text, and the template is what is around them."""
        who = (self.client.model, self.client.base_url, self.how.form, self.how.seed)
        return _digest(*who, window_id, question, repeat, ids, prompt.plain, TEMPLATE)

    def _known(self, calls: Sequence[_Call]) -> list[tuple[_Call, str]]:
        found = self._kept.find([call.digest for call in calls])
        return [(call, found[call.digest]) for call in calls if call.digest in found]

    def _check(self, window_id: str, asked: Sequence[_Call]) -> None:
        """BudgetError where the questions of a window may cost more than is left; nothing of it is asked then."""
        prompt, completion = (sum(each) for each in zip(*map(self._most, asked), strict=True))
        dollars = self.budget.prices.dollars(prompt, completion)
        log.info(
            "judging %s: %d calls, at most %d tokens%s, %d of %d spent",
            *(window_id, len(asked), prompt + completion, "" if dollars is None else f" (${dollars:.4f})"),
            *(self.budget.spent, self.budget.limit),
        )
        self.budget.check(prompt, completion, f"Judging the window {window_id}")

    def _most(self, call: _Call) -> tuple[int, int]:
        """Tokens of a call's prompt and answer at most."""
        return prompt_tokens(self._message(call.prompt, call)), self._answer_tokens(call)

    def _read(self, call: _Call, text: str) -> list[Judged]:
        return read_answer(text, call.ids) if self.how.form == "json" else [read_choice(text, call.ids[0], CHOICES)]

    def _message(self, prompt: Prompt, call: _Call) -> str:
        return prompt.text + (ask_all(len(call.ids)) if self.how.form == "json" else ask_one(call.ids[0]))

    def _answer_tokens(self, call: _Call) -> int:
        if self.how.form != "json":
            return CHOICE_TOKENS
        return self.how.thinking_tokens + FRAME_TOKENS + sum(RUN_TOKENS + len(json.dumps(name)) for name in call.ids)

    async def _ask(self, window_id: str, calls: Any) -> dict[str, list[Judged]]:
        """Answers by the call's digest. Those that could be read are kept, also where others of the window fail."""
        async with self.client.opened():
            done = await asyncio.gather(*(self._ask_one(window_id, call) for call in calls), return_exceptions=True)
        answered = [one for one in done if not isinstance(one, BaseException)]
        self._kept.keep(row for _, row in answered)
        for failed in done:
            if isinstance(failed, BaseException):
                raise failed
        return {row.digest: judged for judged, row in answered}

    async def _ask_one(self, window_id: str, call: _Call) -> tuple[list[Judged], KeptAnswer]:
        prompt = call.prompt
        for attempt in range(1, ATTEMPTS + 1):
            message = self._message(prompt, call)
            most = prompt_tokens(message), self._answer_tokens(call)
            self.budget.check(*most, f"Asking the judge about the window {window_id}")
            choices = None if self.how.form == "json" else CHOICES
            reply = await self.client.ask(message, self.how.seed + call.repeat, most[1], choices)
            used = _used(reply, most)
            self.budget.count(*used)
            try:
                text = _storable(_whole(reply, most[1]))
                judged = self._read(call, text)
            except (AnswerError, JudgeError) as error:
                if attempt == ATTEMPTS:
                    raise _for_good(error) from None
                prompt = prompt.with_another_nonce()
            else:
                return judged, KeptAnswer(call.digest, window_id, self.client.model, str(call.question), text, *used)
        raise AssertionError("the last attempt returns or raises")


def _whole(reply: Reply, limit: int) -> str:
    if reply.cut_off:
        said = (
            f"its answer was cut off at {limit} tokens. Judge fewer runs a call (BABYLON_RL_JUDGE_RUNS_PER_CALL), or "
        )
        raise JudgeError(Trouble.CUT_OFF, said + "let it think longer (BABYLON_RL_JUDGE_THINKING_TOKENS).")
    return reply.text


def _used(reply: Reply, most: tuple[int, int]) -> tuple[int, int]:
    """Tokens that a call took; where the endpoint does not say, those it may have taken."""
    told = (reply.prompt_tokens, reply.completion_tokens)
    prompt, completion = (most[n] if tokens is None else tokens for n, tokens in enumerate(told))
    return prompt, completion


def _for_good(error: AnswerError | JudgeError) -> ScoringError:
    """The error of the last attempt, with what mends it."""
    if isinstance(error, JudgeError):
        return error
    said = f"{error.said}. It was asked twice; choose a judge that follows the form, or show it fewer runs a call"
    return AnswerError(error.fault, f"{said} (BABYLON_RL_JUDGE_RUNS_PER_CALL).")


def _storable(text: str) -> str:
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _verdicts(calls: Sequence[_Call], read: dict[str, list[Judged]], arrangements: Sequence[Arrangement]) -> Verdicts:
    verdicts: Verdicts = {}
    for question in Question:
        verdicts[question] = []
        for repeat, arrangement in enumerate(arrangements):
            own = [call for call in calls if (call.question, call.repeat) == (question, repeat)]
            chunks: list[dict[str, float]] = [{} for _ in arrangement.chunks]
            given: dict[str, Given] = {}
            for call in own:
                for judged in read[call.digest]:
                    name = judged.trajectory_id
                    chunks[call.chunk][name] = judged.score
                    place = call.order.index(name)
                    length = len(call.prompt.entries[place].text)
                    first = Given(judged.score, place, len(call.order), length, judged.reason, judged.clamped)
                    given.setdefault(name, first)
            scores = level(chunks, arrangement.anchors)
            verdicts[question].append({name: one._replace(score=scores[name]) for name, one in given.items()})
    return verdicts


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result, also where the caller is inside of an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
