"""Alarms of training: what a batch looked like, and what was done about it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "training_alarms",
        sa.Column("alarm_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("training_run", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False, comment="last window of the update whose batch raised it"),
        sa.Column("checkpoint_id", sa.Text(), nullable=False, comment="checkpoint that played the batch"),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="one_sided | all_hold | malformed | overtrading | no_spread"
        ),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("limit_value", sa.Double(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("back_to", sa.Text(), nullable=True, comment="state after it"),
        sa.Column("exploration", sa.Double(), nullable=False, comment="of the round after it"),
        sa.Column("detail", sa.Text(), nullable=False, comment="the value as a person reads it"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("response IN ('explore', 'step_back', 'stop')", name=op.f("ck_training_alarms_response")),
        sa.ForeignKeyConstraint(
            ["back_to"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_training_alarms_back_to")
        ),
        sa.PrimaryKeyConstraint("alarm_id", name=op.f("pk_training_alarms")),
        sa.UniqueConstraint(
            "training_run", "window_id", "kind", name=op.f("uq_training_alarms_training_run_window_id_kind")
        ),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_table("training_alarms", schema="babylon_rl")
