"""Buckets of recordings by the table that they are in: the application's, or ours for what may not be written there."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = "pk_recorded_buckets"
COLUMNS = ["named", "window_id", "started"]


def upgrade() -> None:
    op.add_column(
        "recorded_buckets",
        sa.Column(
            "origin",
            sa.Text(),
            server_default="application",
            nullable=False,
            comment="application | ours: whose table the rows are in",
        ),
        schema="babylon_rl",
    )
    op.drop_constraint(KEY, "recorded_buckets", schema="babylon_rl", type_="primary")
    op.create_primary_key(KEY, "recorded_buckets", ["origin", *COLUMNS], schema="babylon_rl")
    for column in ("agentId", "windowId"):
        op.drop_index(f"ix_trajectories_{column}", "trajectories", schema="babylon_rl")
    op.create_index("ix_trajectories_windowId_agentId", "trajectories", ["windowId", "agentId"], schema="babylon_rl")
    op.create_index("ix_trajectories_agentId_startTime", "trajectories", ["agentId", "startTime"], schema="babylon_rl")


def downgrade() -> None:
    for pair in ("agentId_startTime", "windowId_agentId"):
        op.drop_index(f"ix_trajectories_{pair}", "trajectories", schema="babylon_rl")
    for column in ("agentId", "windowId"):
        op.create_index(f"ix_trajectories_{column}", "trajectories", [column], schema="babylon_rl")
    op.execute("DELETE FROM babylon_rl.recorded_buckets WHERE origin = 'ours'")
    op.drop_constraint(KEY, "recorded_buckets", schema="babylon_rl", type_="primary")
    op.drop_column("recorded_buckets", "origin", schema="babylon_rl")
    op.create_primary_key(KEY, "recorded_buckets", COLUMNS, schema="babylon_rl")
