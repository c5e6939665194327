"""What rests on one agent's recordings, and so would have to be made again without them. Nothing is deleted here."""

from collections.abc import Sequence

import msgspec
import psycopg

from babylon_rl.training.ancestry import User, snapshots_of_agent, users


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A stored comparison in which one of the checkpoints took part."""

    window_id: str
    split: str
    candidate: str
    baseline: str
    decision: str


class Forgetting(msgspec.Struct, frozen=True, kw_only=True):
    """What rests on an agent's recordings.

    `trajectories`, `windows`: the agent's that are scored; `trained`: those of them in a snapshot. `snapshots`: with
    the agent's members in each. `jobs`: that train on these and have not ended; `commands`: what would be run once the
    recordings are gone from their tables. `gateway`: rows of the agent in the gateway's tables, where there are any.
    """

    agent_id: str
    trajectories: list[str]
    windows: list[str]
    trained: list[str]
    snapshots: dict[str, int]
    jobs: list[str]
    checkpoints: list[User]
    evaluations: list[Evaluation]
    commands: list[str]
    gateway: dict[str, int] = {}

    @property
    def promoted(self) -> list[User]:
        """The checkpoints among them that are or were served."""
        return [one for one in self.checkpoints if one.promoted]


def what_rests_on(connection: psycopg.Connection, agent_id: str) -> Forgetting:
    """Everything that the agent's recordings went into, directly and through descent."""
    scored = connection.execute(
        "SELECT DISTINCT window_id, trajectory_id FROM babylon_rl.scored_trajectories WHERE agent_id = %s", (agent_id,)
    ).fetchall()
    snapshots = snapshots_of_agent(connection, agent_id)
    members = {pair for pairs in snapshots.values() for pair in pairs}
    everything = members | {(window, trajectory) for window, trajectory in scored}
    checkpoints = users(connection, list(snapshots))
    names = [one.checkpoint_id for one in checkpoints]
    rows = connection.execute(
        """SELECT window_id, split, candidate, baseline, decision FROM babylon_rl.checkpoint_evaluations
           WHERE superseded_at IS NULL AND (candidate = ANY(%(names)s) OR baseline = ANY(%(names)s))
           ORDER BY window_id, split, candidate, baseline""",
        {"names": names},
    ).fetchall()
    jobs = connection.execute(
        """SELECT job_id FROM babylon_rl.training_attempts
           WHERE snapshot_id = ANY(%s) AND state NOT IN ('done', 'failed', 'cancelled') ORDER BY created_at""",
        (list(snapshots),),
    ).fetchall()
    fields = Evaluation.__struct_fields__
    return Forgetting(
        agent_id=agent_id,
        trajectories=sorted({trajectory for _, trajectory in everything}),
        windows=sorted({window for window, _ in everything}),
        trained=sorted({trajectory for _, trajectory in members}),
        snapshots={snapshot: len(pairs) for snapshot, pairs in sorted(snapshots.items())},
        jobs=[row[0] for row in jobs],
        checkpoints=checkpoints,
        evaluations=[Evaluation(**dict(zip(fields, row, strict=True))) for row in rows],
        commands=_commands(connection, checkpoints, sorted({window for window, _ in everything})),
        gateway=_gateway_rows(connection, agent_id),
    )


def _gateway_rows(connection: psycopg.Connection, agent_id: str) -> dict[str, int]:
    """What the gateway's tables hold of the agent, scored or not."""
    rows = connection.execute(
        """SELECT 'gateway_calls', count(*) FROM babylon_rl.gateway_calls WHERE agent_id = %(agent)s
           UNION ALL
           SELECT 'gateway_trajectories', count(*) FROM babylon_rl.gateway_trajectories WHERE agent_id = %(agent)s
           UNION ALL
           SELECT 'gateway_steps', count(*) FROM babylon_rl.gateway_steps
           JOIN babylon_rl.gateway_trajectories USING (trajectory_id) WHERE agent_id = %(agent)s""",
        {"agent": agent_id},
    ).fetchall()
    return {table: count for table, count in rows if count}


def _commands(connection: psycopg.Connection, checkpoints: Sequence[User], windows: Sequence[str]) -> list[str]:
    """How the windows are scored anew without the agent, and each run trained again from the first update on.

    The same run and no other: what its checkpoints played is foreign to any other run.
    """
    if not windows:
        return []
    made = [f"babylon-rl rescore --from {windows[0]} --to {windows[-1]}"]
    rows = connection.execute(
        """SELECT training_run, min(last_window), max(last_window) FROM babylon_rl.checkpoints
           WHERE checkpoint_id = ANY(%s) AND last_window IS NOT NULL GROUP BY training_run ORDER BY training_run""",
        ([one.checkpoint_id for one in checkpoints],),
    ).fetchall()
    return made + [
        f"babylon-rl ui, and there materialize trained_checkpoints from {first} to {last} ({run})"
        for run, first, last in rows
    ]
