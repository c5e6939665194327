"""What may go wrong at a training service: the faults by name, and scripts that say which request meets which.

`training_service` asks a script about each request and does what the fault says. FAULTS names those that a submission
can meet; `seeded(seed, share)` draws among them by the submission's key, so that a run of thousands is the same again
whatever the order of the requests.
"""

import random
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

FOR_EVER = float("inf")


class Seen(msgspec.Struct, frozen=True):
    """A request as a script sees it. `number`: of its kind, from 0; `key`, `attempt` from 0: of a submission alone."""

    kind: Literal["register", "checkpoints", "delete_checkpoints", "submit", "job", "events", "delete_model"]
    number: int
    key: str = ""
    attempt: int = 0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong with one request, and for a submission with the job that it starts. Seconds of the clock.

    `accepted`: whether the request does its work; `accepted_after`: how long after the request that is. `answer`: as it
    should be, a status, never, the connection broken without one or in the middle of it, or a proxy's page with status
    200; `answer_after`: how late. `repeats_reply`: the same submission again gets the same bytes and is no second job.
    `retry_after`: header of an answer with a status.

    `events`: what the job's events come to. `events_status` is the answer of the events' endpoint for the seconds
    `events_refused_for` after the job was accepted. `step_after`: when the step advances after training ended; None:
    never. `failed`: message of the training_failed with which it ends. `hangs`: it starts and nothing follows.
    """

    name: str = ""
    accepted: bool = True
    accepted_after: float = 0.0
    answer: int | Literal["ok", "never", "broken", "half", "page"] = "ok"
    answer_after: float = 0.0
    retry_after: float | None = None
    repeats_reply: bool = False
    events: Literal["all", "none", "without_end", "some", "twice", "reordered"] = "all"
    events_status: int | None = None
    events_refused_for: float = FOR_EVER
    step_after: float | None = 0.0
    failed: str | None = None
    hangs: bool = False


NO_FAULT = Fault()

# Seconds of the clock: a job of four sequences takes about ten (`training_service.Timeline`).
_FAULTS: dict[str, Fault] = {
    "accepted_never_answered": Fault(answer="never"),
    "accepted_answered_late": Fault(answer_after=20.0),
    "accepted_500": Fault(answer=500),
    "accepted_502": Fault(answer=502),
    "accepted_524": Fault(answer=524, answer_after=5.0),
    "accepted_524_later": Fault(answer=524, accepted_after=30.0),
    "accepted_broken": Fault(answer="broken"),
    "accepted_half_an_answer": Fault(answer="half"),
    "accepted_page_of_a_proxy": Fault(answer="page"),
    "accepted_502_repeats_reply": Fault(answer=502, repeats_reply=True),
    "repeats_reply": Fault(repeats_reply=True),
    "refused_500": Fault(accepted=False, answer=500),
    "refused_502": Fault(accepted=False, answer=502),
    "refused_524": Fault(accepted=False, answer=524),
    "refused_broken": Fault(accepted=False, answer="broken"),
    "refused_never_answered": Fault(accepted=False, answer="never"),
    "refused_429": Fault(accepted=False, answer=429, retry_after=1.0),
    "refused_401": Fault(accepted=False, answer=401),
    "step_late": Fault(step_after=30.0),
    "step_late_without_events": Fault(events="none", step_after=30.0),
    "step_never": Fault(step_after=None),
    "events_none": Fault(events="none"),
    "events_without_end": Fault(events="without_end"),
    "events_some": Fault(events="some"),
    "events_twice": Fault(events="twice"),
    "events_reordered": Fault(events="reordered"),
    "events_503_for_a_while": Fault(events_status=503, events_refused_for=15.0),
    "events_503_for_ever": Fault(events_status=503),
    "hangs": Fault(hangs=True),
    "fails": Fault(failed="CUDA out of memory"),
}  # fmt: skip

FAULTS: dict[str, Fault] = {name: msgspec.structs.replace(fault, name=name) for name, fault in _FAULTS.items()}

# None: nothing goes wrong with that request.
Script = Callable[[Seen], Fault | None]


def seeded(seed: int, share: float = 0.7, names: Sequence[str] = tuple(FAULTS)) -> Script:
    """Script by which a share of the submissions meets one of the faults, drawn evenly by key and attempt."""

    def fault_of(seen: Seen) -> Fault | None:
        if seen.kind != "submit":
            return None
        stream = random.Random(f"{seed}-{seen.key}-{seen.attempt}")
        return FAULTS[stream.choice(list(names))] if stream.random() < share else None

    return fault_of


def as_script(faults: "Script | Sequence[Fault | str | None] | Fault | str | None") -> Script:
    """Script of what a caller gave: a script; a list for the submissions in order, good after its end; one for all."""
    if callable(faults):
        return faults
    if faults is None or isinstance(faults, str | Fault):
        return lambda seen: _fault(faults) if seen.kind == "submit" else None
    listed = [_fault(fault) for fault in faults]
    return lambda seen: listed[seen.number] if seen.kind == "submit" and seen.number < len(listed) else None


def _fault(fault: Fault | str | None) -> Fault | None:
    return FAULTS[fault] if isinstance(fault, str) else fault
