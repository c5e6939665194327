"""What a recorded window is once it is read: usable trajectories, rejected rows, and their digest."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec

from babylon_rl.recording.records import LLMCall, RecordedCall, Step

Provenance = Literal["logged", "no_logprobs", "no_text"]


@dataclass(frozen=True)
class UsableTrajectory:
    """One agent's finished run in a window, decoded.

    `first_pnl`, `last_pnl`: the first and the last P&L known inside the window, dollars, on whatever scale the
    application keeps (it may be the lifetime's); `window_pnl` is their difference. `calls`: ordered by step.
    """

    trajectory_id: str
    agent_id: str
    window_id: str
    start_time: datetime
    end_time: datetime
    steps: list[Step]
    first_pnl: float
    last_pnl: float
    window_pnl: float
    final_balance: float | None
    calls: list[RecordedCall]
    provenance: Provenance
    digest: str


@dataclass(frozen=True)
class Rejected:
    """A recorded row that cannot be used, with the name of the reason and what was wrong in words."""

    trajectory_id: str
    agent_id: str | None
    reason: str
    detail: str


@dataclass(frozen=True)
class RecordedWindow:
    """All that was recorded in a window."""

    window_id: str
    usable: list[UsableTrajectory]
    rejected: list[Rejected]
    revision: str = field(default="")

    @property
    def recorded(self) -> int:
        """Rows recorded in the window, evaluations included."""
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


def provenance_of(steps: Iterable[Step], calls: Iterable[RecordedCall]) -> Provenance:
    """How much is known of the texts that the steps hold.

    `logged`: each call that chose an action has its tokens and their log-probabilities; `no_logprobs`: there are
    texts, but not for each the tokens; `no_text`: no call was recorded, so nothing can be trained on.
    """
    wanted = {s.step_number: len(action_calls(s)) for s in steps if s.llm_calls}
    if not wanted:
        return "no_text"
    logged: dict[int, int] = {}
    for call in calls:
        if call.token_ids and call.prompt_token_ids and len(call.logprobs) == len(call.token_ids):
            logged[call.step_number] = logged.get(call.step_number, 0) + 1
    return "logged" if all(logged.get(number, 0) >= count for number, count in wanted.items()) else "no_logprobs"


def action_calls(step: Step) -> list[LLMCall]:
    """The calls of a step that chose its action; the last one where none is marked as such."""
    return [c for c in step.llm_calls if c.purpose == "action"] or step.llm_calls[-1:]


class _Written(msgspec.Struct, frozen=True):
    """What an agent wrote: of a trajectory what its digest covers.

    Step rewards are left out, for the application's trainer writes them back into the steps; so are latencies.
    """

    trajectory_id: str
    agent_id: str
    end_time: datetime
    first_pnl: float
    last_pnl: float
    final_balance: float | None
    steps: list[tuple]
    calls: list[RecordedCall]


def trajectory_digest(
    trajectory_id: str,
    agent_id: str,
    end_time: datetime,
    pnls: tuple[float, float],
    final_balance: float | None,
    steps: list[Step],
    calls: list[RecordedCall],
) -> str:
    """SHA-256 of what the agent wrote; nothing that training writes later changes it."""
    said = [
        (
            s.step_number,
            s.timestamp,
            s.environment_state,
            s.provider_accesses,
            [(c.model, c.system_prompt, c.user_prompt, c.response, c.temperature, c.purpose) for c in s.llm_calls],
            s.action,
        )
        for s in steps
    ]
    written = _Written(trajectory_id, agent_id, end_time, *pnls, final_balance, said, calls)
    return hashlib.sha256(msgspec.json.encode(written, order="deterministic")).hexdigest()


def window_revision(trajectories: Iterable[UsableTrajectory]) -> str:
    """SHA-256 over the sorted digests of a window's usable trajectories."""
    return hashlib.sha256("\n".join(sorted(t.digest for t in trajectories)).encode()).hexdigest()
