"""What every checkpoint was made of, and a ledger of training jobs whose moves the database enforces."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

Json = postgresql.JSONB(none_as_null=True)
Time = sa.DateTime(timezone=True)
OURS = "babylon_rl"

STATES = "'written', 'submitting', 'running', 'done', 'failed', 'cancelled', 'in_doubt'"
STATES_BEFORE = "'submitted', 'done', 'failed', 'in_doubt'"

# From a state to those that it may become. What is done stays done.
MOVES = {
    "written": ("submitting", "running", "failed", "cancelled"),
    "submitting": ("written", "running", "done", "failed", "in_doubt"),
    "running": ("done", "failed", "cancelled", "in_doubt"),
    "in_doubt": ("done", "failed"),
    "failed": ("written",),
    "cancelled": ("written",),
}

CHECK_MOVE = """
CREATE FUNCTION babylon_rl.check_training_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'written' THEN
            RAISE EXCEPTION 'training job % begins as %, and not as written', NEW.job_id, NEW.state
                USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.state IS DISTINCT FROM OLD.state AND NOT EXISTS (
        SELECT 1 FROM babylon_rl.training_attempt_moves m WHERE m.before = OLD.state AND m.after = NEW.state
    ) THEN
        RAISE EXCEPTION 'training job % cannot go from % to %', NEW.job_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state THEN
        INSERT INTO babylon_rl.training_attempt_log (job_id, before, after, remote_job_id, actor, detail)
        VALUES (NEW.job_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state, NEW.remote_job_id, NEW.actor,
                NEW.error);
    END IF;
    RETURN NEW;
END $$
"""

IMMUTABLE = """
CREATE FUNCTION babylon_rl.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % is immutable', TG_TABLE_NAME, OLD.snapshot_id USING ERRCODE = 'check_violation';
END $$
"""

# The first system's view of jobs, whose words for the states are fewer.
TRAINING_JOBS = """
CREATE OR REPLACE VIEW babylon_rl.training_jobs AS
SELECT ('x' || left(md5(a.job_id || taken.window_id), 15))::bit(60)::bigint AS id,
       (a.job_id || ':' || taken.window_id)::varchar AS training_id,
       taken.window_id::varchar AS window_id,
       g.group_digest::varchar AS dataset_id,
       before.base_model::varchar AS base_model,
       w.agents AS num_agents,
       g.members AS num_examples,
       __STATUS__::varchar AS status,
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
STATUS = """CASE a.state WHEN 'done' THEN 'completed' WHEN 'failed' THEN 'failed' WHEN 'cancelled' THEN 'failed'
            WHEN 'written' THEN 'pending' ELSE 'training' END"""
STATUS_BEFORE = "CASE a.state WHEN 'done' THEN 'completed' WHEN 'failed' THEN 'failed' ELSE 'training' END"

ATTEMPTS = [
    sa.Column(
        "remote_model",
        sa.Text(),
        comment="the model there that it writes: URL, entity, project, name; null: local",
    ),
    sa.Column("remote_model_id", sa.Text(), comment="the service's id of that model"),
    sa.Column("cursor", sa.Text(), comment="last event of the remote job that was read"),
    sa.Column("deadline", Time, comment="when waiting for the remote job ends"),
    sa.Column("submissions", sa.Integer(), server_default="0", nullable=False, comment="times it left for a service"),
    sa.Column("metrics", Json, comment="of the remote job, as far as its events were read"),
    sa.Column("actor", sa.Text(), comment="who made the latest move"),
]

CHECKPOINTS = [
    sa.Column("backend", sa.Text(), comment="where it was made; null for the base model itself"),
    sa.Column("base_sha256", sa.Text(), comment="of the base model's weights"),
    sa.Column("tokenizer_sha256", sa.Text(), comment="of tokenizer and chat template"),
    sa.Column(
        "inference_url", sa.Text(), comment="OpenAI-compatible base URL that serves it; null: `babylon-rl serve`"
    ),
    sa.Column("inference_name", sa.Text(), comment="name of this very step there"),
    sa.Column("code_version", sa.Text(), comment="version that trained it"),
    sa.Column("deleted_at", Time, comment="when its weights were deleted; the row stays"),
]

SNAPSHOTS = [
    sa.Column("made_from", Json, comment="what `snapshot rebuild` starts from; no part of the id"),
    sa.Column("code_version", sa.Text(), comment="version that made it; no part of the id"),
]

COMMENTS = [
    (
        "snapshots",
        "content",
        "canonical JSON: settings, seed, and the digest of each group; in format 1 the groups themselves",
        "canonical JSON: the trained views, settings and seed",
    ),
    (
        "checkpoints",
        "path",
        "folder or fsspec URL of the adapter; null for the base model and hosted ones",
        "folder of the adapter; null for the base model itself",
    ),
    ("checkpoints", "weights_sha256", "null where a service keeps the weights", None),
    ("training_attempts", "job_id", "SHA-256 of parent, snapshot and settings", None),
    ("training_attempts", "error", "what went wrong, or what is not known", None),
    ("training_attempts", "step_before", "of the remote model, or of the parent", None),
]


def upgrade() -> None:
    op.add_column(
        "training_runs",
        sa.Column(
            "backend",
            sa.Text(),
            server_default="torch",
            nullable=False,
            comment="where its updates are made: TRAINING_BACKEND",
        ),
        schema=OURS,
    )
    for table, columns in (("training_attempts", ATTEMPTS), ("checkpoints", CHECKPOINTS), ("snapshots", SNAPSHOTS)):
        for column in columns:
            op.add_column(table, column.copy(), schema=OURS)
    for table, column, comment, before in COMMENTS:
        op.alter_column(table, column, comment=comment, existing_comment=before, schema=OURS)
    _make_parts_of_snapshots()
    _make_ledger()
    op.execute(TRAINING_JOBS.replace("__STATUS__", STATUS))
    _refuse_changes()


def _make_parts_of_snapshots() -> None:
    op.create_table(
        "snapshot_groups",
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False, comment="from 0, by window"),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column(
            "content",
            sa.Text(),
            nullable=False,
            comment="canonical JSON of the trained view, final advantages included",
        ),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column("group_digest", sa.Text(), comment="of the row of art_groups that it was made from"),
        sa.Column("scores_digest", sa.Text(), comment="of the window's scored_trajectories"),
        sa.Column("window_revision", sa.Text()),
        sa.Column("outcome_revision", sa.Text()),
        sa.PrimaryKeyConstraint("snapshot_id", "place", name="pk_snapshot_groups"),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["babylon_rl.snapshots.snapshot_id"],
            name="fk_snapshot_groups_snapshot_id",
            ondelete="CASCADE",
        ),
        schema=OURS,
    )
    op.create_index("ix_snapshot_groups_window_id", "snapshot_groups", ["window_id"], schema=OURS)
    op.create_table(
        "snapshot_members",
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column(
            "label", sa.Text(), comment="on_policy | stale(k) | foreign_model | no_logprobs; null where nobody asked"
        ),
        sa.Column("loss", sa.Text(), nullable=False, comment="importance_weighted | weighted_supervised"),
        sa.Column("reward", sa.Double(), nullable=False),
        sa.Column("advantage", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id", "window_id", "trajectory_id", name="pk_snapshot_members"),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["babylon_rl.snapshots.snapshot_id"],
            name="fk_snapshot_members_snapshot_id",
            ondelete="CASCADE",
        ),
        schema=OURS,
    )
    op.create_index("ix_snapshot_members_trajectory_id", "snapshot_members", ["trajectory_id"], schema=OURS)
    op.create_index("ix_snapshot_members_agent_id", "snapshot_members", ["agent_id"], schema=OURS)


def _make_ledger() -> None:
    op.drop_constraint(op.f("ck_training_attempts_state"), "training_attempts", schema=OURS)
    # An attempt that was under way when the version changed is taken up by the next one.
    op.execute("UPDATE babylon_rl.training_attempts SET state = 'failed' WHERE state = 'submitted'")
    op.create_check_constraint(
        op.f("ck_training_attempts_state"), "training_attempts", f"state IN ({STATES})", schema=OURS
    )
    op.create_index(
        "uq_training_attempts_writer",
        "training_attempts",
        ["remote_model"],
        unique=True,
        schema=OURS,
        postgresql_where=sa.text("remote_model IS NOT NULL AND state IN ('submitting', 'running', 'in_doubt')"),
    )
    moves = op.create_table(
        "training_attempt_moves",
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("before", "after", name="pk_training_attempt_moves"),
        schema=OURS,
    )
    op.bulk_insert(moves, [{"before": before, "after": after} for before in MOVES for after in MOVES[before]])
    op.create_table(
        "training_attempt_log",
        sa.Column("move_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), comment="null: it was written down"),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("remote_job_id", sa.Text()),
        sa.Column("actor", sa.Text()),
        sa.Column("detail", sa.Text()),
        sa.Column("at", Time, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("move_id", name="pk_training_attempt_log"),
        schema=OURS,
    )
    op.create_index("ix_training_attempt_log_job_id", "training_attempt_log", ["job_id"], schema=OURS)
    op.execute(CHECK_MOVE)
    op.execute(
        "CREATE TRIGGER check_move BEFORE INSERT OR UPDATE ON babylon_rl.training_attempts "
        "FOR EACH ROW EXECUTE FUNCTION babylon_rl.check_training_move()"
    )


def _refuse_changes() -> None:
    op.execute(IMMUTABLE)
    for table in ("snapshots", "snapshot_groups", "snapshot_members"):
        op.execute(
            f"CREATE TRIGGER immutable BEFORE UPDATE ON babylon_rl.{table} "
            "FOR EACH ROW EXECUTE FUNCTION babylon_rl.refuse_change()"
        )


def downgrade() -> None:
    op.execute(TRAINING_JOBS.replace("__STATUS__", STATUS_BEFORE))
    for table in ("snapshots", "snapshot_groups", "snapshot_members"):
        op.execute(f"DROP TRIGGER immutable ON babylon_rl.{table}")
    op.execute("DROP FUNCTION babylon_rl.refuse_change()")
    op.execute("DROP TRIGGER check_move ON babylon_rl.training_attempts")
    op.execute("DROP FUNCTION babylon_rl.check_training_move()")
    for table in ("training_attempt_log", "training_attempt_moves", "snapshot_members", "snapshot_groups"):
        op.drop_table(table, schema=OURS)
    op.drop_index("uq_training_attempts_writer", "training_attempts", schema=OURS)
    op.drop_constraint(op.f("ck_training_attempts_state"), "training_attempts", schema=OURS)
    op.execute(
        "UPDATE babylon_rl.training_attempts SET state = 'failed' "
        "WHERE state IN ('written', 'submitting', 'running', 'cancelled')"
    )
    op.create_check_constraint(
        op.f("ck_training_attempts_state"), "training_attempts", f"state IN ({STATES_BEFORE})", schema=OURS
    )
    for table, column, comment, before in COMMENTS:
        op.alter_column(table, column, comment=before, existing_comment=comment, schema=OURS)
    for table, columns in (("snapshots", SNAPSHOTS), ("checkpoints", CHECKPOINTS), ("training_attempts", ATTEMPTS)):
        for column in reversed(columns):
            op.drop_column(table, column.name, schema=OURS)
    op.drop_column("training_runs", "backend", schema=OURS)
