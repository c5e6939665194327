"""First schema: calls, the assets with their history, models."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The colon is escaped for SQLAlchemy, to which ":00" is a bind parameter.
WHOLE_HOUR = r"window_id ~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])\:00$'"


def upgrade() -> None:
    op.create_table(
        "art_groups",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column(
            "group",
            postgresql.JSONB(none_as_null=True),
            nullable=False,
            comment="the trained view: groups.trained_view.Group as JSON",
        ),
        sa.Column("group_digest", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False, comment="trainable | too_few_members | no_spread | not_ready"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("members", sa.Integer(), nullable=False),
        sa.Column(
            "left_out",
            postgresql.JSONB(none_as_null=True),
            nullable=False,
            comment="list of {trajectory_id, agent_id, reason}",
        ),
        sa.Column("scorer", sa.Text(), nullable=False),
        sa.Column("reward_mean", sa.Double(), nullable=True),
        sa.Column("reward_spread", sa.Double(), nullable=True, comment="largest minus smallest reward"),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_art_groups_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_art_groups")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_art_groups_current",
        "art_groups",
        ["window_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "checkpoint_evaluations",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False, comment="checkpoint, or name of a fixed policy"),
        sa.Column("split", sa.Text(), nullable=False, comment="validation | test | unseen"),
        sa.Column("design", sa.Text(), nullable=False, comment="paired-by-window"),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.Column(
            "effect", sa.Double(), nullable=False, comment="mean P&L of the candidate minus the baseline's, dollars"
        ),
        sa.Column("low", sa.Double(), nullable=False, comment="95 % interval"),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("candidate_pnl", sa.Double(), nullable=False, comment="dollars an agent and window"),
        sa.Column("baseline_pnl", sa.Double(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False, comment="promote | keep | info"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_checkpoint_evaluations_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_checkpoint_evaluations")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_checkpoint_evaluations_current",
        "checkpoint_evaluations",
        ["window_id", "candidate", "baseline", "split"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "market_outcomes",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("instrument", sa.Text(), nullable=False, comment="ticker, or id of a prediction market"),
        sa.Column("kind", sa.Text(), nullable=False, comment="ticker | question"),
        sa.Column("question", sa.Text(), nullable=True),
        sa.Column("open", sa.Double(), nullable=True, comment="price; for a question the probability of YES"),
        sa.Column("close", sa.Double(), nullable=True),
        sa.Column(
            "change", sa.Double(), nullable=True, comment="close / open - 1 for a ticker, close - open for a question"
        ),
        sa.Column("outcome", sa.Text(), nullable=True, comment="up | down | flat, or YES | NO; null while unknown"),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_market_outcomes_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_market_outcomes")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_market_outcomes_current",
        "market_outcomes",
        ["window_id", "instrument"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "recorded_calls",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("step_number", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False, comment="name under which the endpoint was asked"),
        sa.Column("checkpoint", sa.Text(), nullable=False, comment="checkpoint that answered"),
        sa.Column("prompt_token_ids", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("token_ids", postgresql.ARRAY(sa.Integer()), nullable=False, comment="sampled tokens"),
        sa.Column(
            "logprobs", postgresql.ARRAY(sa.Double()), nullable=False, comment="of the distribution really sampled from"
        ),
        sa.Column(
            "choices",
            postgresql.ARRAY(sa.Text()),
            nullable=True,
            comment="the answers that constrained decoding allowed",
        ),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("top_p", sa.Double(), nullable=False),
        sa.Column("exploration", sa.Double(), nullable=False, comment="share of uniform choice mixed into the policy"),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("call_id", name=op.f("pk_recorded_calls")),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_recorded_calls_checkpoint"), "recorded_calls", ["checkpoint"], unique=False, schema="babylon_rl"
    )
    op.create_index(
        op.f("ix_recorded_calls_trajectory_id"), "recorded_calls", ["trajectory_id"], unique=False, schema="babylon_rl"
    )
    op.create_table(
        "rejected_trajectories",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=True),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_rejected_trajectories_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_rejected_trajectories")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_rejected_trajectories_current",
        "rejected_trajectories",
        ["window_id", "trajectory_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "scored_trajectories",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("scorer", sa.Text(), nullable=False),
        sa.Column("scorer_version", sa.Text(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=False),
        sa.Column("parts", postgresql.JSONB(none_as_null=True), nullable=False, comment="what the reward is made of"),
        sa.Column("features", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False, comment="1 is the window's best"),
        sa.Column("reason", sa.Text(), nullable=False, comment="one line that a person reads"),
        sa.Column("provenance", sa.Text(), nullable=False, comment="logged | no_logprobs | no_text"),
        sa.Column("checkpoint", sa.Text(), nullable=True, comment="behaviour policy"),
        sa.Column("window_revision", sa.Text(), nullable=False),
        sa.Column("outcome_revision", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_scored_trajectories_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_scored_trajectories")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_scored_trajectories_current",
        "scored_trajectories",
        ["window_id", "trajectory_id", "scorer"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.Text(), nullable=False, comment="SHA-256 of the content"),
        sa.Column("training_run", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False, comment="canonical JSON: the trained views, settings and seed"),
        sa.Column("window_ids", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
        schema="babylon_rl",
    )
    op.create_table(
        "trained_checkpoints",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("training_run", sa.Text(), nullable=True),
        sa.Column("updated", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=True, comment="the state after this hour"),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("snapshot_id", sa.Text(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("groups_trained", sa.Integer(), nullable=False),
        sa.Column("groups_left_out", sa.Integer(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_trained_checkpoints_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_trained_checkpoints")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_trained_checkpoints_current",
        "trained_checkpoints",
        ["window_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "training_runs",
        sa.Column("training_run", sa.Text(), nullable=False, comment="name of the model that is trained"),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column(
            "settings",
            postgresql.JSONB(none_as_null=True),
            nullable=False,
            comment="training settings; what a snapshot's id covers",
        ),
        sa.Column(
            "schedule",
            postgresql.JSONB(none_as_null=True),
            nullable=False,
            comment="how the demo lays out its windows; empty otherwise",
        ),
        sa.Column("first_window", sa.Text(), nullable=False),
        sa.Column("last_window", sa.Text(), nullable=True, comment="null while the run has no end"),
        sa.Column("state", sa.Text(), nullable=False, comment="running | finished"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("training_run", name=op.f("pk_training_runs")),
        schema="babylon_rl",
    )
    op.create_table(
        "windows",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False, comment="open | waiting | ready | too_few_agents | empty"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("recorded", sa.Integer(), nullable=False),
        sa.Column("usable", sa.Integer(), nullable=False),
        sa.Column("rejected", sa.Integer(), nullable=False),
        sa.Column(
            "evaluation", sa.Integer(), nullable=False, comment="rows recorded for an evaluation, not for training"
        ),
        sa.Column("pnl_mean", sa.Double(), nullable=True),
        sa.Column("pnl_std", sa.Double(), nullable=True),
        sa.Column("pnl_min", sa.Double(), nullable=True),
        sa.Column("pnl_max", sa.Double(), nullable=True),
        sa.Column("revision", sa.Text(), nullable=False, comment="digest of the finished trajectories in the window"),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_windows_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_windows")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_windows_current",
        "windows",
        ["window_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("training_run", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("snapshot_id", sa.Text(), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=True, comment="folder of the adapter; null for the base model itself"),
        sa.Column("weights_sha256", sa.Text(), nullable=True),
        sa.Column("last_window", sa.Text(), nullable=True, comment="latest window trained on"),
        sa.Column("metrics", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="ready | candidate | deleted"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_checkpoints_parent_id")
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["babylon_rl.snapshots.snapshot_id"], name=op.f("fk_checkpoints_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_checkpoints")),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_checkpoints_training_run"), "checkpoints", ["training_run"], unique=False, schema="babylon_rl"
    )
    op.create_table(
        "promotions",
        sa.Column("promotion_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("training_run", sa.Text(), nullable=False),
        sa.Column("from_checkpoint", sa.Text(), nullable=True),
        sa.Column("to_checkpoint", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["to_checkpoint"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_promotions_to_checkpoint")
        ),
        sa.PrimaryKeyConstraint("promotion_id", name=op.f("pk_promotions")),
        sa.UniqueConstraint("training_run", "to_checkpoint", name=op.f("uq_promotions_training_run_to_checkpoint")),
        schema="babylon_rl",
    )
    op.create_table(
        "training_jobs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("settings_digest", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("remote_job_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step_before", sa.Integer(), nullable=False),
        sa.Column("step_after", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('submitted', 'done', 'failed', 'in_doubt')", name=op.f("ck_training_jobs_state")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_training_jobs_parent_id")
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["babylon_rl.snapshots.snapshot_id"], name=op.f("fk_training_jobs_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_training_jobs")),
        sa.UniqueConstraint(
            "snapshot_id",
            "parent_id",
            "settings_digest",
            name=op.f("uq_training_jobs_snapshot_id_parent_id_settings_digest"),
        ),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_table("training_jobs", schema="babylon_rl")
    op.drop_table("promotions", schema="babylon_rl")
    op.drop_table("checkpoints", schema="babylon_rl")
    op.drop_table("windows", schema="babylon_rl")
    op.drop_table("training_runs", schema="babylon_rl")
    op.drop_table("trained_checkpoints", schema="babylon_rl")
    op.drop_table("snapshots", schema="babylon_rl")
    op.drop_table("scored_trajectories", schema="babylon_rl")
    op.drop_table("rejected_trajectories", schema="babylon_rl")
    op.drop_table("recorded_calls", schema="babylon_rl")
    op.drop_table("market_outcomes", schema="babylon_rl")
    op.drop_table("checkpoint_evaluations", schema="babylon_rl")
    op.drop_table("art_groups", schema="babylon_rl")
