"""What sensors know of windows, failures of single windows, and what rows were computed from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHOLE_HOUR = r"window_id ~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])\:00$'"

PROMOTED_ONCE = "uq_promotions_training_run_to_checkpoint"


def _now(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    _columns()
    _sensors()
    _failures()
    # Going back to a checkpoint is one more row. That a demo does not promote twice is `training.runs.promote`'s part.
    op.drop_constraint(PROMOTED_ONCE, "promotions", schema="babylon_rl", type_="unique")


def _columns() -> None:
    op.add_column(
        "art_groups",
        sa.Column(
            "window_revision", sa.Text(), nullable=True, comment="revision of the window that the group was built from"
        ),
        schema="babylon_rl",
    )
    op.add_column(
        "art_groups",
        sa.Column(
            "scores_digest",
            sa.Text(),
            nullable=True,
            comment="digest of the window's scored_trajectories; null where there are none",
        ),
        schema="babylon_rl",
    )
    op.add_column(
        "trained_checkpoints",
        sa.Column(
            "group_digests",
            postgresql.JSONB(none_as_null=True),
            nullable=True,
            comment="of a batch: group_digest of each window that was looked at, or null",
        ),
        schema="babylon_rl",
    )


def _sensors() -> None:
    op.create_table(
        "recorded_buckets",
        sa.Column("named", sa.Text(), nullable=False, comment="the rows' windowId as written; empty where it is null"),
        sa.Column("window_id", sa.Text(), nullable=False, comment="the hour in which the rows ended"),
        sa.Column(
            "started",
            sa.Text(),
            nullable=False,
            comment="the hour in which rows without a windowId started; else empty",
        ),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="changes whenever a row is written; see readiness"),
        sa.Column(
            "calls",
            sa.Text(),
            nullable=True,
            comment="the same of the rows' recorded calls; null where they were not looked at",
        ),
        _now("seen_at"),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_recorded_buckets_whole_hour")),
        sa.PrimaryKeyConstraint("named", "window_id", "started", name=op.f("pk_recorded_buckets")),
        schema="babylon_rl",
    )
    op.create_index("ix_recorded_buckets_window_id", "recorded_buckets", ["window_id"], schema="babylon_rl")
    op.create_table(
        "window_requests",
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column(
            "revision", sa.Text(), nullable=False, comment="of what is recorded in the window; see windows.revision"
        ),
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, comment="one line that a person reads"),
        sa.Column("run_key", sa.Text(), nullable=True, comment="of the latest request"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="requests of this revision"),
        sa.Column(
            "look_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when time may change the state; null: only what is recorded does",
        ),
        _now("changed_at"),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_window_requests_whole_hour")),
        sa.CheckConstraint(
            "state IN ('changed', 'waiting', 'requested', 'materialized', 'failed')",
            name=op.f("ck_window_requests_state"),
        ),
        sa.PrimaryKeyConstraint("window_id", name=op.f("pk_window_requests")),
        schema="babylon_rl",
    )
    op.create_index(
        "ix_window_requests_unsettled",
        "window_requests",
        ["window_id"],
        schema="babylon_rl",
        postgresql_where=sa.text("state <> 'materialized'"),
    )


def _failures() -> None:
    op.create_table(
        "window_failures",
        sa.Column("failure_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False, comment="type of the error"),
        sa.Column("detail", sa.Text(), nullable=False, comment="its message"),
        _now("failed_at"),
        sa.Column(
            "resolved_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the asset's window was computed without an error",
        ),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_window_failures_whole_hour")),
        sa.PrimaryKeyConstraint("failure_id", name=op.f("pk_window_failures")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_window_failures_open",
        "window_failures",
        ["asset", "window_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("resolved_at IS NULL"),
    )


def downgrade() -> None:
    op.execute(
        """DELETE FROM babylon_rl.promotions earlier USING babylon_rl.promotions later
           WHERE earlier.training_run = later.training_run AND earlier.to_checkpoint = later.to_checkpoint
             AND earlier.promotion_id < later.promotion_id"""
    )
    op.create_unique_constraint(PROMOTED_ONCE, "promotions", ["training_run", "to_checkpoint"], schema="babylon_rl")
    for table in ("window_failures", "window_requests", "recorded_buckets"):
        op.drop_table(table, schema="babylon_rl")
    op.drop_column("trained_checkpoints", "group_digests", schema="babylon_rl")
    op.drop_column("art_groups", "scores_digest", schema="babylon_rl")
    op.drop_column("art_groups", "window_revision", schema="babylon_rl")
