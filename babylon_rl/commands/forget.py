"""`babylon-rl forget AGENT`: what would have to be made again if the agent's recordings were withdrawn."""

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from babylon_rl.commands.lineage import told_user
from babylon_rl.console import DatabaseOption, JsonOption, console, settings_for
from babylon_rl.errors import TrainingError

if TYPE_CHECKING:
    from babylon_rl.training.forgetting import Forgetting

MOST = 10  # ids on a line


def forget(
    agent: Annotated[str, typer.Argument(help="The agent's id, as recorded.")],
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """List what rests on an agent's recordings and how it is made again without them. Nothing is deleted.

    Exit code 1: nothing of that agent is known.
    """
    from babylon_rl.loop import prepare
    from babylon_rl.training.forgetting import what_rests_on

    with prepare(settings_for(database)).connect() as connection:
        found = what_rests_on(connection, agent)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    if not found.trajectories and not found.gateway:
        raise TrainingError(
            f"No agent {agent!r} is scored, trained on or answered. `babylon-rl score --window` names agents."
        )
    for line in lines(found):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def lines(found: "Forgetting") -> list[str]:
    """What is told of it."""
    direct = [one for one in found.checkpoints if one.direct]
    said = [
        f"{found.agent_id}: {len(found.trajectories):,} trajectories of {_many(len(found.windows), 'window')}, "
        f"{len(found.trained):,} of them in a snapshot.",
        f"  windows: {_some(found.windows)}",
    ]
    if found.gateway:
        held = ", ".join(f"{count:,} rows of {table}" for table, count in found.gateway.items())
        said.append(f"  through the gateway: {held}; the latest of them in its spool too")
    if found.snapshots:
        said.append(f"  {_many(len(found.snapshots), 'snapshot')}: {_some([one[:12] for one in found.snapshots])}")
    if found.jobs:
        said.append(
            f"  {_many(len(found.jobs), 'job')} training on these now: {_some([one[:12] for one in found.jobs])}"
        )
    if found.checkpoints:
        said.append(
            f"{_many(len(found.checkpoints), 'checkpoint')} would have to be trained again; {len(direct):,} by being "
            f"trained on them, {len(found.checkpoints) - len(direct):,} by descent:"
        )
        said += [told_user(one) for one in found.checkpoints]
    if found.evaluations:
        windows = sorted({one.window_id for one in found.evaluations})
        said.append(f"{_many(len(found.evaluations), 'evaluation')} of these checkpoints: {_some(windows)}")
    if not found.checkpoints:
        said.append("No checkpoint rests on them.")
    said.append("Nothing was deleted or changed. Once the recordings are gone from their tables:")
    said += [f"  {command}" for command in found.commands]
    said.append(
        "Advantages of the other agents of these windows come out anew, and so do baselines of later windows that "
        "count these in; the check rows_are_current names what that makes stale."
    )
    return said


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST:,} more, which --json lists" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
