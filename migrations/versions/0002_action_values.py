"""The reward of every legal answer, beside the reward of the one that was given."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "scored_trajectories",
        sa.Column(
            "action_values",
            postgresql.JSONB(none_as_null=True),
            nullable=True,
            comment="reward of every legal answer of the decision, by its text",
        ),
        schema="babylon_rl",
    )


def downgrade() -> None:
    op.drop_column("scored_trajectories", "action_values", schema="babylon_rl")
