"""The first system's tables as read-only views of ours, for people's old queries; docs/coming-from.md maps the columns.

Our own `training_jobs` makes room under the name `training_attempts`. The views hold current rows only. None can be
written to: PostgreSQL takes no INSERT into a view that has a WITH, a join, a DISTINCT or a window function. Times are
UTC without a zone, as the first system's were. What takes work (`total_actions`, `data_json`) is a subquery of its own
column: who does not select it does not pay.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A checkpoint that is served, and all before it in its line: what they were trained on is in what is served.
TRAINED_WINDOWS = """
CREATE VIEW babylon_rl.trained_windows AS
WITH RECURSIVE line AS (
    SELECT p.to_checkpoint AS checkpoint_id, min(p.promoted_at) AS promoted_at
    FROM babylon_rl.promotions p GROUP BY p.to_checkpoint
  UNION
    SELECT c.parent_id, line.promoted_at
    FROM line JOIN babylon_rl.checkpoints c ON c.checkpoint_id = line.checkpoint_id
    WHERE c.parent_id IS NOT NULL
), served AS (
    SELECT checkpoint_id, min(promoted_at) AS promoted_at FROM line GROUP BY checkpoint_id
)
SELECT taken.window_id,
       c.checkpoint_id,
       c.created_at AS trained_at,
       served.promoted_at AS deployed_at
FROM babylon_rl.checkpoints c
JOIN babylon_rl.snapshots s ON s.snapshot_id = c.snapshot_id
CROSS JOIN LATERAL unnest(s.window_ids) AS taken (window_id)
LEFT JOIN served ON served.checkpoint_id = c.checkpoint_id
"""

# A window that waits is known from what the sensor saw, before it is materialized. An hour without rows is none.
TRAINING_WINDOWS = """
CREATE VIEW babylon_rl.training_windows AS
WITH known AS (
    SELECT w.window_id, w.status, w.agents, w.pnl_mean, w.created_at
    FROM babylon_rl.windows w WHERE w.superseded_at IS NULL AND w.recorded > 0
  UNION ALL
    SELECT r.window_id, 'waiting', r.agents, NULL, r.changed_at
    FROM babylon_rl.window_requests r
    WHERE r.agents > 0 AND NOT EXISTS (
        SELECT FROM babylon_rl.windows w WHERE w.window_id = r.window_id AND w.superseded_at IS NULL
    )
), trained AS (
    SELECT window_id, min(trained_at) AS trained_at, min(deployed_at) AS deployed_at
    FROM babylon_rl.trained_windows GROUP BY window_id
)
SELECT (extract(epoch FROM k.window_id::timestamp) / 3600)::int AS id,
       k.window_id::varchar AS window_id,
       CASE WHEN t.deployed_at IS NOT NULL THEN 'deployed'
            WHEN t.trained_at IS NOT NULL THEN 'trained'
            WHEN k.status <> 'ready' THEN 'pending'
            WHEN EXISTS (
                SELECT FROM babylon_rl.scored_trajectories s
                WHERE s.window_id = k.window_id AND s.superseded_at IS NULL
            ) THEN 'scored'
            ELSE 'ready' END::varchar AS status,
       k.agents AS agent_count,
       (SELECT sum((s.features ->> 'steps')::int)::int FROM babylon_rl.scored_trajectories s
        WHERE s.window_id = k.window_id AND s.superseded_at IS NULL) AS total_actions,
       round(k.pnl_mean::numeric, 2) AS avg_pnl,
       k.created_at AT TIME ZONE 'UTC' AS created_at,
       CASE WHEN k.status = 'ready' THEN k.created_at AT TIME ZONE 'UTC' END AS ready_at,
       CASE WHEN k.status = 'ready' OR t.trained_at IS NOT NULL THEN (
           SELECT max(s.created_at) AT TIME ZONE 'UTC' FROM babylon_rl.scored_trajectories s
           WHERE s.window_id = k.window_id AND s.superseded_at IS NULL
       ) END AS scored_at,
       t.trained_at AT TIME ZONE 'UTC' AS trained_at,
       t.deployed_at AT TIME ZONE 'UTC' AS deployed_at
FROM known k
LEFT JOIN trained t ON t.window_id = k.window_id
"""

# The first system had one score an agent and window: here that of the agent's best run. Only `heuristic` is on its
# scale of 0 to 1; a reward of another scorer is in `metrics`.
RULER_SCORES = """
CREATE VIEW babylon_rl.ruler_scores AS
SELECT DISTINCT ON (s.window_id, s.agent_id)
       s.row_id AS id,
       s.window_id,
       s.agent_id,
       s.trajectory_id,
       CASE WHEN s.scorer = 'heuristic' THEN round(s.reward::numeric, 4) END AS score,
       s.reason AS reasoning,
       s.created_at AT TIME ZONE 'UTC' AS created_at,
       s.scorer::varchar AS scoring_method,
       s.parts || jsonb_build_object('reward', s.reward) AS metrics
FROM babylon_rl.scored_trajectories s
WHERE s.superseded_at IS NULL
ORDER BY s.window_id, s.agent_id, s.scorer = 'heuristic' DESC, s.rank, s.trajectory_id
"""

# One example an agent's run: the recorded text of its decisions in order, never a text that was made up.
TRAINING_DATASETS = """
CREATE VIEW babylon_rl.training_datasets AS
WITH g AS (SELECT * FROM babylon_rl.art_groups WHERE superseded_at IS NULL AND status = 'trainable')
SELECT g.row_id AS id,
       g.group_digest::varchar AS dataset_id,
       g.window_id::varchar AS window_id,
       g.members AS num_examples,
       round(g.reward_mean::numeric, 4) AS avg_reward,
       (SELECT jsonb_agg(jsonb_build_object(
            'messages', (
                SELECT jsonb_agg(message.value ORDER BY decision.place, message.place)
                FROM jsonb_array_elements(member.value -> 'decisions') WITH ORDINALITY AS decision (value, place)
                CROSS JOIN LATERAL (VALUES
                    (1, jsonb_build_object('role', 'system', 'content', decision.value -> 'system_prompt')),
                    (2, jsonb_build_object('role', 'user', 'content', decision.value -> 'user_prompt')),
                    (3, jsonb_build_object('role', 'assistant', 'content', decision.value -> 'response'))
                ) AS message (place, value)
            ),
            'reward', member.value -> 'reward',
            'metadata', jsonb_build_object(
                'agent_id', member.value -> 'agent_id',
                'trajectory_id', member.value -> 'trajectory_id',
                'final_pnl', (
                    SELECT s.features -> 'window_pnl' FROM babylon_rl.scored_trajectories s
                    WHERE s.window_id = g.window_id AND s.scorer = g.scorer AND s.superseded_at IS NULL
                      AND s.trajectory_id = member.value ->> 'trajectory_id'
                )
            )
        ) ORDER BY member.place)
        FROM jsonb_array_elements(g."group" -> 'members') WITH ORDINALITY AS member (value, place)) AS data_json,
       g.created_at AT TIME ZONE 'UTC' AS created_at
FROM g
"""

# The first system trained a window at a time, we take many at once: a row is one window of an attempt. Its dataset is
# named while the window's group is still the one that was there when the attempt began.
TRAINING_JOBS = """
CREATE VIEW babylon_rl.training_jobs AS
SELECT ('x' || left(md5(a.job_id || taken.window_id), 15))::bit(60)::bigint AS id,
       (a.job_id || ':' || taken.window_id)::varchar AS training_id,
       taken.window_id::varchar AS window_id,
       g.group_digest::varchar AS dataset_id,
       before.base_model::varchar AS base_model,
       w.agents AS num_agents,
       g.members AS num_examples,
       CASE a.state WHEN 'done' THEN 'completed' WHEN 'failed' THEN 'failed' ELSE 'training' END::varchar AS status,
       c.path AS checkpoint_path,
       c.metrics,
       a.created_at AT TIME ZONE 'UTC' AS created_at,
       a.created_at AT TIME ZONE 'UTC' AS started_at,
       a.finished_at AT TIME ZONE 'UTC' AS completed_at
FROM babylon_rl.training_attempts a
JOIN babylon_rl.snapshots s ON s.snapshot_id = a.snapshot_id
CROSS JOIN LATERAL unnest(s.window_ids) AS taken (window_id)
JOIN babylon_rl.checkpoints before ON before.checkpoint_id = a.parent_id
LEFT JOIN babylon_rl.checkpoints c ON c.snapshot_id = a.snapshot_id AND c.parent_id = a.parent_id
LEFT JOIN babylon_rl.windows w ON w.window_id = taken.window_id AND w.superseded_at IS NULL
LEFT JOIN babylon_rl.art_groups g
    ON g.window_id = taken.window_id AND g.superseded_at IS NULL AND g.status = 'trainable'
   AND g.created_at <= a.created_at
"""

# One model is served at a time, of whichever run: a promotion ends the one before it.
MODEL_DEPLOYMENTS = """
CREATE VIEW babylon_rl.model_deployments AS
SELECT p.promotion_id AS id,
       p.to_checkpoint::varchar AS model_version,
       'local'::varchar AS environment,
       NULL::text AS endpoint_url,
       'replace'::varchar AS deployment_strategy,
       NULL::varchar AS health_status,
       NULL::numeric AS deployment_time_seconds,
       100 AS traffic_percentage,
       jsonb_build_object('training_run', p.training_run, 'from', p.from_checkpoint, 'who', p.who, 'why', p.why,
                          'evidence', p.evidence) AS metadata,
       p.promoted_at AT TIME ZONE 'UTC' AS deployed_at,
       lead(p.promoted_at) OVER (ORDER BY p.promotion_id) AT TIME ZONE 'UTC' AS undeployed_at
FROM babylon_rl.promotions p
"""

TRAINING_PIPELINE_STATUS = """
CREATE VIEW babylon_rl.training_pipeline_status AS
SELECT w.window_id, w.status, w.agent_count, w.avg_pnl,
       coalesce(r.scored_agents, 0) AS scored_agents,
       r.avg_ruler_score,
       t.checkpoint_id::varchar AS model_version,
       j.training_time_seconds,
       NULL::text AS endpoint_url,
       NULL::varchar AS deployment_health,
       w.created_at, w.scored_at, w.trained_at, w.deployed_at
FROM babylon_rl.training_windows w
LEFT JOIN (
    SELECT s.window_id, count(DISTINCT s.agent_id) AS scored_agents, avg(s.score) AS avg_ruler_score
    FROM babylon_rl.ruler_scores s GROUP BY s.window_id
) r ON r.window_id = w.window_id
LEFT JOIN babylon_rl.trained_windows t ON t.window_id = w.window_id
LEFT JOIN babylon_rl.checkpoints c ON c.checkpoint_id = t.checkpoint_id
LEFT JOIN LATERAL (
    SELECT round(extract(epoch FROM a.finished_at - a.created_at), 2) AS training_time_seconds
    FROM babylon_rl.training_attempts a
    WHERE a.snapshot_id = c.snapshot_id AND a.parent_id = c.parent_id AND a.state = 'done' LIMIT 1
) j ON true
ORDER BY w.created_at DESC, w.window_id DESC
"""

SELF_HOSTED_TRAINING_STATUS = """
CREATE VIEW babylon_rl.self_hosted_training_status AS
SELECT w.window_id,
       coalesce(r.agents_scored, 0) AS agents_scored,
       r.avg_score,
       d.dataset_id,
       d.num_examples,
       j.training_id,
       j.status AS training_status,
       j.checkpoint_path,
       w.created_at,
       j.completed_at
FROM babylon_rl.training_windows w
LEFT JOIN (
    SELECT s.window_id, count(DISTINCT s.agent_id) AS agents_scored, avg(s.score) AS avg_score
    FROM babylon_rl.ruler_scores s GROUP BY s.window_id
) r ON r.window_id = w.window_id
LEFT JOIN babylon_rl.training_datasets d ON d.window_id = w.window_id
LEFT JOIN babylon_rl.training_jobs j ON j.window_id = w.window_id
ORDER BY w.created_at DESC, w.window_id DESC
"""

MODEL_PERFORMANCE = """
CREATE VIEW babylon_rl.model_performance AS
SELECT d.model_version, d.environment, d.endpoint_url, d.health_status,
       c.metrics,
       j.training_time_seconds,
       d.deployed_at,
       extract(epoch FROM now() - (d.deployed_at AT TIME ZONE 'UTC')) / 3600 AS hours_deployed
FROM babylon_rl.model_deployments d
JOIN babylon_rl.checkpoints c ON c.checkpoint_id = d.model_version
LEFT JOIN LATERAL (
    SELECT round(extract(epoch FROM a.finished_at - a.created_at), 2) AS training_time_seconds
    FROM babylon_rl.training_attempts a
    WHERE a.snapshot_id = c.snapshot_id AND a.parent_id = c.parent_id AND a.state = 'done' LIMIT 1
) j ON true
WHERE d.undeployed_at IS NULL
ORDER BY d.deployed_at DESC
"""

# In the order in which they build on each other.
VIEWS = {
    "trained_windows": TRAINED_WINDOWS,
    "training_windows": TRAINING_WINDOWS,
    "ruler_scores": RULER_SCORES,
    "training_datasets": TRAINING_DATASETS,
    "training_jobs": TRAINING_JOBS,
    "model_deployments": MODEL_DEPLOYMENTS,
    "training_pipeline_status": TRAINING_PIPELINE_STATUS,
    "self_hosted_training_status": SELF_HOSTED_TRAINING_STATUS,
    "model_performance": MODEL_PERFORMANCE,
}


def upgrade() -> None:
    _rename("training_jobs", "training_attempts")
    for statement in VIEWS.values():
        op.execute(statement)


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW babylon_rl.{name}")
    _rename("training_attempts", "training_jobs")


def _rename(before: str, after: str) -> None:
    """The table, and its constraints, which are named after it; a newer server has one for each NOT NULL too."""
    op.rename_table(before, after, schema="babylon_rl")
    found = op.get_bind().scalars(
        sa.text("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:name)"),
        {"name": f"babylon_rl.{after}"},
    )
    for name in found.all():
        renamed = name.replace(before, after)
        if renamed != name:
            op.execute(f'ALTER TABLE babylon_rl.{after} RENAME CONSTRAINT "{name}" TO "{renamed}"')
