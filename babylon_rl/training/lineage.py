"""The line of checkpoints behind a window: the state before it, and the groups that this line has not trained on.

Everything is read as of a window, so that a window that is materialized again over the same data comes to the same
update. What belongs to a line is what its checkpoints' snapshots hold: another branch may train on it once more.
"""

from typing import Any

import msgspec
import psycopg

from babylon_rl.groups.advantages import ALL_ACTIONS, SPREAD_TOLERANCE
from babylon_rl.groups.provenance import ADMITTED, Admission, Lineage, Provenance, loss_for
from babylon_rl.training.alarm_log import alarms_before, list_alarms, standing_checkpoints
from babylon_rl.training.base_models import TINY
from babylon_rl.training.runs import Checkpoint, TrainingRun, base_checkpoint, list_checkpoints
from babylon_rl.windows import shift_window

ADMITTED_LABELS = frozenset().union(*ADMITTED.values())


class NewGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Groups that a line of checkpoints may still train on.

    `digests`: their `group_digest` by window, in order. `not_admitted`: how many other trainable groups there are of
    which no loss may use a member: of texts that did no better than the others or that the backend cannot take, of
    checkpoints that are too many updates behind, or too many days before the last of all.
    """

    digests: dict[str, str]
    not_admitted: int


def state_before(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> Checkpoint:
    """The run's latest checkpoint that was trained on windows before this one only.

    Where a window was trained again, the branch that came last counts. Where an alarm led back, that checkpoint counts,
    and those trained after the alarm.
    """
    turns = [alarm for alarm in alarms_before(connection, run, window_id) if alarm.back_to is not None]
    since = turns[-1].window_id if turns else ""
    checkpoints = list_checkpoints(connection, run.training_run)
    later = [(c.last_window, place) for place, c in enumerate(checkpoints) if since < (c.last_window or "") < window_id]
    if later:
        return checkpoints[max(later)[1]]
    start = turns[-1].back_to if turns else base_checkpoint(run.training_run)
    return next(checkpoint for checkpoint in checkpoints if checkpoint.checkpoint_id == start)


def lineage_at(connection: psycopg.Connection, run: TrainingRun, parent: Checkpoint, window_id: str) -> Lineage:
    """What the update that ends with the window admits: the run's checkpoints that were not set aside before it."""
    steps = {c.checkpoint_id: c.step for c in standing_checkpoints(connection, run, window_id)}
    aside = {c.checkpoint_id for c in list_checkpoints(connection, run.training_run)} - steps.keys()
    # An endpoint serves the base model under its own name. Fresh weights are those of seed 0 there.
    if run.base_model != TINY or run.seed == 0:
        steps.setdefault(run.base_model, 0)
    return Lineage(run.training_run, steps, parent.step, tuple(sorted(aside)))


def updates_of(connection: psycopg.Connection, run: TrainingRun) -> list[str]:
    """Last windows of the run's updates, in order, those included that an alarm answered."""
    trained = {c.last_window for c in list_checkpoints(connection, run.training_run) if c.last_window}
    return sorted(trained | {alarm.window_id for alarm in list_alarms(connection, run.training_run)})


def new_groups(connection: psycopg.Connection, run: TrainingRun, parent: Checkpoint, window_id: str) -> NewGroups:
    """Groups up to the window that an update on top of `parent` would train on.

    A window that became trainable late is among them; one that the line has trained on is not, also where its group was
    corrected since. After an alarm that led back, the windows after it count.
    """
    turns = [alarm.window_id for alarm in alarms_before(connection, run, window_id) if alarm.back_to is not None]
    first = shift_window(turns[-1], 1) if turns else run.first_window
    lineage = lineage_at(connection, run, parent, window_id)
    rows = connection.execute(
        _NEW_GROUPS,
        {
            "parent": parent.checkpoint_id,
            "first": max(first, run.first_window),
            "last": window_id,
            "all_actions": run.recipe.advantages == ALL_ACTIONS,
            "tolerance": SPREAD_TOLERANCE,
            **_admitting(lineage, Admission.of(run.recipe.as_json(), run.backend)),
        },
    ).fetchall()
    digests = {window: digest for window, digest, trains in rows if trains}
    return NewGroups(digests=digests, not_admitted=len(rows) - len(digests))


def _admitting(lineage: Lineage, admission: Admission) -> dict[str, Any]:
    """What the statement asks of a trajectory to tell what it enters: as `groups.admitting.ruling_of`."""
    behind = {name: lineage.current - step for name, step in lineage.steps.items() if step <= lineage.current}
    taken = {label: loss_for(Provenance(label), admission).loss is not None for label in ADMITTED_LABELS}
    return {
        "known": list(behind),
        "fresh": [name for name, updates in behind.items() if updates == 0],
        "near": [name for name, updates in behind.items() if updates <= admission.stale_limit],
        "aside": list(lineage.set_aside),
        "days": admission.stale_days,
        **taken,
    }


# Which groups `groups.snapshots.make_snapshot` would keep, from the scores: the groups themselves are large, and not
# looked into here. Members are the scored rows that were not left out, under the rewards that the group was made with.
_NEW_GROUPS = """
WITH RECURSIVE line AS (
    SELECT checkpoint_id, parent_id, snapshot_id FROM babylon_rl.checkpoints WHERE checkpoint_id = %(parent)s
    UNION ALL
    SELECT c.checkpoint_id, c.parent_id, c.snapshot_id
    FROM babylon_rl.checkpoints c JOIN line ON c.checkpoint_id = line.parent_id
),
trained AS (
    SELECT DISTINCT unnest(s.window_ids) AS window_id FROM line JOIN babylon_rl.snapshots s USING (snapshot_id)
),
gathered AS (
    SELECT g.window_id, g.group_digest, g.scorer, g.left_out, g.judge_verdict = 'set_aside' AS set_aside, g.baselines,
           g.settings->>'loss' IS NOT NULL AS text_alone,
           greatest((g.settings->>'tolerance')::float8, %(tolerance)s) AS tolerance
    FROM babylon_rl.art_groups g
    WHERE g.superseded_at IS NULL AND g.status = 'trainable' AND g.window_id BETWEEN %(first)s AND %(last)s
      AND NOT EXISTS (SELECT 1 FROM trained t WHERE t.window_id = g.window_id)
),
out AS (
    SELECT g.window_id, o.value->>'trajectory_id' AS trajectory_id
    FROM gathered g CROSS JOIN jsonb_array_elements(g.left_out) o
),
rewarded AS (
    SELECT s.window_id, s.agent_id, s.provenance, g.tolerance, g.text_alone, g.baselines,
           string_to_array(coalesce(nullif(s.checkpoint, ''), '?'), ',') AS names,
           CASE WHEN s.scorer = g.scorer THEN s.reward ELSE s.outcome_score END AS reward,
           CASE WHEN %(all_actions)s AND s.scorer = g.scorer AND s.action_values IS NOT NULL THEN
               (SELECT max(value::float8) - min(value::float8) FROM jsonb_each_text(s.action_values)) END AS values
    FROM gathered g JOIN babylon_rl.scored_trajectories s
      ON s.window_id = g.window_id AND s.superseded_at IS NULL AND (s.scorer = g.scorer OR g.set_aside)
    WHERE s.provenance IN ('logged', 'no_logprobs') AND NOT EXISTS (
          SELECT 1 FROM out o WHERE o.window_id = s.window_id AND o.trajectory_id = s.trajectory_id)
),
members AS (
    SELECT window_id, tolerance, reward, values,
           reward - coalesce((baselines->>agent_id)::float8, 0) AS residual,
           CASE WHEN names && %(aside)s::text[] THEN 'nothing'
                WHEN provenance = 'no_logprobs' THEN CASE WHEN %(no_logprobs)s THEN 'supervised' END
                WHEN NOT names <@ %(known)s::text[] THEN CASE WHEN %(foreign_model)s THEN 'supervised' END
                WHEN text_alone THEN 'nothing'
                WHEN names <@ %(fresh)s::text[] THEN CASE WHEN %(on_policy)s THEN 'weighted' END
                WHEN names <@ %(near)s::text[] THEN CASE WHEN %(stale)s THEN 'weighted' END END AS enters
    FROM rewarded
),
window_sums AS (
    SELECT window_id, count(*) AS members, sum(residual) AS total, max(reward) - min(reward) AS spread
    FROM members GROUP BY window_id
),
spread AS (
    SELECT m.window_id,
           CASE WHEN count(values) FILTER (WHERE enters = 'weighted') > 0
                THEN max(values) FILTER (WHERE enters = 'weighted') >= min(tolerance)
                ELSE count(*) FILTER (WHERE enters = 'weighted') > 1
                     AND max(reward) FILTER (WHERE enters = 'weighted')
                         - min(reward) FILTER (WHERE enters = 'weighted') >= min(tolerance) END
           OR bool_or(enters = 'supervised' AND w.members > 1 AND w.spread >= tolerance
                      AND residual - (w.total - residual) / greatest(w.members - 1, 1) >= tolerance) AS trains
    FROM members m JOIN window_sums w USING (window_id) GROUP BY m.window_id
)
SELECT g.window_id, g.group_digest,
       coalesce(s.trains, false) AND (SELECT max(window_id) FROM gathered)::timestamp - g.window_id::timestamp
           <= make_interval(secs => %(days)s * 86400)
FROM gathered g LEFT JOIN spread s USING (window_id) ORDER BY g.window_id
"""
