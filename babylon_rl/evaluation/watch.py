"""The watch over what is served: whether a promotion did harm by the guardrails, and the way back where it did.

A promotion is judged by the latest hours of what it serves against the hours before it. A rollback is not judged, so
that the watch never goes to and fro between two checkpoints; where a person promotes again what was taken back, that
promotion is judged as any other.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec
import psycopg

from babylon_rl.errors import ServingError, TrainingError
from babylon_rl.evaluation.arms import scored_windows, windows_of
from babylon_rl.evaluation.guardrails import Guard, Limits, breach, guard
from babylon_rl.evaluation.observations import PAST_HOURS
from babylon_rl.evaluation.promotion import roll_back
from babylon_rl.settings.serving import ExperimentSettings
from babylon_rl.training.runs import lock_promotions, promoted
from babylon_rl.windows import shift_window, window_of

WATCH = "watch"


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What the watch saw. `windows`, `before`: windows compared, of what is served and of what was served before it.

    `state`: `idle`, there is nothing to judge; `fine`; `breached`, which asks for the way back; `rolled_back`.
    """

    state: Literal["idle", "fine", "breached", "rolled_back"]
    said: str
    promotion_id: int | None = None
    served: str | None = None
    earlier: str | None = None
    windows: list[str] = []
    before: list[str] = []
    guards: list[Guard] = []


def watch(connection: psycopg.Connection, settings: ExperimentSettings, now: datetime) -> Watched:
    """Judge the promotion that stands; nothing is changed."""
    row = promoted(connection)
    if row is None:
        return Watched(state="idle", said="Nothing is promoted.")
    served, earlier = row["to_checkpoint"], row["from_checkpoint"]
    of_row = {"promotion_id": row["promotion_id"], "served": served, "earlier": earlier}
    if row["kind"] == "rollback":
        return Watched(state="idle", said=f"{served} is served after a rollback, which is not taken back.", **of_row)
    if earlier is None:
        return Watched(state="idle", said=f"Nothing was served before {served} to compare it with.", **of_row)
    since = _first_hour(row)
    until = window_of(row["promoted_at"])
    after = scored_windows(connection, since, window_of(now))
    ours = windows_of(connection, served, after)[-settings.guard_windows :]
    theirs = windows_of(connection, earlier, scored_windows(connection, shift_window(until, -PAST_HOURS), until))
    theirs = theirs[-settings.guard_windows :]
    guards = guard(ours, theirs, Limits.of(settings))
    breached = breach(guards)
    against = f"{served} since {since} against {earlier} before"
    return Watched(
        state="fine" if breached is None else "breached",
        said=f"{against}: {breached or '; '.join(f'{one.name}: {one.said}' for one in guards)}.",
        windows=[one.window_id for one in ours],
        before=[one.window_id for one in theirs],
        guards=guards,
        **of_row,
    )


def _first_hour(row: dict[str, Any]) -> str:
    """The first hour that is wholly of what was promoted."""
    told = (row["evidence"] or {}).get("experiment")
    later = told.get("from_window") if isinstance(told, dict) else None
    following = shift_window(window_of(row["promoted_at"]), 1)
    return max(following, later) if isinstance(later, str) else following


def guard_what_is_served(connection: psycopg.Connection, settings: ExperimentSettings, now: datetime) -> Watched:
    """Judge the promotion that stands and take it back where a guardrail is breached, in the caller's transaction.

    Once: what stands after it is a rollback. Where there is nothing to go back to it is said, and nothing is changed.
    """
    lock_promotions(connection)
    found = watch(connection, settings, now)
    if found.state != "breached":
        return found
    evidence = {
        "watch": {
            "promotion_id": found.promotion_id,
            "windows": found.windows,
            "before": found.before,
            "guards": {one.name: msgspec.to_builtins(one) for one in found.guards},
        }
    }
    try:
        with connection.transaction():
            made = roll_back(connection, WATCH, f"A guardrail: {found.said}", evidence=evidence)
    except (ServingError, TrainingError) as error:
        return msgspec.structs.replace(found, said=f"{found.said} It stays: {error}")
    return msgspec.structs.replace(found, state="rolled_back", said=f"{found.said} Back to {made.after}.")
