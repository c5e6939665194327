"""How the trajectories that were told over HTTP stand in PostgreSQL: how many are open, recorded, refused, and why."""

from typing import Any

import msgspec
import psycopg

MOST_REFUSED = 5  # that are told


class RefusedTrajectory(msgspec.Struct, frozen=True, kw_only=True):
    """One that ended and could not be recorded."""

    trajectory_id: str
    agent_id: str
    reason: str


class TrajectoriesStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers by state; `lacking_calls`: recorded without a call that a step names. `latest_refused`: with reasons."""

    open: int = 0
    ended: int = 0
    abandoned: int = 0
    refused: int = 0
    lacking_calls: int = 0
    latest_refused: list[RefusedTrajectory] = []

    def line(self) -> str:
        """As a person reads it; nothing where no trajectory was told over HTTP."""
        if not (self.open or self.ended or self.abandoned or self.refused):
            return ""
        lacking = f" ({self.lacking_calls} without a call that they name)" if self.lacking_calls else ""
        told = f"Told over HTTP: {self.ended} trajectories recorded{lacking}, {self.open} open, "
        told += f"{self.abandoned} abandoned, {self.refused} refused."
        return " ".join([told, *(f"{one.trajectory_id}: {one.reason}." for one in self.latest_refused)])


def trajectories_standing(connection: psycopg.Connection) -> TrajectoriesStanding:
    """How they stand now, with the latest refusals."""
    counts: dict[str, Any] = dict(
        connection.execute("SELECT state, count(*) FROM babylon_rl.gateway_trajectories GROUP BY state").fetchall()
    )
    lacking = connection.execute(
        "SELECT count(*) FROM babylon_rl.gateway_trajectories WHERE state = 'ended' AND ended ? 'missing_calls'"
    ).fetchone()
    refused = connection.execute(
        """SELECT trajectory_id, agent_id, ended ->> 'reason' FROM babylon_rl.gateway_trajectories
           WHERE state = 'refused' ORDER BY closed_at DESC, trajectory_id LIMIT %s""",
        (MOST_REFUSED,),
    )
    return TrajectoriesStanding(
        **counts,
        lacking_calls=lacking[0] if lacking else 0,
        latest_refused=[
            RefusedTrajectory(trajectory_id=name, agent_id=agent, reason=reason or "")
            for name, agent, reason in refused
        ],
    )
