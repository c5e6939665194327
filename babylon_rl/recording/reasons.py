"""Why a recorded row is not used: the reasons by name, in the order in which they are looked for.

The first that applies is the row's reason. A row that is refused for scoring is of no use; one that is refused for
training only is scored and shown, and never trained on.
"""

from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """Name of a reason; `TEXTS` says each in one line."""

    OFF_HOUR_WINDOW = "off_hour_window"
    IMPOSSIBLE_TIME = "impossible_time"
    PSEUDO_AGENT = "pseudo_agent"
    UNKNOWN_AGENT = "unknown_agent"
    EVALUATION = "evaluation"
    NOT_TRAINING_DATA = "not_training_data"
    USED_IN_TRAINING = "used_in_training"
    UNFINISHED = "unfinished"
    TEXT_NULL = "text_null"
    EMPTY_STEPS = "empty_steps"
    CUT_OFF_JSON = "cut_off_json"
    INVALID_JSON = "invalid_json"
    NOT_A_LIST = "not_a_list"
    INVALID_STEPS = "invalid_steps"
    NON_FINITE_NUMBER = "non_finite_number"
    TOO_LONG = "too_long"
    NO_PNL = "no_pnl"
    CONFLICTING_CALLS = "conflicting_calls"
    NO_LLM_CALL = "no_llm_call"
    NO_DECISION_CALL = "no_decision_call"
    TEXT_MISSING = "text_missing"
    NOT_STORABLE_TEXT = "not_storable_text"
    PROMPT_TOO_LONG = "prompt_too_long"


TEXTS = MappingProxyType(
    {
        Reason.OFF_HOUR_WINDOW: "its windowId is a time off the hour, so no window is its own",
        Reason.IMPOSSIBLE_TIME: "its endTime is NULL, infinite or outside the years 1 to 9999",
        Reason.PSEUDO_AGENT: "it is the engine's own record, not an agent's",
        Reason.UNKNOWN_AGENT: "its agent is not in the table User",
        Reason.EVALUATION: "isEvaluation is true: it is compared, never trained on",
        Reason.NOT_TRAINING_DATA: "isTrainingData is false",
        Reason.USED_IN_TRAINING: "usedInTraining is true: it was trained on already",
        Reason.UNFINISHED: "the run did not come to its end",
        Reason.TEXT_NULL: "stepsJson is NULL or the JSON value null",
        Reason.EMPTY_STEPS: "stepsJson holds no step",
        Reason.CUT_OFF_JSON: "stepsJson ends in the middle",
        Reason.INVALID_JSON: "stepsJson is no JSON",
        Reason.NOT_A_LIST: "stepsJson is JSON and no list",
        Reason.INVALID_STEPS: "stepsJson holds something that is no step",
        Reason.NON_FINITE_NUMBER: "a number is NaN, infinite or too large",
        Reason.TOO_LONG: "stepsJson is too long to be read",
        Reason.NO_PNL: "no P&L is known in its window",
        Reason.CONFLICTING_CALLS: "llm_call_logs and the steps contradict each other",
        Reason.NO_LLM_CALL: "no call of a language model is recorded",
        Reason.NO_DECISION_CALL: "none of its recorded calls chose an action",
        Reason.TEXT_MISSING: "a prompt or answer of a decision is empty",
        Reason.NOT_STORABLE_TEXT: "a decision's text holds NUL or half a surrogate pair, which no table keeps",
        Reason.PROMPT_TOO_LONG: "a prompt is longer than any model takes",
    }
)

FOR_TRAINING = frozenset(
    {
        Reason.NO_LLM_CALL,
        Reason.NO_DECISION_CALL,
        Reason.TEXT_MISSING,
        Reason.NOT_STORABLE_TEXT,
        Reason.PROMPT_TOO_LONG,
    }
)
FOR_SCORING = frozenset(Reason) - FOR_TRAINING
# Reasons of rows that belong to no window.
WITHOUT_WINDOW = frozenset({Reason.OFF_HOUR_WINDOW, Reason.IMPOSSIBLE_TIME})
