"""What a recorded window is once it is read: usable trajectories, rejected rows, and their digest."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec

from babylon_rl.recording.reasons import TEXTS, Reason
from babylon_rl.recording.records import LLMCall, ReadStep, RecordedCall

Provenance = Literal["logged", "no_logprobs", "no_text"]

# Purposes of calls that chose no action: what was thought, judged, or asked for something else.
NOT_DECIDING = frozenset({"reasoning", "evaluation", "other"})
# Characters of system and user prompt together; a million are more tokens than the trained models have room for.
LONGEST_PROMPT = 1_000_000


class UsableTrajectory(msgspec.Struct, frozen=True, gc=False):
    """One agent's finished run in a window, decoded.

    `first_pnl`, `last_pnl`: the first and the last P&L known inside the window, dollars, on whatever scale the
    application keeps (it may be the lifetime's); `window_pnl` is their difference. `calls`: ordered by step.
    `not_trainable`: name of the reason for which it is scored and never trained on, with `detail`. `misnamed`: its row
    names another window.
    """

    trajectory_id: str
    agent_id: str
    window_id: str
    start_time: datetime
    end_time: datetime
    steps: list[ReadStep]
    first_pnl: float
    last_pnl: float
    window_pnl: float
    final_balance: float | None
    calls: list[RecordedCall]
    provenance: Provenance
    digest: str
    not_trainable: str | None = None
    detail: str = ""
    misnamed: bool = False

    def brief(self) -> "UsableTrajectory":
        """The same without steps and calls, which are nearly all of its memory."""
        return msgspec.structs.replace(self, steps=[], calls=[])


@dataclass(frozen=True, slots=True)
class Rejected:
    """A recorded row that cannot be used, with the name of the reason and what was wrong in words.

    `digest`: of a row that is refused only because training used it, what it says as a usable one.
    """

    trajectory_id: str
    agent_id: str | None
    reason: str
    detail: str
    misnamed: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class RecordedWindow:
    """All that was recorded in a window."""

    window_id: str
    usable: list[UsableTrajectory]
    rejected: list[Rejected]
    revision: str = field(default="")

    @property
    def recorded(self) -> int:
        """Rows that belong to the window, evaluations included."""
        return len(self.usable) + len(self.rejected)

    @property
    def agents(self) -> int:
        """Agents with at least one usable trajectory."""
        return len({t.agent_id for t in self.usable})

    def pnl_by_agent(self) -> dict[str, float]:
        """P&L of the window by agent: the last known less the first known over all the agent's trajectories."""
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        for trajectory in sorted(self.usable, key=lambda t: (t.end_time, t.start_time, t.trajectory_id)):
            first.setdefault(trajectory.agent_id, trajectory.first_pnl)
            last[trajectory.agent_id] = trajectory.last_pnl
        return {agent_id: last[agent_id] - first[agent_id] for agent_id in first}


def provenance_of(steps: Iterable[ReadStep], calls: Iterable[RecordedCall]) -> Provenance:
    """How much is known of the texts that the steps hold.

    `logged`: each call that chose an action has its tokens and their log-probabilities; `no_logprobs`: there are
    texts, but not for each the tokens; `no_text`: no call was recorded, so nothing can be trained on.
    """
    calls = list(calls)
    if not calls:
        for step in steps:
            if step.llm_calls:
                return "no_logprobs"
        return "no_text"
    wanted = {s.step_number: len(action_calls(s)) for s in steps if s.llm_calls}
    if not wanted:
        return "no_text"
    if not any(wanted.values()):
        return "no_logprobs"
    logged: dict[int, int] = {}
    for call in calls:
        if call.token_ids and call.prompt_token_ids and len(call.logprobs) == len(call.token_ids):
            logged[call.step_number] = logged.get(call.step_number, 0) + 1
    return "logged" if all(logged.get(number, 0) >= count for number, count in wanted.items()) else "no_logprobs"


def action_calls(step: ReadStep) -> list[LLMCall]:
    """The calls of a step that chose its action: those with purpose `action`.

    Where none says so, it is the last one whose purpose is none of `NOT_DECIDING`; a step may have none.
    """
    calls = step.llm_calls
    if len(calls) < 2:
        deciding = calls and (calls[0].purpose == "action" or calls[0].purpose.strip().lower() not in NOT_DECIDING)
        return calls if deciding else []
    marked = [c for c in calls if c.purpose == "action"]
    return marked or [c for c in calls if c.purpose.strip().lower() not in NOT_DECIDING][-1:]


def trainability(steps: list[ReadStep], mended: frozenset[tuple[int, int]] = frozenset()) -> tuple[Reason, str] | None:
    """Why a usable run cannot be trained on, and the detail; None where it can be.

    `mended`: calls by place of step and call whose texts are not what was recorded. A decision without a system prompt
    is one; without a user prompt or an answer there is nothing to learn from.
    """
    found: dict[Reason, str] = {}
    decisions = 0
    for at, step in enumerate(steps):
        for call in action_calls(step):
            decisions += 1
            system, user, response = call.system_prompt, call.user_prompt, call.response
            if not user or not response or user.isspace() or response.isspace():
                found.setdefault(Reason.TEXT_MISSING, f"step {step.step_number}: prompt or answer is empty")
            if "\x00" in system or "\x00" in user or "\x00" in response:
                found.setdefault(Reason.NOT_STORABLE_TEXT, f"step {step.step_number}: its text holds NUL")
            if mended and any((at, n) in mended and call is one for n, one in enumerate(step.llm_calls)):
                said = f"step {step.step_number}: its text holds half a surrogate pair"
                found.setdefault(Reason.NOT_STORABLE_TEXT, said)
            if len(system) + len(user) > LONGEST_PROMPT:
                said = f"step {step.step_number}: {len(system) + len(user)} characters, at most {LONGEST_PROMPT} are"
                found.setdefault(Reason.PROMPT_TOO_LONG, said)
    if not decisions:
        reason = Reason.NO_DECISION_CALL if any(step.llm_calls for step in steps) else Reason.NO_LLM_CALL
        return reason, TEXTS[reason]
    return next(((reason, found[reason]) for reason in Reason if reason in found), None) if found else None


def trajectory_digest(
    trajectory_id: str,
    agent_id: str,
    end_time: datetime,
    pnls: tuple[float, float],
    final_balance: float | None,
    said: bytes,
    calls: list[RecordedCall],
) -> str:
    """SHA-256 of what the agent wrote; `said`: digest of its steps (`decoding`).

    Nothing that training writes later changes it: step rewards are left out, for the application's trainer writes them
    back into the steps.
    """
    written = msgspec.json.encode((trajectory_id, agent_id, end_time, *pnls, final_balance, calls))
    return hashlib.sha256(written + said).hexdigest()


def window_revision(trajectories: Iterable[UsableTrajectory | Rejected]) -> str:
    """SHA-256 over the sorted digests of a window's trajectories: the usable ones, and those that training used."""
    return revision_of_digests(t.digest for t in trajectories if t.digest)


def revision_of_digests(digests: Iterable[str]) -> str:
    """Revision of a window from the digests of its trajectories, in any order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
