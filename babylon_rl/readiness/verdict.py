"""Whether a window is ready to be materialized, from what is known of it; arithmetic only, no I/O."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

OUTCOME_POLL = timedelta(minutes=5)


@dataclass(frozen=True)
class Waits:
    """What a window waits for, as the settings say."""

    min_agents: int
    settling_minutes: float
    outcome_wait_hours: float


@dataclass(frozen=True)
class Verdict:
    """`again`: when time may change it (aware); None where only what is recorded can."""

    state: Literal["ready", "waiting"]
    reason: str
    again: datetime | None = None


def settled_at(window_id: str, waits: Waits) -> datetime:
    """When agents that finish late are no longer waited for."""
    return parse_window_id(window_id) + WINDOW_LENGTH + timedelta(minutes=waits.settling_minutes)


def waited_until(window_id: str, waits: Waits) -> datetime:
    """When nothing is waited for any more: after this the hourly sweep takes what is not ready as it is."""
    end = parse_window_id(window_id) + WINDOW_LENGTH
    return max(settled_at(window_id, waits), end + timedelta(hours=waits.outcome_wait_hours))


def time_verdict(window_id: str, waits: Waits, now: datetime) -> Verdict | None:
    """The verdict where the hour, with the delay after it, is not over: nothing need be read for it. None otherwise."""
    if now < parse_window_id(window_id) + WINDOW_LENGTH:
        return Verdict("waiting", "the hour is not over", settled_at(window_id, waits))
    settled = settled_at(window_id, waits)
    if now < settled:
        return Verdict("waiting", f"agents that finish late are waited for until {settled:%H:%M} UTC", settled)
    return None


def verdict(window_id: str, agents: int, awaited: int, waits: Waits, now: datetime) -> Verdict:
    """Verdict over a whole window with so many usable agents; `awaited`: questions that ended and are not resolved."""
    early = time_verdict(window_id, waits, now)
    if early is not None:
        return early
    last = waited_until(window_id, waits)
    if agents < waits.min_agents:
        sweep = f"the hourly sweep takes it as it is after {last:%Y-%m-%d %H:%M} UTC"
        return Verdict("waiting", f"{agents} of at least {waits.min_agents} agents; {sweep}")
    if awaited and now < last:
        reason = f"{awaited} outcomes are not settled; they are waited for until {last:%Y-%m-%d %H:%M} UTC"
        return Verdict("waiting", reason, min(now + OUTCOME_POLL, last))
    return Verdict("ready", f"{agents} agents")
