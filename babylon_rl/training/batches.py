"""Runs over chosen windows: which windows the next updates take, and the batches that a run was given so far.

A run of batches is one line of checkpoints. Its updates stand in the order of time: each ends with a later window than
the one before, and may take earlier windows that the line has not trained on. What ends where is in the run's schedule,
so that a window that is materialized again comes to the same update.
"""

from collections.abc import Sequence

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from babylon_rl.errors import TrainingError
from babylon_rl.training.lineage import new_groups, state_before
from babylon_rl.training.runs import Checkpoint, TrainingRun, base_of, load_run
from babylon_rl.windows import shift_window

BATCHES = "batches"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which windows are looked at, and which of them are taken.

    `first`, `last`: both included. A window needs `min_agents` agents with `min_actions` recorded steps each; all its
    agents are then trained on. At most `windows` go into an update, and `updates` of them are planned.
    """

    first: str
    last: str
    min_agents: int
    min_actions: int
    windows: int
    updates: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The batches of the next updates, in order, and how many ready windows are in none of them, by reason.

    `trained`: the line has trained on them. `nothing_new`: their groups cannot be trained on, or no loss admits them.
    `few_agents`: of the others, those with too few agents of so many actions; `best`: the largest number of such agents
    among these. `left`: they would do, and wait for an update.
    """

    batches: list[list[str]]
    ready: int
    trained: int
    nothing_new: int
    few_agents: int
    best: int
    left: int


def batches_of(run: TrainingRun) -> list[list[str]] | None:
    """The windows of each update of a run of batches; None for another run."""
    return run.schedule.get(BATCHES)


def batch_ending(run: TrainingRun, window_id: str) -> list[str] | None:
    """Windows of the run's update that ends with this one, none where none does; None where it is no run of batches."""
    batches = batches_of(run)
    if batches is None:
        return None
    return next((batch for batch in batches if batch[-1] == window_id), [])


def parent_at(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> Checkpoint:
    """What an update that ends with the window goes on from, also of a run that is not started yet."""
    started = load_run(connection, run.training_run) is not None
    return state_before(connection, run, window_id) if started else base_of(run)


def choose(connection: psycopg.Connection, run: TrainingRun, wanted: Wanted) -> Choice:
    """The batches of the run's next updates: the newest windows that will do, the earlier ones first. Writes nothing.

    `run`: as stored, or as it would be started.
    """
    ready = dict(
        connection.execute(
            _READY, {"first": wanted.first, "last": wanted.last, "actions": wanted.min_actions}
        ).fetchall()
    )
    parent = parent_at(connection, run, shift_window(wanted.last, 1))
    trained = {window for (window,) in connection.execute(_TRAINED, (run.training_run,)).fetchall()} & set(ready)
    looked_at = msgspec.structs.replace(run, first_window=wanted.first)
    new = [w for w in new_groups(connection, looked_at, parent, wanted.last).digests if w in ready and w not in trained]
    enough = [window for window in new if ready[window] >= wanted.min_agents]
    few = [ready[window] for window in new if ready[window] < wanted.min_agents]
    taken = enough[-wanted.windows * wanted.updates :]
    batches = _split(taken, max((batch[-1] for batch in batches_of(run) or []), default=""), wanted.windows)
    return Choice(
        batches=batches,
        ready=len(ready),
        trained=len(trained),
        nothing_new=len(ready) - len(trained) - len(new),
        few_agents=len(few),
        best=max(few, default=0),
        left=len(enough) - sum(map(len, batches)),
    )


def _split(windows: Sequence[str], ended: str, size: int) -> list[list[str]]:
    """Batches that each end after `ended`; earlier windows fill up the first as far as it has room."""
    newer = [window for window in windows if window > ended]
    batches = [list(newer[start : start + size]) for start in range(0, len(newer), size)]
    if batches and (room := size - len(batches[0])):
        batches[0] = [*[window for window in windows if window <= ended][-room:], *batches[0]]
    return batches


# Agents with so many steps in each window that is ready.
_READY = """
    SELECT w.window_id, (
        SELECT count(DISTINCT s.agent_id)::int FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = w.window_id AND s.superseded_at IS NULL AND (s.features->>'steps')::int >= %(actions)s)
    FROM babylon_rl.windows w
    WHERE w.superseded_at IS NULL AND w.status = 'ready' AND w.window_id BETWEEN %(first)s AND %(last)s
    ORDER BY w.window_id
"""
_TRAINED = """
    SELECT DISTINCT unnest(s.window_ids) FROM babylon_rl.checkpoints c JOIN babylon_rl.snapshots s USING (snapshot_id)
    WHERE c.training_run = %s
"""


def add_batch(connection: psycopg.Connection, run: TrainingRun, windows: Sequence[str]) -> TrainingRun:
    """The stored run with one more batch, which ends with the last of the windows.

    TrainingError where somebody else has given it one meanwhile.
    """
    before = batches_of(run) or []
    grown = msgspec.structs.replace(
        run,
        schedule={**run.schedule, BATCHES: [*before, list(windows)]},
        first_window=min(run.first_window, *windows),
        last_window=max(windows[-1], run.last_window or ""),
    )
    written = connection.execute(
        """UPDATE babylon_rl.training_runs SET schedule = %s, first_window = %s, last_window = %s
           WHERE training_run = %s AND schedule = %s""",
        (Jsonb(grown.schedule), grown.first_window, grown.last_window, run.training_run, Jsonb(run.schedule)),
    )
    if written.rowcount != 1:
        raise TrainingError(f"Another command trains {run.training_run} at this moment; run this one again after it.")
    return grown


def unfinished(connection: psycopg.Connection, run: TrainingRun) -> list[str] | None:
    """The run's last batch, where its window was not computed since it was added, so that its update is still due."""
    batches = batches_of(run)
    if not batches:
        return None
    row = connection.execute(
        """SELECT 1 FROM babylon_rl.trained_checkpoints
           WHERE window_id = %s AND training_run = %s AND superseded_at IS NULL AND group_digests IS NOT NULL""",
        (batches[-1][-1], run.training_run),
    ).fetchone()
    return batches[-1] if row is None else None
