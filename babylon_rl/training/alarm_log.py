"""Rows of `training_alarms`: written with an update, and read for what they change: state, exploration, candidates.

Everything is read as of a window: alarms of earlier windows count and later ones do not, so that a window that is
materialized again comes to the same row.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pandas as pd
import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.groups.build import tolerance_in
from babylon_rl.groups.health import HEALTH_FEATURES, Alarm, BatchHealth, Kind, alarms_of, health_of
from babylon_rl.groups.statuses import NO_SPREAD, TRAINABLE
from babylon_rl.training.alarms import Done, Response, last_good, respond
from babylon_rl.training.runs import Checkpoint, TrainingRun, list_checkpoints
from babylon_rl.windows import parse_window_id, shift_window


class AlarmRow(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm as stored. `window_id`: the update's last window; `exploration`: of the round after it."""

    training_run: str
    window_id: str
    checkpoint_id: str
    kind: Kind
    value: float
    limit_value: float
    response: Done
    back_to: str | None
    exploration: float
    detail: str


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What checking a batch came to."""

    health: BatchHealth
    rows: list[AlarmRow]
    response: Response

    def as_metrics(self) -> dict[str, Any]:
        """As the update's row of `trained_checkpoints` keeps it."""
        return {"health": msgspec.to_builtins(self.health), "alarms": msgspec.to_builtins(self.rows)}


def check_batch(
    connection: psycopg.Connection,
    run: TrainingRun,
    parent: Checkpoint,
    window_id: str,
    windows: Sequence[str],
    groups: pd.DataFrame,
) -> Checked:
    """Health, alarms and response of the update over `windows` that ends with `window_id`.

    `groups`: the windows' rows of `art_groups` as `groups.stored.group_rows` gives them.
    """
    scored = read_frame(connection, _played(windows))
    decisions = [tuple(decision) for own in groups["decisions"] for decision in own]
    health = health_of(list(scored["features"]), statuses_of(groups), decisions)
    alarms = alarms_of(health, run.recipe.alarms)
    checkpoints = {c.checkpoint_id: c for c in list_checkpoints(connection, run.training_run)}
    earlier = alarms_before(connection, run, window_id)
    played = _player(scored, parent.checkpoint_id)
    response = respond(
        alarms,
        run.recipe.alarms,
        run.recipe.exploration,
        # Agents that are not of this run leave nothing to step back from.
        played_step=checkpoints[played].step if played in checkpoints else 0,
        alarmed_before=_in_a_row(run, window_id, windows[0], earlier, checkpoints.values()),
        last_good=last_good(
            parent.checkpoint_id,
            {c.checkpoint_id: c.parent_id for c in checkpoints.values()},
            {alarm.checkpoint_id for alarm in earlier},
        ),
    )
    rows = [_alarm_row(run, window_id, played, alarm, response) for alarm in alarms]
    return Checked(health=health, rows=rows, response=response)


def statuses_of(groups: pd.DataFrame) -> Counter[str]:
    """Counts of the groups by status; equal rewards are no spread, also where values of actions make them trainable."""
    made_with = groups["settings"] if "settings" in groups else [None] * len(groups)
    tolerances = pd.Series([tolerance_in(one) for one in made_with], index=groups.index, dtype=float)
    equal = (groups["status"] == TRAINABLE) & (groups["reward_spread"].astype(float) < tolerances)
    return Counter(groups["status"].mask(equal, NO_SPREAD))


def _alarm_row(run: TrainingRun, window_id: str, played: str, alarm: Alarm, response: Response) -> AlarmRow:
    return AlarmRow(
        training_run=run.training_run,
        window_id=window_id,
        checkpoint_id=played,
        kind=alarm.kind,
        value=alarm.value,
        limit_value=alarm.limit,
        response=response.kind,
        back_to=response.checkpoint,
        exploration=response.exploration,
        detail=alarm.detail,
    )


def _played(windows: Sequence[str]) -> sa.Select:
    """Of each scored trajectory its checkpoint, and of its features those that `groups.health` looks at."""
    columns = scored_trajectories.c
    looked_at = [part for name in HEALTH_FEATURES for part in (name, columns.features[name])]
    return current_rows(scored_trajectories, windows).with_only_columns(
        columns.checkpoint, sa.func.jsonb_build_object(*looked_at).label("features")
    )


def _player(scored: pd.DataFrame, otherwise: str) -> str:
    """The checkpoint that played most of the batch."""
    counts = Counter(name for name in scored["checkpoint"] if name)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else otherwise


def _in_a_row(
    run: TrainingRun, window_id: str, first: str, alarms: Sequence[AlarmRow], checkpoints: Iterable[Checkpoint]
) -> int:
    """Updates just before the one that ends with `window_id` that raised alarms, without a pause.

    `first`: its first window, before which an update of a run with an end lies.
    """
    alarmed = {alarm.window_id for alarm in alarms}
    if run.last_window is None:
        ends = alarmed | {c.last_window for c in checkpoints if c.last_window and c.last_window < window_id}
        return sum(1 for _ in itertools.takewhile(alarmed.__contains__, sorted(ends, reverse=True)))
    count, before = 0, shift_window(first, -1)
    while before in alarmed:
        count, before = count + 1, shift_window(before, -run.recipe.windows_per_update)
    return count


def save_alarms(connection: psycopg.Connection, run: TrainingRun, window_id: str, rows: Sequence[AlarmRow]) -> None:
    """Make the rows those of the update, in the caller's transaction; a kind that no longer is raised goes."""
    connection.execute(
        "DELETE FROM babylon_rl.training_alarms WHERE training_run = %s AND window_id = %s AND kind <> ALL(%s)",
        (run.training_run, window_id, [row.kind for row in rows]),
    )
    for row in rows:
        connection.execute(
            """INSERT INTO babylon_rl.training_alarms (training_run, window_id, checkpoint_id, kind, value, limit_value,
               response, back_to, exploration, detail) VALUES (%(training_run)s, %(window_id)s, %(checkpoint_id)s,
               %(kind)s, %(value)s, %(limit_value)s, %(response)s, %(back_to)s, %(exploration)s, %(detail)s)
               ON CONFLICT (training_run, window_id, kind) DO UPDATE SET
               (checkpoint_id, value, limit_value, response, back_to, exploration, detail) = (excluded.checkpoint_id,
               excluded.value, excluded.limit_value, excluded.response, excluded.back_to, excluded.exploration,
               excluded.detail)""",
            msgspec.structs.asdict(row),
        )


def list_alarms(connection: psycopg.Connection, training_run: str) -> list[AlarmRow]:
    """The run's alarms by window and kind."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT * FROM babylon_rl.training_alarms WHERE training_run = %s ORDER BY window_id, kind", (training_run,)
        ).fetchall()
    return [msgspec.convert({key: row[key] for key in AlarmRow.__struct_fields__}, AlarmRow) for row in rows]


def alarms_before(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> list[AlarmRow]:
    """The run's alarms of updates that ended before the window."""
    return [alarm for alarm in list_alarms(connection, run.training_run) if alarm.window_id < window_id]


def response_at(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> Done:
    """What was done about the alarms of the update that ended with the window."""
    found = [alarm for alarm in list_alarms(connection, run.training_run) if alarm.window_id == window_id]
    return found[0].response if found else "none"


def exploration_for(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> float:
    """Exploration of the round that holds the window: raised where the update before it raised an alarm."""
    if run.last_window is None:
        trained = [c.last_window for c in list_checkpoints(connection, run.training_run) if c.last_window]
        last = max((window for window in trained if window < window_id), default="")
        since = [alarm for alarm in alarms_before(connection, run, window_id) if alarm.window_id >= last]
        return since[-1].exploration if since else run.recipe.exploration
    hours = int((parse_window_id(window_id) - parse_window_id(run.first_window)).total_seconds() // 3600)
    before = shift_window(window_id, -(hours % run.recipe.windows_per_update) - 1)
    found = [alarm for alarm in list_alarms(connection, run.training_run) if alarm.window_id == before]
    return found[0].exploration if found else run.recipe.exploration


def set_aside(checkpoints: Sequence[Checkpoint], alarms: Sequence[AlarmRow]) -> set[str]:
    """Ids of the checkpoints that the alarms' steps back left behind."""
    steps = {c.checkpoint_id: c.step for c in checkpoints}
    return {
        checkpoint.checkpoint_id
        for alarm in alarms
        if alarm.back_to is not None
        for checkpoint in checkpoints
        if checkpoint.last_window is not None
        and checkpoint.last_window <= alarm.window_id
        and checkpoint.step > steps[alarm.back_to]
    }


def standing_checkpoints(
    connection: psycopg.Connection, run: TrainingRun, window_id: str | None = None
) -> list[Checkpoint]:
    """The run's checkpoints by step without those set aside; as of a window where one is named."""
    checkpoints = list_checkpoints(connection, run.training_run)
    if window_id is None:
        alarms = list_alarms(connection, run.training_run)
    else:
        alarms = alarms_before(connection, run, window_id)
    aside = set_aside(checkpoints, alarms)
    return [checkpoint for checkpoint in checkpoints if checkpoint.checkpoint_id not in aside]


def newest_alarms(connection: psycopg.Connection) -> tuple[str | None, list[AlarmRow]]:
    """The last update's window over all runs, by when its row was written, and its alarms; None before the first."""
    row = connection.execute(
        """SELECT training_run, window_id FROM babylon_rl.trained_checkpoints
           WHERE superseded_at IS NULL AND metrics ? 'health' ORDER BY row_id DESC LIMIT 1"""
    ).fetchone()
    if row is None:
        return None, []
    return row[1], [alarm for alarm in list_alarms(connection, row[0]) if alarm.window_id == row[1]]
