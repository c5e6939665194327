"""What became known only after a decision, as facts to search for: of the market, of the run itself, of its row.

Pure: what is told of the window comes in, facts and the figures that an agent could see at a moment come out.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from babylon_rl.groups.leaks import Later, Secrets, sorted_figures
from babylon_rl.groups.readings import figures
from babylon_rl.outcomes.history import Path, Question
from babylon_rl.recording.hindsight import Hindsight, sentences
from babylon_rl.recording.row_reader import finite
from babylon_rl.recording.window import UsableTrajectory

# A prompt is put together after the step's time is taken; what came by then is no secret.
PROMPT_TAKES = 10_000  # milliseconds
# Until when times that a text may hold are looked at: later ones are when questions end.
AFTER_RUN = timedelta(hours=2)
# Later prices of an instrument that are all searched for; of more the last, the highest and the lowest, for among many
# there is one for almost any figure.
MOST_PRICES = 4

_EARNED = re.compile(r"pnl|profit|loss|price|proceeds|payout|return", re.IGNORECASE)
_SAYS_CHANGE = re.compile(r"change|percent|return", re.IGNORECASE)
# Keys of what is said of an instrument; any other key is taken for an instrument's name.
_FIELD = re.compile(
    r"price|close|probabilit|outcome|resolution|resolve|change|percent|value|result|answer|event|news|note|hint|secret"
    r"|text|move|direction|verdict|knowledge|facts",
    re.IGNORECASE,
)
_VERDICTS = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}
_NAMED_BY = ("marketId", "questionId", "ticker", "symbol", "instrument", "question", "name", "id")


class Told(NamedTuple):
    """Facts of one moment. `of_history`: prices that a history tells; `others`: what else the market did."""

    of_history: Secrets
    others: Secrets
    seen: tuple[float, ...]


class Market:
    """The market of one window: what of it was known at a moment, and what came after.

    `outcomes`: the window's rows of `market_outcomes`; `paths`: prices within it; `questions`: by their id.
    """

    def __init__(
        self, outcomes: Sequence[Mapping[str, Any]], paths: Sequence[Path], questions: Mapping[str, Question]
    ) -> None:
        self._rows = {str(row["instrument"]): row for row in outcomes}
        self._paths = {path.name: path for path in paths}
        self._questions = questions
        turning = {moment for path in paths for moment in path.moments}
        turning |= {one.public_since for one in questions.values() if one.public_since is not None}
        self._turning = sorted(turning)
        self._told: dict[int, Told] = {}
        self._opens = [row["open"] for row in self._rows.values() if finite(row.get("open")) is not None]

    def at(self, moment: int) -> Told:
        """The facts of a moment, epoch milliseconds; alike for all moments between two prices."""
        key = bisect_right(self._turning, moment + PROMPT_TAKES)
        if key not in self._told:
            self._told[key] = self._facts(moment + PROMPT_TAKES)
        return self._told[key]

    def _facts(self, moment: int) -> Told:
        of_history: list[Later] = []
        others: list[Later] = []
        seen: list[float] = list(self._opens)
        for name in dict.fromkeys((*self._rows, *self._paths)):
            row, path = self._rows.get(name, {}), self._paths.get(name)
            at = 0 if path is None else bisect_right(path.moments, moment)
            now = path.prices[at - 1] if path is not None and at else finite(row.get("open"))
            is_question = row.get("kind") == "question" or name in self._questions
            if path is not None:
                seen += path.prices[:at]
                of_history += self._prices(name, path, at)
            if is_question:  # whoever sees the price of YES sees that of NO
                seen += [
                    1 - price for price in (path.prices[:at] if path else ()) or [row.get("open")] if finite(price)
                ]
            seen += [change for first in (finite(row.get("open")),) for change in _change(first, now, is_question)]
            others += self._of_row(name, row, path, now, is_question, moment)
        return Told(Secrets(of_history), Secrets(others), sorted_figures(seen))

    def _prices(self, name: str, path: Path, at: int) -> Iterator[Later]:
        # Where a question came true its price is 1, which tells no more than the verdict does.
        later = [price for price in path.prices[at:] if price not in (0.0, 1.0)]
        if later:
            also = self._names(name)
            yield Later(f"later price of {name}", name, price=later[-1], also=also)
            others = set(later) if len(later) <= MOST_PRICES else {max(later), min(later)}
            for price in sorted(others - {later[-1]}):
                yield Later(f"later price of {name}", name, price=price, also=also)

    def _of_row(
        self, name: str, row: Mapping[str, Any], path: Path | None, now: float | None, is_question: bool, moment: int
    ) -> Iterator[Later]:
        also = self._names(name)
        close = finite(row.get("close"))
        if path is None and close not in (None, 0.0, 1.0):
            yield Later(f"close of {name}", name, price=close, also=also)
        # A question that ended moved by what it lacked: that is the verdict again.
        if close not in (0.0, 1.0) or not is_question:
            changes = {*_change(finite(row.get("open")), close, is_question), *_change(now, close, is_question)}
            for change in sorted(changes):
                yield Later(f"change of {name}", name, change=change, also=also)
        since = self._questions[name].public_since if name in self._questions else None
        if is_question and row.get("outcome") in ("YES", "NO") and (since is None or since > moment):
            yield Later(f"resolution of {name}", name, verdict=row["outcome"], also=also)

    def _names(self, name: str) -> tuple[str, ...]:
        question = self._questions.get(name)
        text = question.text if question else self._rows.get(name, {}).get("question")
        return (text,) if text else ()


def _change(first: float | None, last: float | None, is_question: bool) -> Iterator[float]:
    if first is not None and last is not None and (is_question or first):
        yield last - first if is_question else last / first - 1


# --- the run itself --------------------------------------------------------------------------------


class Own:
    """What a run tells of itself: of each of its steps what was known, and what only came."""

    def __init__(self, run: UsableTrajectory) -> None:
        self._run = run
        self._states = [_state(step.environment_state) for step in run.steps]
        self._results = [list(_figures(step.action.result)) for step in run.steps]
        self._parameters = [list(_figures(step.action.parameters)) for step in run.steps]

    def moment(self, at: int) -> int:
        """When the step of that place was taken, epoch milliseconds; the run's start where that is not known."""
        start, end = _ms(self._run.start_time), _ms(self._run.end_time)
        said = finite(self._run.steps[at].timestamp) or 0
        return int(said) if start - 3_600_000 <= said <= end else start

    def known(self, at: int) -> tuple[float, ...]:
        """Figures that were there when the step of that place was taken."""
        values = [self._run.first_pnl]
        for place in range(at + 1):
            values += [value for _, value in self._states[place]]
        for place in range(at):
            values += [value for _, value in (*self._results[place], *self._parameters[place])]
        quotes = self._run.steps[at].environment_state.get("quotes")
        return sorted_figures([*values, *(value for _, value in _figures(quotes))])

    def later(self, at: int) -> Iterator[Later]:
        """What its results, its books and its clock said only after the step of that place."""
        run = self._run
        for place in range(at, len(run.steps)):
            for name, value in self._results[place]:
                if _EARNED.search(name):
                    yield Later(f"result of step {run.steps[place].step_number}", price=value)
            if place > at:
                for name, value in self._states[place]:
                    yield Later(f"{name} at step {run.steps[place].step_number}", price=value)
                if (said := finite(run.steps[place].timestamp)) and self.moment(at) + PROMPT_TAKES < said < 2**42:
                    moment = datetime.fromtimestamp(said / 1000, UTC)
                    if moment.second or moment.minute % 5:  # a round time is foreseen
                        yield Later(f"time of step {run.steps[place].step_number}", at=moment)
        ended = (("P&L of the run", run.window_pnl), ("last P&L", run.last_pnl), ("last balance", run.final_balance))
        yield from (Later(name, price=value) for name, value in ended if value)
        yield Later("a time after the run", at=run.end_time + timedelta(minutes=1), until=run.end_time + AFTER_RUN)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _state(state: Any) -> list[tuple[str, float]]:
    names = ("agentPnL", "agentBalance", "portfolioValue", "capital")
    return [(name, value) for name in names if (value := finite(state.get(name))) is not None]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What JSON values hold in the end, with the key that each stands under."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, str(key))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, name)
    else:
        yield name, value


def _figures(value: Any) -> Iterator[tuple[str, float]]:
    """Finite figures within JSON values, with their keys."""
    return ((name, number) for name, one in _leaves(value) if (number := finite(one)) is not None)


def shown_figures(accesses: Any) -> tuple[float, ...]:
    """Figures of what an agent was shown beside its prompt: numbers, and those that its texts spell."""
    return sorted_figures(_shown(accesses))


def _shown(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _shown(one)
    elif isinstance(value, str):
        yield from figures(value)
    elif (number := finite(value)) is not None:
        yield number
        yield number / 100  # a percentage, as its key may say


# --- its row ---------------------------------------------------------------------------------------


def of_row(row: Hindsight, scored: Iterable[Mapping[str, Any]] = ()) -> Iterator[Later]:
    """What judges wrote of a run and what the engine knew. `scored`: the run's rows of `scored_trajectories`."""
    for one in scored:
        said = ((name, text) for name, text in _leaves(one.get("judge")) if isinstance(text, str))
        judged = [text for name, text in said if name in ("reason", "reasoning", "explanation")]
        for sentence in sentences([one.get("reason"), *judged]):
            yield Later("a score's reason", text=sentence)
    for sentence in row.words:
        yield Later("a judge's words", text=sentence)
    yield from _knowledge(row.knowledge, None, "")


def _knowledge(value: Any, named: str | None, key: str) -> Iterator[Later]:
    """Facts in `gameKnowledge`, of which only the names of its three parts are fixed."""
    if isinstance(value, dict):
        own = next((str(value[name]) for name in _NAMED_BY if isinstance(value.get(name), str)), None)
        for name, one in value.items():
            if name not in _NAMED_BY:
                yield from _knowledge(one, own or (named if _FIELD.search(name) else name), name)
    elif isinstance(value, list):
        for one in value:
            yield from _knowledge(one, named, key)
    elif isinstance(value, bool):
        yield Later("gameKnowledge", named, verdict="yes" if value else "no")
    elif isinstance(value, str) and (said := value.strip().lower()) in _VERDICTS:
        yield Later("gameKnowledge", named, verdict=_VERDICTS[said])
    elif isinstance(value, str) and finite(value) is None:
        for sentence in sentences([value]):
            if not sentence.endswith("?"):  # a question's own text is no secret
                yield Later("gameKnowledge", text=sentence)
    elif (number := finite(value)) is not None and not math.isclose(number, 0):
        if _SAYS_CHANGE.search(key):
            yield Later("gameKnowledge", named, change=number)
            yield Later("gameKnowledge", named, change=number / 100)
        elif abs(number) != 1:
            yield Later("gameKnowledge", named, price=number)
