"""The gateway's keys and recordings, what was served, experiments, and evaluations by market, replay and online."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

Json = postgresql.JSONB(none_as_null=True)
Time = sa.DateTime(timezone=True)
NOW = sa.text("now()")
OURS = "babylon_rl"
# The colon is escaped for SQLAlchemy, to which ":00" is a bind parameter.
WHOLE_HOUR = r"window_id ~ '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])\:00$'"


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("deployment_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False, comment="address of the gateway"),
        sa.Column("role", sa.Text(), nullable=False, comment="promoted | candidate"),
        sa.Column("checkpoint_id", sa.Text(), comment="null: nothing in this role from then on"),
        sa.Column("upstream", sa.Text()),
        sa.Column("model", sa.Text(), comment="its name there"),
        sa.Column("state", sa.Text(), nullable=False, comment="served | refused | withdrawn"),
        sa.Column("reason", sa.Text(), nullable=False, comment="one line that a person reads"),
        sa.Column("attestation", Json, comment="what the comparison with the trainer's log-probabilities came to"),
        sa.Column("at", Time, server_default=NOW, nullable=False),
        sa.CheckConstraint("role IN ('promoted', 'candidate')", name=op.f("ck_deployments_role")),
        sa.CheckConstraint("state IN ('served', 'refused', 'withdrawn')", name=op.f("ck_deployments_state")),
        sa.PrimaryKeyConstraint("deployment_id", name=op.f("pk_deployments")),
        schema=OURS,
    )
    op.create_table(
        "gateway_calls",
        sa.Column("call_id", sa.Text(), nullable=False, comment="of key and request id, so that a call is kept once"),
        sa.Column("request_id", sa.Text(), nullable=False, comment="the caller's, or the gateway's own"),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False, comment="the hour in which it was asked, or is played"),
        sa.Column("trajectory_id", sa.Text()),
        sa.Column("step_number", sa.Integer()),
        sa.Column("arm", sa.Text(), nullable=False, comment="promoted | candidate | base | pinned"),
        sa.Column("experiment_id", sa.Text()),
        sa.Column("checkpoint_id", sa.Text(), nullable=False, comment="what answered"),
        sa.Column("upstream", sa.Text(), nullable=False, comment="base URL that was asked"),
        sa.Column("model", sa.Text(), nullable=False, comment="its name there"),
        sa.Column("request", sa.Text(), nullable=False, comment="body as it came, to the letter"),
        sa.Column(
            "response",
            sa.Text(),
            nullable=False,
            comment="body as it was answered, to the letter; of a stream its events",
        ),
        sa.Column("status", sa.Integer(), nullable=False, comment="HTTP status of the answer"),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("prompt_token_ids", postgresql.ARRAY(sa.Integer())),
        sa.Column("token_ids", postgresql.ARRAY(sa.Integer()), comment="sampled; null where the upstream did not say"),
        sa.Column("logprobs", postgresql.ARRAY(sa.Double()), comment="one a sampled token, natural logarithm"),
        sa.Column(
            "sampling", Json, nullable=False, comment="temperature, top_p, max_tokens, seed, choices, exploration"
        ),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("asked_at", Time, nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False, comment="until the last byte, as the caller met it"),
        sa.Column("first_byte_ms", sa.Double()),
        sa.Column("upstream_ms", sa.Double(), comment="of it, spent in the upstream"),
        sa.Column("written_at", Time, server_default=NOW, nullable=False),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_gateway_calls_whole_hour")),
        sa.PrimaryKeyConstraint("call_id", name=op.f("pk_gateway_calls")),
        schema=OURS,
    )
    op.create_index(
        op.f("ix_gateway_calls_experiment_id"), "gateway_calls", ["experiment_id"], unique=False, schema=OURS
    )
    op.create_index(
        op.f("ix_gateway_calls_trajectory_id"), "gateway_calls", ["trajectory_id"], unique=False, schema=OURS
    )
    op.create_index(op.f("ix_gateway_calls_window_id"), "gateway_calls", ["window_id"], unique=False, schema=OURS)
    op.create_table(
        "gateway_keys",
        sa.Column("key_id", sa.Text(), nullable=False, comment="the public part of a key, which logs may name"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False, comment="of the whole key; the key is kept nowhere"),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False, comment="call | record | pin | metrics"),
        sa.Column("agent_id", sa.Text(), comment="the only agent that it may speak for; null: any"),
        sa.Column("requests_per_minute", sa.Integer(), comment="null: no limit"),
        sa.Column("tokens_per_minute", sa.Integer()),
        sa.Column("in_flight", sa.Integer(), comment="calls open at a time"),
        sa.Column("replaces", sa.Text(), comment="the key it was rotated from"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("expires_at", Time),
        sa.Column("revoked_at", Time),
        sa.ForeignKeyConstraint(
            ["replaces"], ["babylon_rl.gateway_keys.key_id"], name=op.f("fk_gateway_keys_replaces")
        ),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_gateway_keys")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_gateway_keys_secret_sha256")),
        schema=OURS,
    )
    op.create_table(
        "gateway_steps",
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("step_number", sa.Integer(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False, comment="the step as it was sent, JSON"),
        sa.Column("written_at", Time, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("trajectory_id", "step_number", name=op.f("pk_gateway_steps")),
        schema=OURS,
    )
    op.create_table(
        "gateway_trajectories",
        sa.Column("trajectory_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="open | ended | abandoned | refused"),
        sa.Column("started", Json, nullable=False, comment="what was said at its start"),
        sa.Column("ended", Json, comment="what was said at its end, or why it was abandoned or refused"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("closed_at", Time),
        sa.CheckConstraint(
            "state IN ('open', 'ended', 'abandoned', 'refused')", name=op.f("ck_gateway_trajectories_state")
        ),
        sa.PrimaryKeyConstraint("trajectory_id", name=op.f("pk_gateway_trajectories")),
        schema=OURS,
    )
    op.create_table(
        "market_evaluations",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False, comment="checkpoint, or name of a fixed policy"),
        sa.Column(
            "effect", sa.Double(), comment="candidate less baseline; null where there is no window to compare in"
        ),
        sa.Column("low", sa.Double(), comment="95 % interval"),
        sa.Column("high", sa.Double()),
        sa.Column("candidate_value", sa.Double()),
        sa.Column("baseline_value", sa.Double()),
        sa.Column("windows", sa.Integer(), nullable=False, comment="of the simulated market, made of the seed"),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("valid", sa.Double(), comment="share of the candidate's answers that are legal actions"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("superseded_at", Time),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_market_evaluations_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_market_evaluations")),
        schema=OURS,
    )
    op.create_index(
        "uq_market_evaluations_current",
        "market_evaluations",
        ["window_id", "candidate", "baseline"],
        unique=True,
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "online_evaluations",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False, comment="what answered, as recorded"),
        sa.Column("agents", sa.Integer(), nullable=False),
        sa.Column("decisions", sa.Integer(), nullable=False),
        sa.Column("pnl_mean", sa.Double(), comment="dollars an agent"),
        sa.Column("reward_mean", sa.Double(), comment="reward of the window's scorer"),
        sa.Column("valid", sa.Double(), comment="share of decisions that are legal actions"),
        sa.Column("drawdown", sa.Double(), comment="worst loss from an agent's peak, as a share of its capital"),
        sa.Column("latency_p95_ms", sa.Double()),
        sa.Column("experiment_id", sa.Text(), comment="the experiment that ran in the window"),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("superseded_at", Time),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_online_evaluations_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_online_evaluations")),
        schema=OURS,
    )
    op.create_index(
        "uq_online_evaluations_current",
        "online_evaluations",
        ["window_id", "checkpoint_id"],
        unique=True,
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "recording_gaps",
        sa.Column("gap_id", sa.Text(), nullable=False),
        sa.Column("since", Time, nullable=False),
        sa.Column("until", Time, nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False, comment="answered calls that no record is kept of"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("written_at", Time, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("gap_id", name=op.f("pk_recording_gaps")),
        schema=OURS,
    )
    op.create_table(
        "replay_evaluations",
        sa.Column("row_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("window_id", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False, comment="checkpoint, or name of a fixed policy"),
        sa.Column(
            "effect", sa.Double(), comment="candidate less baseline; null where there is no window to compare in"
        ),
        sa.Column("low", sa.Double(), comment="95 % interval"),
        sa.Column("high", sa.Double()),
        sa.Column("candidate_value", sa.Double()),
        sa.Column("baseline_value", sa.Double()),
        sa.Column("decisions", sa.Integer(), nullable=False, comment="recorded prompts that the policy answered again"),
        sa.Column("unvalued", sa.Integer(), nullable=False, comment="prompts whose answers have no known value"),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 over the window's rows as written"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("superseded_at", Time),
        sa.CheckConstraint(WHOLE_HOUR, name=op.f("ck_replay_evaluations_whole_hour")),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_replay_evaluations")),
        schema=OURS,
    )
    op.create_index(
        "uq_replay_evaluations_current",
        "replay_evaluations",
        ["window_id", "candidate", "baseline"],
        unique=True,
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "canaries",
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("canary_set", sa.Text(), nullable=False, comment="digest of the prompts"),
        sa.Column("precision", sa.Text(), nullable=False, comment="float32 | bfloat16"),
        sa.Column(
            "logprobs", Json, nullable=False, comment="by prompt: the likeliest next tokens and their log-probabilities"
        ),
        sa.Column("made_by", sa.Text(), nullable=False, comment="trainer | afterwards: from the stored weights"),
        sa.Column("weights_sha256", sa.Text(), comment="of what was asked; null for the base model itself"),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_canaries_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "canary_set", "precision", name=op.f("pk_canaries")),
        schema=OURS,
    )
    op.create_table(
        "experiments",
        sa.Column("experiment_id", sa.Text(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("design", sa.Text(), nullable=False, comment="paired-by-window | switchback"),
        sa.Column(
            "share", sa.Double(), nullable=False, comment="of agents, or of blocks, that the candidate answers; 0 to 1"
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("first_window", sa.Text(), nullable=False),
        sa.Column("horizon", sa.Integer(), nullable=False, comment="windows after which it ends without evidence"),
        sa.Column(
            "settings",
            Json,
            nullable=False,
            comment="metric, alpha, block, burn-in, guardrails: fixed before the start",
        ),
        sa.Column(
            "forecast", Json, nullable=False, comment="hours needed for an effect, as it was told before the start"
        ),
        sa.Column(
            "tried", sa.Integer(), nullable=False, comment="candidates tried against this baseline, this one included"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="running | promote | keep | harm | stopped"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("created_at", Time, server_default=NOW, nullable=False),
        sa.Column("ended_at", Time),
        sa.CheckConstraint("design IN ('paired-by-window', 'switchback')", name=op.f("ck_experiments_design")),
        sa.CheckConstraint(
            "state IN ('running', 'promote', 'keep', 'harm', 'stopped')", name=op.f("ck_experiments_state")
        ),
        sa.CheckConstraint("share > 0 AND share < 1", name=op.f("ck_experiments_share")),
        sa.ForeignKeyConstraint(
            ["baseline"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_experiments_baseline")
        ),
        sa.ForeignKeyConstraint(
            ["candidate"], ["babylon_rl.checkpoints.checkpoint_id"], name=op.f("fk_experiments_candidate")
        ),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_experiments")),
        schema=OURS,
    )
    op.create_index(
        "uq_experiments_running",
        "experiments",
        [sa.literal_column("(true)")],
        unique=True,
        schema=OURS,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "experiment_looks",
        sa.Column("look_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Text(), nullable=False),
        sa.Column("last_window", sa.Text(), nullable=False, comment="latest window that it saw"),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.Column("blocks", sa.Integer(), nullable=False, comment="observations: means of blocks of windows"),
        sa.Column(
            "effect", sa.Double(), comment="candidate less baseline, in the experiment's metric; null before two blocks"
        ),
        sa.Column("low", sa.Double(), comment="of the confidence sequence"),
        sa.Column("high", sa.Double()),
        sa.Column("sample_ratio_p", sa.Double(), comment="always-valid p-value of the planned share"),
        sa.Column("guardrails", Json, nullable=False),
        sa.Column("decision", sa.Text(), nullable=False, comment="go on | promote | keep | harm"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="of what it saw; the same look is kept once"),
        sa.Column("looked_at", Time, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["babylon_rl.experiments.experiment_id"], name=op.f("fk_experiment_looks_experiment_id")
        ),
        sa.PrimaryKeyConstraint("look_id", name=op.f("pk_experiment_looks")),
        sa.UniqueConstraint("experiment_id", "digest", name=op.f("uq_experiment_looks_experiment_id_digest")),
        schema=OURS,
    )
    op.create_index(
        op.f("ix_experiment_looks_experiment_id"), "experiment_looks", ["experiment_id"], unique=False, schema=OURS
    )
    op.add_column(
        "promotions",
        sa.Column(
            "kind",
            sa.Text(),
            server_default="promotion",
            nullable=False,
            comment="promotion | rollback: back to an earlier one",
        ),
        schema=OURS,
    )
    op.add_column(
        "promotions", sa.Column("experiment_id", sa.Text(), comment="the experiment that decided it"), schema=OURS
    )
    op.create_check_constraint(
        op.f("ck_promotions_kind"), "promotions", "kind IN ('promotion', 'rollback')", schema=OURS
    )
    op.add_column(
        "training_attempts",
        sa.Column("window_id", sa.Text(), comment="window that ended its update, under which its checkpoint is booked"),
        schema=OURS,
    )


def downgrade() -> None:
    op.drop_column("training_attempts", "window_id", schema=OURS)
    op.drop_constraint(op.f("ck_promotions_kind"), "promotions", schema=OURS)
    op.drop_column("promotions", "experiment_id", schema=OURS)
    op.drop_column("promotions", "kind", schema=OURS)
    op.drop_index(op.f("ix_experiment_looks_experiment_id"), table_name="experiment_looks", schema=OURS)
    op.drop_table("experiment_looks", schema=OURS)
    op.drop_index(
        "uq_experiments_running", table_name="experiments", schema=OURS, postgresql_where=sa.text("state = 'running'")
    )
    op.drop_table("experiments", schema=OURS)
    op.drop_table("canaries", schema=OURS)
    op.drop_index(
        "uq_replay_evaluations_current",
        table_name="replay_evaluations",
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("replay_evaluations", schema=OURS)
    op.drop_table("recording_gaps", schema=OURS)
    op.drop_index(
        "uq_online_evaluations_current",
        table_name="online_evaluations",
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("online_evaluations", schema=OURS)
    op.drop_index(
        "uq_market_evaluations_current",
        table_name="market_evaluations",
        schema=OURS,
        postgresql_where=sa.text("superseded_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("market_evaluations", schema=OURS)
    op.drop_table("gateway_trajectories", schema=OURS)
    op.drop_table("gateway_steps", schema=OURS)
    op.drop_table("gateway_keys", schema=OURS)
    op.drop_index(op.f("ix_gateway_calls_window_id"), table_name="gateway_calls", schema=OURS)
    op.drop_index(op.f("ix_gateway_calls_trajectory_id"), table_name="gateway_calls", schema=OURS)
    op.drop_index(op.f("ix_gateway_calls_experiment_id"), table_name="gateway_calls", schema=OURS)
    op.drop_table("gateway_calls", schema=OURS)
    op.drop_table("deployments", schema=OURS)
