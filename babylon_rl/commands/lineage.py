"""`babylon-rl lineage`: from a checkpoint down to each trajectory, or from a trajectory up to every checkpoint."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from babylon_rl.console import DatabaseOption, JsonOption, console, settings_for
from babylon_rl.errors import SettingsError, TrainingError

if TYPE_CHECKING:
    import psycopg

    from babylon_rl.training.ancestry import Ancestor, Used, User

MOST = 12  # digits of a hash


def lineage(
    checkpoint: Annotated[str | None, typer.Argument(help="Its id, the beginning of it, or promoted.")] = None,
    trajectory: Annotated[
        str | None, typer.Option("--trajectory", metavar="ID", help="Go up from this trajectory instead.")
    ] = None,
    with_trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Down to each trajectory, with its scores and calls.")
    ] = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Tell what a checkpoint was made of, back to the base model; or every checkpoint that used a trajectory."""
    from babylon_rl.loop import prepare

    if (checkpoint is None) == (trajectory is None):
        raise SettingsError("Name a checkpoint (`promoted`, or the beginning of its id), or --trajectory ID.")
    with prepare(settings_for(database)).connect() as connection:
        if trajectory is not None:
            _up(connection, trajectory, as_json)
        else:
            _down(connection, checkpoint or "", with_trajectories, as_json)


def _down(connection: "psycopg.Connection", named: str, with_trajectories: bool, as_json: bool) -> None:
    from babylon_rl.training.ancestry import chain, trajectories
    from babylon_rl.training.retention import find_checkpoint

    found = chain(connection, find_checkpoint(connection, named).checkpoint_id)
    if as_json:
        _print_json(connection, found, with_trajectories)
        return
    for ancestor in found:
        for line in told(ancestor):
            _say(line)
        if with_trajectories and ancestor.snapshot_id is not None:
            for one in trajectories(connection, ancestor.snapshot_id):
                _say(f"    {told_trajectory(one)}")
    if not with_trajectories and len(found) > 1:
        _say("--trajectories goes down to each trajectory; --json has everything in full.")


def told(one: "Ancestor") -> Iterator[str]:
    """The lines of one checkpoint of a chain."""
    signs = [f"step {one.step}", one.backend or "", one.state if one.state != "ready" else ""]
    yield f"{one.checkpoint_id}  {', '.join(filter(None, [*signs, 'promoted' if one.promoted else '']))}"
    if one.snapshot_id is None:
        yield f"  base model {one.base_model}"
        return
    yield f"  made {one.made:%Y-%m-%d %H:%M} by job {_short(one.job_id)}, code {one.code_version or 'unknown'}" + (
        f", at the service {one.remote_job_id}" if one.remote_job_id else ""
    )
    span = f"{one.windows[0]} to {one.windows[-1]}" if one.windows else "none"
    yield f"  snapshot {_short(one.snapshot_id)}, {len(one.windows)} windows: {span}" + (
        f", code {one.snapshot_code}" if one.snapshot_code and one.snapshot_code != one.code_version else ""
    )
    for counted in one.members:
        yield f"    {counted.members:,} members of {counted.agents:,} agents: {counted.label}, loss {counted.loss}"
    yield (
        f"  weights {_short(one.weights_sha256)}, base {_short(one.base_sha256)}, tokenizer "
        f"{_short(one.tokenizer_sha256)}"
    )
    if one.path or one.inference_name:
        yield f"  in {one.path}" if one.path else f"  at {one.inference_url} as {one.inference_name}"


def told_trajectory(one: "Used") -> str:
    """One line of a trajectory: what it earned, how it was used, and what it was made of."""
    return (
        f"{one.window_id} {one.trajectory_id} {one.agent_id}: reward {one.reward:+.6g}, advantage "
        f"{one.advantage:+.4g}, {one.label}; {one.scorer} {one.scorer_version}, scores {_short(one.scores_digest)}, "
        f"outcomes {_short(one.outcome_revision)}, window {_short(one.window_revision)}; calls {', '.join(one.calls)}"
    )


def _print_json(connection: "psycopg.Connection", found: "list[Ancestor]", with_trajectories: bool) -> None:
    """The chain as one JSON array, written piece by piece: a snapshot may hold more than is good to hold at once."""
    from babylon_rl.training.ancestry import trajectories

    print("[", end="")
    for place, ancestor in enumerate(found):
        text = msgspec.json.encode(ancestor).decode()
        print(("," if place else "") + (text[:-1] if with_trajectories else text), end="")
        if not with_trajectories:
            continue
        print(',"trajectories":[', end="")
        own = trajectories(connection, ancestor.snapshot_id) if ancestor.snapshot_id else iter(())
        for first, batch in zip(itertools.chain([True], itertools.repeat(False)), _batches(own), strict=False):
            print(("" if first else ",") + ",".join(msgspec.json.encode(one).decode() for one in batch), end="")
        print("]}", end="")
    print("]")


def _batches(rows: "Iterator[Used]", size: int = 1000) -> "Iterator[list[Used]]":
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _up(connection: "psycopg.Connection", trajectory: str, as_json: bool) -> None:
    from babylon_rl.training.ancestry import users, with_trajectory

    used = with_trajectory(connection, trajectory)
    found = users(connection, {one.snapshot_id for one in used})
    if as_json:
        print(msgspec.json.encode({"trajectory": trajectory, "used": used, "checkpoints": found}).decode())
        return
    if not used:
        known = connection.execute(
            "SELECT window_id FROM babylon_rl.scored_trajectories WHERE trajectory_id = %s LIMIT 1", (trajectory,)
        ).fetchone()
        if known is None:
            raise TrainingError(
                f"No trajectory {trajectory!r} is scored or in a snapshot. `babylon-rl score --window` lists those of "
                "a window by agent."
            )
        _say(f"{trajectory} is scored in {known[0]} and in no snapshot: no checkpoint was trained on it.")
        return
    for one in used:
        _say(f"snapshot {_short(one.snapshot_id)}: {told_trajectory(one)}")
    for user in found:
        _say(told_user(user))
    if not found:
        _say("No checkpoint was trained on these snapshots: their jobs did not end, or have failed.")


def told_user(one: "User") -> str:
    """One line of a checkpoint that a recording is in."""
    how = "trained on it" if one.direct else f"descends from {one.through}"
    served = ", served now" if one.served else ", was promoted" if one.promoted else ""
    gone = ", weights deleted" if one.state == "deleted" else ""
    return f"  {one.checkpoint_id} (step {one.step}): {how}{served}{gone}"


def _short(value: str | None) -> str:
    return "unknown" if value is None else value[:MOST]


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
