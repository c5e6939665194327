"""What agents say of their trajectories over HTTP, checked against the recorder's contract; no I/O.

Bodies are kept as they were sent. What may be left out of them has its default where the trajectory is put together.
"""

import functools
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, field

from babylon_rl.errors import BabylonError, WindowIdError
from babylon_rl.recording import contract
from babylon_rl.recording.contract import MOST, Label, Time, described
from babylon_rl.recording.problems import STORABLE, UNSTORABLE, Problem, call_problems, moment, problems_of, storable
from babylon_rl.recording.verbatim import verbatim_json
from babylon_rl.windows import parse_window_id

TRAJECTORY_ID = re.compile(r"[A-Za-z0-9._:~@+-]{1,200}", re.ASCII)
MOST_CALLS = 1_000  # ids of calls in a step
T = TypeVar("T")


class BadBody(BabylonError):
    """A body says something that it cannot; `path`: the place of the first thing that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.path = problems[0].path


class Start(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Start of a trajectory."""

    trajectory_id: described(str | None, "Unique over all recordings; made where there is none.") = None
    agent_id: described(str | None, "Id of the agent; by default the key's.") = None
    start_time: described(Time | None, "ISO 8601 or epoch milliseconds; by default now.") = None
    window_id: described(str | None, "UTC hour in which it will end, as 2025-01-15T10:00.") = None
    is_training_data: described(bool, "False keeps it out of training.") = True
    is_evaluation: described(bool, "True for a run that is compared and never trained on.") = False
    metadata: described(dict[str, Any] | None, "Anything else. It never reaches the policy.") = None
    scenario_id: described(Label | None, "Label of the scenario.") = None
    episode_id: described(Label | None, "Label of the episode.") = None
    batch_id: described(Label | None, "Label of the batch.") = None


class End(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """End of a trajectory; what its start said too, the end says last."""

    end_time: described(Time | None, "ISO 8601 or epoch milliseconds; by default now.") = None
    final_status: described(
        str | None,
        "completed or completed_with_errors, by default by the steps' actions; anything else is an unfinished run.",
    ) = None
    final_balance: described(float | None, "Cash at the end, in dollars.") = None
    final_pnl: described(float | None, "P&L at the end, in dollars.") = field(name="finalPnL", default=None)
    window_id: described(str | None, "UTC hour in which it ended, as 2025-01-15T10:00.") = None
    is_training_data: described(bool, "False keeps it out of training.") = True
    is_evaluation: described(bool, "True for a run that is compared and never trained on.") = False
    metadata: described(dict[str, Any] | None, "Anything else. It never reaches the policy.") = None


class Abandon(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Why a trajectory will never end."""

    reason: described(Annotated[str, Meta(min_length=1, max_length=1000)], "Why, for a person.")


class NamedCall(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A call of a step that went through the gateway, which knows its texts."""

    call_id: described(Annotated[str, Meta(min_length=1)], "As x-babylon-call named it.")
    purpose: described(str | None, "'action' for the call whose answer is the step's action.") = None
    action_type: described(str | None, "Kind of action that the call was made for.") = None
    reasoning: described(str | None, "Reasoning that came beside the answer.") = None


class CallIds(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a step may hold besides what the contract says."""

    call_ids: described(
        Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MOST_CALLS)],
        "Calls through the gateway that belong to the step, as x-babylon-call named them, in order.",
    ) = []


class SaidStep(NamedTuple):
    """A step. `content`: its JSON as it was sent; `call_ids`: the calls that it names."""

    number: int
    content: str
    call_ids: list[str]


def parse_body(text: bytes) -> dict[str, Any]:
    """The JSON object of a request; nothing is an empty one. BadBody where it is none."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as wrong:
        raise BadBody([Problem("the body", f"no JSON ({wrong})", "a JSON object")]) from None
    if not isinstance(value, dict):
        raise BadBody([Problem("the body", "another value", "a JSON object")])
    return value


def said_start(body: dict[str, Any]) -> Start:
    """What the start says. BadBody where it is not as the contract has it."""
    said = _checked(body, Start)
    if said.trajectory_id is not None and not TRAJECTORY_ID.fullmatch(said.trajectory_id):
        wanted = "1 to 200 letters, digits or any of . _ : ~ @ + -"
        raise BadBody([Problem("trajectoryId", json.dumps(said.trajectory_id)[:60], wanted)])
    _known_time("startTime", said.start_time)
    _known_window(said.window_id)
    return said


def said_end(body: dict[str, Any], start_time: Any, now_ms: int) -> End:
    """What the end says. `start_time`: as the start said it. BadBody where it is not as the contract has it."""
    said = _checked(body, End)
    _known_window(said.window_id)
    ended = _known_time("endTime", said.end_time if said.end_time is not None else now_ms)
    seconds = (ended - moment(msgspec.convert(start_time, Time))).total_seconds()
    if not 0 <= seconds * 1000 <= MOST:
        found = f"{seconds:+.0f} seconds from startTime"
        raise BadBody([Problem("endTime", found, "a time from 0 to 24 days after it")])
    return said


def said_abandon(body: dict[str, Any]) -> Abandon:
    """Why it is abandoned. BadBody where nothing is said."""
    return _checked(body, Abandon)


def said_step(body: dict[str, Any]) -> SaidStep:
    """What the step says. BadBody where it is not as the contract has it."""
    ids = _converted({name: body[name] for name in ("callIds",) if name in body}, CallIds, "").call_ids
    calls = body.get("llmCalls", [])
    named = [call for call in calls if is_named(call)] if isinstance(calls, list) else []
    for place, call in enumerate(calls if named else ()):
        if is_named(call):
            _converted(call, NamedCall, f"llmCalls[{place}]", closed=True)
    step = _converted(whole_step(body, 0), contract.Step, "")
    problems = [p for n, call in enumerate(step.llm_calls) for p in call_problems(call, f"llmCalls[{n}]")]
    if step.step_number < 0:
        problems.append(Problem("stepNumber", str(step.step_number), "at least 0"))
    names = list(dict.fromkeys([*ids, *(call["callId"] for call in named)]))
    problems += [Problem("callIds", UNSTORABLE, STORABLE) for name in names if not storable(name)]
    if problems:
        raise BadBody(problems)
    try:
        content = verbatim_json(body)
    except (ValueError, RecursionError) as wrong:
        raise BadBody([Problem("the body", f"what has no JSON form ({wrong})", "a JSON object")]) from None
    return SaidStep(step.step_number, content, names)


def whole_step(body: Mapping[str, Any], timestamp: int) -> dict[str, Any]:
    """The step with what may be left out of it, less the calls whose texts the gateway knows."""
    calls = body.get("llmCalls", [])
    full = [call for call in calls if not is_named(call)] if isinstance(calls, list) else calls
    defaults = {"timestamp": timestamp, "providerAccesses": [], "reward": None, "environmentState": {}}
    return {**defaults, **{name: value for name, value in body.items() if name != "callIds"}, "llmCalls": full}


def is_named(call: Any) -> bool:
    """Whether the call is named by its id alone, so that the gateway's record of it says the rest."""
    return isinstance(call, dict) and "callId" in call and "response" not in call


def _checked(body: dict[str, Any], kind: type[T]) -> T:
    """The body as the type has it; it holds nothing else, for what is misspelt would be lost."""
    said = _converted(body, kind, "", closed=True)
    labels = {name: value for name, value in body.items() if isinstance(value, str)}
    if wrong := [Problem(name, UNSTORABLE, STORABLE) for name, value in labels.items() if not storable(value)]:
        raise BadBody(wrong)
    try:
        msgspec.json.encode(body)
    except (UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise BadBody([Problem("metadata", f"what no file can hold ({error})", "plain JSON")]) from None
    return said


def _converted(value: dict[str, Any], kind: type[T], root: str, *, closed: bool = False) -> T:
    names: tuple[str, ...] = kind.__struct_encode_fields__  # type: ignore[attr-defined]
    unknown = sorted(value.keys() - set(names)) if closed else []
    if unknown:
        wanted = f"nothing of that name, but any of {', '.join(names)}"
        raise BadBody([Problem(f"{root}.{name}".lstrip("."), "a value", wanted) for name in unknown])
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadBody(problems_of(value, _validator(kind), root, error)) from None


@functools.cache
def _validator(kind: type) -> Any:
    from jsonschema import Draft202012Validator

    (reference,), definitions = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    return Draft202012Validator({**reference, "$defs": definitions})


def _known_time(name: str, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        return moment(value)
    except (ValueError, OverflowError):
        raise BadBody([Problem(name, str(value)[:60], "a time of a year from 1 to 9999")]) from None


def _known_window(window_id: str | None) -> None:
    if window_id is not None:
        try:
            parse_window_id(window_id)
        except WindowIdError as error:
            raise BadBody([Problem("windowId", json.dumps(window_id)[:60], str(error))]) from None


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text} is too large")
    return number
