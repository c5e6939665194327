"""What is known of rejected rows and of what can be trained on; recordings that live in our schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Moment = postgresql.TIMESTAMP(precision=3)
Json = postgresql.JSONB(none_as_null=True)

NEW = (
    (
        "windows",
        sa.Column(
            "trainable",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="usable runs whose text can be trained on",
        ),
    ),
    ("windows", sa.Column("reasons", Json, server_default="{}", nullable=False, comment="rejected rows by reason")),
    (
        "windows",
        sa.Column(
            "not_trainable",
            Json,
            server_default="{}",
            nullable=False,
            comment="usable rows that are not trainable, by reason",
        ),
    ),
    (
        "windows",
        sa.Column(
            "misnamed",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="rows whose windowId names something else",
        ),
    ),
    (
        "rejected_trajectories",
        sa.Column(
            "refused_for",
            sa.Text(),
            server_default="scoring",
            nullable=False,
            comment="scoring: of no use; training: it is scored and cannot be trained on",
        ),
    ),
    (
        "rejected_trajectories",
        sa.Column("ended_in", sa.Text(), nullable=True, comment="hour in which it ended, where no window is its own"),
    ),
)


def upgrade() -> None:
    for table, column in NEW:
        op.add_column(table, column, schema="babylon_rl")
    # Evaluation runs are rejected rows with that reason, once a window is materialized again.
    op.execute("UPDATE babylon_rl.windows SET recorded = recorded - evaluation")
    op.drop_column("windows", "evaluation", schema="babylon_rl")
    op.alter_column(
        "windows", "usable", comment="rows that can be scored", existing_type=sa.Integer(), schema="babylon_rl"
    )
    _trajectories()
    _llm_call_logs()


def _trajectories() -> None:
    op.create_table(
        "trajectories",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trajectoryId", sa.Text(), nullable=False),
        sa.Column("agentId", sa.Text(), nullable=False),
        sa.Column("startTime", Moment, nullable=False),
        sa.Column("endTime", Moment, nullable=False),
        sa.Column("durationMs", sa.Integer(), nullable=False),
        sa.Column("windowId", sa.String(50), nullable=True),
        sa.Column("windowHours", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("episodeId", sa.String(100), nullable=True),
        sa.Column("scenarioId", sa.String(100), nullable=True),
        sa.Column("batchId", sa.String(100), nullable=True),
        sa.Column("stepsJson", sa.Text(), nullable=False),
        sa.Column("rewardComponentsJson", sa.Text(), nullable=False),
        sa.Column("metricsJson", sa.Text(), nullable=False),
        sa.Column("metadataJson", sa.Text(), nullable=False),
        sa.Column("totalReward", sa.Double(), nullable=False),
        sa.Column("episodeLength", sa.Integer(), nullable=False),
        sa.Column("finalStatus", sa.Text(), nullable=False),
        sa.Column("finalBalance", sa.Double(), nullable=True),
        sa.Column("finalPnL", sa.Double(), nullable=True),
        sa.Column("tradesExecuted", sa.Integer(), nullable=True),
        sa.Column("postsCreated", sa.Integer(), nullable=True),
        sa.Column("aiJudgeReward", sa.Double(), nullable=True),
        sa.Column("aiJudgeReasoning", sa.Text(), nullable=True),
        sa.Column("judgedAt", Moment, nullable=True),
        sa.Column("isTrainingData", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("isEvaluation", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("usedInTraining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("trainedInBatch", sa.Text(), nullable=True),
        sa.Column("createdAt", Moment, server_default=sa.text("CURRENT_TIMESTAMP"), nullable=False),
        sa.Column("updatedAt", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trajectories")),
        sa.UniqueConstraint("trajectoryId", name=op.f("uq_trajectories_trajectoryId")),
        schema="babylon_rl",
    )
    op.create_index(op.f("ix_trajectories_agentId"), "trajectories", ["agentId"], schema="babylon_rl")
    op.create_index(op.f("ix_trajectories_windowId"), "trajectories", ["windowId"], schema="babylon_rl")


def _llm_call_logs() -> None:
    op.create_table(
        "llm_call_logs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("trajectoryId", sa.Text(), nullable=False),
        sa.Column("stepId", sa.Text(), nullable=False),
        sa.Column("callId", sa.Text(), nullable=False),
        sa.Column("timestamp", Moment, nullable=False),
        sa.Column("latencyMs", sa.Integer(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("actionType", sa.Text(), nullable=True),
        sa.Column("systemPrompt", sa.Text(), nullable=False),
        sa.Column("userPrompt", sa.Text(), nullable=False),
        sa.Column("messagesJson", sa.Text(), nullable=True),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("reasoning", sa.Text(), nullable=True),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("maxTokens", sa.Integer(), nullable=False),
        sa.Column("topP", sa.Double(), nullable=True),
        sa.Column("promptTokens", sa.Integer(), nullable=True),
        sa.Column("completionTokens", sa.Integer(), nullable=True),
        sa.Column("totalTokens", sa.Integer(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("createdAt", Moment, server_default=sa.text("CURRENT_TIMESTAMP"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_call_logs")),
        sa.UniqueConstraint("callId", name=op.f("uq_llm_call_logs_callId")),
        schema="babylon_rl",
    )
    op.create_index(op.f("ix_llm_call_logs_trajectoryId"), "llm_call_logs", ["trajectoryId"], schema="babylon_rl")


def downgrade() -> None:
    op.drop_table("llm_call_logs", schema="babylon_rl")
    op.drop_table("trajectories", schema="babylon_rl")
    op.alter_column("windows", "usable", comment=None, existing_type=sa.Integer(), schema="babylon_rl")
    op.add_column(
        "windows",
        sa.Column(
            "evaluation",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="rows recorded for an evaluation, not for training",
        ),
        schema="babylon_rl",
    )
    op.alter_column("windows", "evaluation", server_default=None, schema="babylon_rl")
    for table, column in reversed(NEW):
        op.drop_column(table, column.name, schema="babylon_rl")
