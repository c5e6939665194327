"""What scores are made of, what judges answered and how far they are trusted, and how groups were made."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

WHOLE_HOUR = r"window_id ~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])\:00$'"
Json = postgresql.JSONB(none_as_null=True)
Time = sa.DateTime(timezone=True)

SCORED, GROUPS = "scored_trajectories", "art_groups"
STATUSES = "trainable | too_few_members | no_spread | not_ready"


def _columns() -> list[tuple[str, sa.Column]]:
    return [
        (
            GROUPS,
            sa.Column(
                "agent_share",
                sa.Double(),
                nullable=True,
                comment="share of the rewards' variance by agent identity, over earlier windows too",
            ),
        ),
        (
            GROUPS,
            sa.Column("baselines", Json, nullable=True, comment="what was taken off for who the agent is, by agent"),
        ),
        (
            GROUPS,
            sa.Column(
                "alarms",
                Json,
                nullable=True,
                comment="figures of the window that reached a limit: {kind, value, limit, detail}",
            ),
        ),
        (GROUPS, sa.Column("settings", Json, nullable=True, comment="settings that the group was made with")),
        (
            GROUPS,
            sa.Column(
                "judge_verdict",
                sa.Text(),
                nullable=True,
                comment="of judge_calibration; set_aside: rewards are those of alpha",
            ),
        ),
        (
            SCORED,
            sa.Column("scorer_settings", Json, nullable=True, comment="what its numbers depend on beside the runs"),
        ),
        (
            SCORED,
            sa.Column(
                "decision_rewards",
                Json,
                nullable=True,
                comment="reward of each decision by its step; null where it is the whole run's",
            ),
        ),
        (
            SCORED,
            sa.Column(
                "counterfactuals",
                Json,
                nullable=True,
                comment="rewards of what was not done: flat, hold, best in hindsight",
            ),
        ),
        (
            SCORED,
            sa.Column(
                "process_score",
                sa.Double(),
                nullable=True,
                comment="judge, 0..1, shown only what was knowable at the decision",
            ),
        ),
        (
            SCORED,
            sa.Column("outcome_score", sa.Double(), nullable=True, comment="alpha, computed from what was earned"),
        ),
        (
            SCORED,
            sa.Column(
                "hindsight_score", sa.Double(), nullable=True, comment="judge, 0..1, shown what the market then did"
            ),
        ),
        (SCORED, sa.Column("judge", Json, nullable=True, comment="what the judge was asked and answered")),
        (SCORED, sa.Column("injection_signs", Json, nullable=True, comment="signs that the agent wrote to its judge")),
    ]


def upgrade() -> None:
    op.create_table(
        "judge_answers",
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 of everything that went into the question"),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False, comment="process | hindsight"),
        sa.Column("answer", sa.Text(), nullable=False, comment="as the judge wrote it, once it could be read"),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("answered_at", Time, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_judge_answers_whole_hour")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_judge_answers")),
        schema="babylon_rl",
    )
    op.create_index(
        op.f("ix_judge_answers_window_id"), "judge_answers", ["window_id"], unique=False, schema="babylon_rl"
    )
    op.create_table(
        "judge_calibration",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column(
            "judge", sa.Text(), nullable=True, comment="model and digest of how it was asked; null where none judged"
        ),
        sa.Column("verdict", sa.Text(), nullable=False, comment="no_judge | unproven | trusted | set_aside"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False, comment="judged runs of this window"),
        sa.Column(
            "windows", sa.Integer(), nullable=False, comment="judged windows that the verdict rests on, up to this one"
        ),
        sa.Column(
            "agreement", sa.Double(), nullable=True, comment="mean rank correlation with alpha over those windows"
        ),
        sa.Column("agreement_low", sa.Double(), nullable=True, comment="95 % interval"),
        sa.Column("agreement_high", sa.Double(), nullable=True),
        sa.Column("repeat", sa.Double(), nullable=True, comment="mean rank correlation of the judge with itself"),
        sa.Column("repeat_low", sa.Double(), nullable=True),
        sa.Column("repeat_high", sa.Double(), nullable=True),
        sa.Column(
            "order_bias", sa.Double(), nullable=True, comment="mean rank correlation of score and place in the prompt"
        ),
        sa.Column("order_low", sa.Double(), nullable=True),
        sa.Column("order_high", sa.Double(), nullable=True),
        sa.Column(
            "length_bias",
            sa.Double(),
            nullable=True,
            comment="mean rank correlation of score and length of the run's text",
        ),
        sa.Column("length_low", sa.Double(), nullable=True),
        sa.Column("length_high", sa.Double(), nullable=True),
        sa.Column(
            "noise", sa.Double(), nullable=True, comment="standard deviation of a score from one repeat to the next"
        ),
        sa.Column("statistics", Json, nullable=True, comment="of this window alone"),
        sa.Column("scores_digest", sa.Text(), nullable=True, comment="digest of the window's scored_trajectories"),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", Time, server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", Time, nullable=True),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_judge_calibration_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_judge_calibration")),
        schema="babylon_rl",
    )
    op.create_index(
        "uq_judge_calibration_current",
        "judge_calibration",
        ["window_id"],
        unique=True,
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    for table, column in _columns():
        op.add_column(table, column, schema="babylon_rl")
    _say_statuses(f"{STATUSES} | agent_bias", STATUSES)


def _say_statuses(comment: str, before: str) -> None:
    op.alter_column(
        GROUPS,
        "status",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment=comment,
        existing_comment=before,
        schema="babylon_rl",
    )


def downgrade() -> None:
    _say_statuses(STATUSES, f"{STATUSES} | agent_bias")
    for table, column in reversed(_columns()):
        op.drop_column(table, column.name, schema="babylon_rl")
    op.drop_index(
        "uq_judge_calibration_current",
        table_name="judge_calibration",
        schema="babylon_rl",
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("judge_calibration", schema="babylon_rl")
    op.drop_index(op.f("ix_judge_answers_window_id"), table_name="judge_answers", schema="babylon_rl")
    op.drop_table("judge_answers", schema="babylon_rl")
