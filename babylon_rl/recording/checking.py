"""What is wrong in a recorded trajectory: one line of a file against the contract, and what its runs are not good for.

Whether a line fits, msgspec says, in a tenth of the time that a JSON Schema takes; of one that does not, the schema
tells every place.
"""

import functools
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from babylon_rl.recording.attribution import attribute
from babylon_rl.recording.contract import MOST, Line, Row, Step, schema
from babylon_rl.recording.problems import (
    STORABLE,
    UNSTORABLE,
    Problem,
    call_problems,
    moment,
    problems_of,
    shown,
    storable,
)
from babylon_rl.recording.row_reader import FINISHED, finite

OPENINGS = (b"{", b"[", b"[{")  # a line of an indented file

# What a recording is not good for, by the reader's names, and what to do about it.
CAUTIONS = {
    "evaluation": "isEvaluation is true: compared, never trained on",
    "not_training_data": "isTrainingData is false: neither scored nor trained on",
    "unfinished": "finalStatus is not completed or completed_with_errors, or a step's action is pending: not scored",
    "empty_steps": "steps is empty: not scored",
    "no_pnl": "no P&L is known (agentPnL of a step, initialPnL and finalPnL of an action, finalPnL): not scored",
    "one_pnl": "one P&L is known (of those), so that of the window is 0",
    "impossible_time": "endTime is of no year from 1 to 9999 in UTC: in no window, not scored",
    "off_hour_window": "windowId is a time that is no whole hour: in no window, not scored",
    "misnamed": "windowId is not the UTC hour of endTime: read in the hour of endTime",
    "no_llm_call": "no call of a language model in llmCalls: scored, not trained on",
    "no_decision_call": "no call has purpose 'action': which answer chose the action is not known for sure",
    "text_missing": "a prompt or response of a decision is empty: scored, not trained on",
    "not_storable_text": "a text to train on holds NUL or half a surrogate pair: scored, not trained on",
    "no_logprobs": "a decision has no tokens (ids and log-probabilities): scored, not trained on",
}


class Checked(NamedTuple):
    """A line that was looked at: its JSON value, and what that says, which is None where it has problems."""

    value: Any
    trajectory_id: str | None
    problems: list[Problem]
    cautions: list[str]
    recorded: Line | Row | None
    steps: list[Step] | None


class _Wrong(Exception):
    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = problems


def check_line(text: bytes, *, cut_off: bool = False) -> Checked:
    """Check one line. `cut_off`: it is the file's last and has no end of line."""
    value: Any = None
    try:
        value = _value(text, cut_off)
        recorded, steps = _decoded(value)
    except _Wrong as wrong:
        named = value.get("trajectoryId") if isinstance(value, dict) else None
        return Checked(value, named if isinstance(named, str) else None, wrong.problems, [], None, None)
    problems = list(_inconsistent(recorded, steps))
    if problems:
        return Checked(value, recorded.trajectory_id, problems, [], None, None)
    return Checked(value, recorded.trajectory_id, [], list(_cautions(recorded, steps)), recorded, steps)


def _value(text: bytes, cut_off: bool) -> Any:
    """The line's JSON value; _Wrong where it is none."""
    try:
        try:
            return _loads(text.decode())
        except json.JSONDecodeError:
            # `COPY ... TO` doubles each backslash, which makes a text end where a quotation mark in it was escaped.
            return _loads(text.replace(b"\\\\", b"\\").decode())
    except UnicodeDecodeError as wrong:
        raise _Wrong([Problem("", f"a byte at {wrong.start} that is no UTF-8", "UTF-8")]) from None
    except (ValueError, RecursionError) as wrong:
        if cut_off:
            raise _Wrong([Problem("", "the end of the file in the middle of the line", "a whole line")]) from None
        if text in OPENINGS:
            wanted = "a JSON object on one line; `jq -c '.[]?, objects' FILE` writes indented ones so"
            raise _Wrong([Problem("", "the beginning of JSON that goes on on other lines", wanted)]) from None
        raise _Wrong([Problem("", f"no JSON ({wrong})", "a JSON object")]) from None


def _loads(text: str) -> Any:
    """JSON with halves of surrogate pairs, as JavaScript writes them; ValueError for NaN and what is no JSON.

    Python's own, for it keeps each number as it is and looks into what the contract does not name.
    """
    return json.loads(text, parse_constant=_refused, parse_float=_finite)


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text} is too large")
    return number


def _decoded(value: Any) -> tuple[Line | Row, list[Step]]:
    """What the value says, and its steps; _Wrong with what is wrong."""
    is_row = isinstance(value, dict) and "stepsJson" in value
    try:
        recorded: Line | Row = msgspec.convert(value, Row if is_row else Line)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _Wrong(problems_of(value, _whole(), "", error)) from None
    labels = {name: getattr(recorded, name) for name in recorded.__struct_fields__}
    refused = [name for name, label in labels.items() if isinstance(label, str) and not storable(label)]
    if refused:
        raise _Wrong([Problem(_wire(recorded, name), UNSTORABLE, STORABLE) for name in refused])
    if isinstance(recorded, Line):
        return recorded, recorded.steps
    try:
        steps = _loads(recorded.steps_json)
    except (ValueError, RecursionError) as wrong:
        raise _Wrong([Problem("stepsJson", f"no JSON ({wrong})", "a JSON list")]) from None
    try:
        return recorded, msgspec.convert(steps, list[Step])
    except (msgspec.ValidationError, RecursionError) as error:
        raise _Wrong(problems_of(steps, _only_steps(), "stepsJson", error)) from None


@functools.cache
def _whole() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema())


@functools.cache
def _only_steps() -> Any:
    from jsonschema import Draft202012Validator

    whole = schema()
    steps = whole["$defs"]["Row"]["properties"]["stepsJson"]["contentSchema"]
    return Draft202012Validator({"$defs": whole["$defs"], **steps})


# --- what the types do not say ---


def _inconsistent(recorded: Line | Row, steps: list[Step]) -> Iterator[Problem]:
    times = {}
    for name in ("start_time", "end_time", "judged_at", "created_at", "updated_at"):
        value = getattr(recorded, name, None)
        if value is not None:
            try:
                times[name] = moment(value)
            except (ValueError, OverflowError):
                yield Problem(
                    _wire(recorded, name), shown(value if not isinstance(value, datetime) else str(value)), "a time"
                )
    if isinstance(recorded, Line) and {"start_time", "end_time"} <= times.keys():
        seconds = (times["end_time"] - times["start_time"]).total_seconds()
        if not 0 <= seconds * 1000 <= MOST:
            yield Problem("endTime", f"{seconds:+.0f} seconds from startTime", "a time from 0 to 24 days after it")
    root = "steps" if isinstance(recorded, Line) else "stepsJson"
    numbers: dict[int, int] = {}
    for place, step in enumerate(steps):
        if numbers.setdefault(step.step_number, place) != place:
            found = f"{step.step_number}, which step {numbers[step.step_number]} has too"
            yield Problem(f"{root}[{place}].stepNumber", found, "a number of its own")
        for number, call in enumerate(step.llm_calls):
            yield from call_problems(call, f"{root}[{place}].llmCalls[{number}]")


def _wire(recorded: Line | Row, name: str) -> str:
    """The name of a field in JSON."""
    return recorded.__struct_encode_fields__[recorded.__struct_fields__.index(name)]


def _cautions(recorded: Line | Row, steps: list[Step]) -> Iterator[str]:
    """What a good line is not good for, by name; see CAUTIONS."""
    if recorded.is_evaluation:
        yield "evaluation"
    if recorded.is_training_data is False:
        yield "not_training_data"
    if recorded.final_status not in FINISHED or any(step.action.action_type == "pending" for step in steps):
        yield "unfinished"
    if not steps:
        yield "empty_steps"
    known = _known_pnls(recorded, steps)
    if known < 2:
        yield "one_pnl" if known else "no_pnl"
    own = attribute(recorded.window_id, moment(recorded.end_time))
    if own.reason is not None:
        yield own.reason
    elif own.misnamed:
        yield "misnamed"
    yield from _text_cautions(steps)


def _known_pnls(recorded: Line | Row, steps: list[Step]) -> int:
    """Number of P&L that the reader can find (`row_reader.known_pnls`), were all steps in the hour."""
    told: list[Any] = [step.environment_state.agent_pnl for step in steps]
    for source in (source for step in steps for source in (step.action.parameters, step.action.result)):
        if isinstance(source, dict):
            told += [source.get("initialPnL"), source.get("finalPnL")]
    return sum(finite(pnl) is not None for pnl in (*told, recorded.final_pnl))


def _text_cautions(steps: list[Step]) -> Iterator[str]:
    calls = [call for step in steps for call in step.llm_calls]
    if not calls:
        if steps:
            yield "no_llm_call"
        return
    decisions = [call for call in calls if call.purpose == "action"]
    if not decisions:
        yield "no_decision_call"
        decisions = [step.llm_calls[-1] for step in steps if step.llm_calls]
    texts = [text for call in decisions for text in (call.user_prompt or call.system_prompt, call.response)]
    if not all(texts):
        yield "text_missing"
    if not all(storable(text) for call in decisions for text in (call.system_prompt, call.user_prompt, call.response)):
        yield "not_storable_text"
    if any(call.tokens is None for call in decisions):
        yield "no_logprobs"
