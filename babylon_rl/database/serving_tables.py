"""Tables of serving: keys, calls and trajectories that the gateway took, what was served, experiments."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.metadata import SCHEMA, WHOLE_HOUR, Json, Real, Time, metadata, now

gateway_keys = sa.Table(
    "gateway_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True, comment="the public part of a key, which logs may name"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column(
        "secret_sha256", sa.Text, nullable=False, unique=True, comment="of the whole key; the key is kept nowhere"
    ),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False, comment="call | record | pin | metrics"),
    sa.Column("agent_id", sa.Text, comment="the only agent that it may speak for; null: any"),
    sa.Column("requests_per_minute", sa.Integer, comment="null: no limit"),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("in_flight", sa.Integer, comment="calls open at a time"),
    sa.Column(
        "replaces", sa.Text, sa.ForeignKey(f"{SCHEMA}.gateway_keys.key_id"), comment="the key it was rotated from"
    ),
    now("created_at"),
    sa.Column("expires_at", Time),
    sa.Column("revoked_at", Time),
)

gateway_calls = sa.Table(
    "gateway_calls",
    metadata,
    sa.Column("call_id", sa.Text, primary_key=True, comment="of key and request id, so that a call is kept once"),
    sa.Column("request_id", sa.Text, nullable=False, comment="the caller's, or the gateway's own"),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("window_id", sa.Text, nullable=False, index=True, comment="the hour in which it was asked, or is played"),
    sa.Column("trajectory_id", sa.Text, index=True),
    sa.Column("step_number", sa.Integer),
    sa.Column("arm", sa.Text, nullable=False, comment="promoted | candidate | base | pinned"),
    sa.Column("experiment_id", sa.Text, index=True),
    sa.Column("checkpoint_id", sa.Text, nullable=False, comment="what answered"),
    sa.Column("upstream", sa.Text, nullable=False, comment="base URL that was asked"),
    sa.Column("model", sa.Text, nullable=False, comment="its name there"),
    sa.Column("request", sa.Text, nullable=False, comment="body as it came, to the letter"),
    sa.Column(
        "response", sa.Text, nullable=False, comment="body as it was answered, to the letter; of a stream its events"
    ),
    sa.Column("status", sa.Integer, nullable=False, comment="HTTP status of the answer"),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("prompt_token_ids", ARRAY(sa.Integer)),
    sa.Column("token_ids", ARRAY(sa.Integer), comment="sampled; null where the upstream did not say"),
    sa.Column("logprobs", ARRAY(Real), comment="one a sampled token, natural logarithm"),
    sa.Column("sampling", Json, nullable=False, comment="temperature, top_p, max_tokens, seed, choices, exploration"),
    sa.Column("finish_reason", sa.Text),
    sa.Column("asked_at", Time, nullable=False),
    sa.Column("latency_ms", Real, nullable=False, comment="until the last byte, as the caller met it"),
    sa.Column("first_byte_ms", Real),
    sa.Column("upstream_ms", Real, comment="of it, spent in the upstream"),
    now("written_at"),
    sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
)

recording_gaps = sa.Table(
    "recording_gaps",
    metadata,
    sa.Column("gap_id", sa.Text, primary_key=True),
    sa.Column("since", Time, nullable=False),
    sa.Column("until", Time, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False, comment="answered calls that no record is kept of"),
    sa.Column("reason", sa.Text, nullable=False),
    now("written_at"),
)

gateway_trajectories = sa.Table(
    "gateway_trajectories",
    metadata,
    sa.Column("trajectory_id", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, comment="open | ended | abandoned | refused"),
    sa.Column("started", Json, nullable=False, comment="what was said at its start"),
    sa.Column("ended", Json, comment="what was said at its end, or why it was abandoned or refused"),
    now("created_at"),
    sa.Column("closed_at", Time),
    sa.CheckConstraint("state IN ('open', 'ended', 'abandoned', 'refused')", name="state"),
)

gateway_steps = sa.Table(
    "gateway_steps",
    metadata,
    sa.Column("trajectory_id", sa.Text, primary_key=True),
    sa.Column("step_number", sa.Integer, primary_key=True),
    sa.Column("content", sa.Text, nullable=False, comment="the step as it was sent, JSON"),
    now("written_at"),
)

# What really answered, beside `promotions`, which says what was decided.
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("deployment_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("gateway", sa.Text, nullable=False, comment="address of the gateway"),
    sa.Column("role", sa.Text, nullable=False, comment="promoted | candidate"),
    sa.Column("checkpoint_id", sa.Text, comment="null: nothing in this role from then on"),
    sa.Column("upstream", sa.Text),
    sa.Column("model", sa.Text, comment="its name there"),
    sa.Column("state", sa.Text, nullable=False, comment="served | refused | withdrawn"),
    sa.Column("reason", sa.Text, nullable=False, comment="one line that a person reads"),
    sa.Column("attestation", Json, comment="what the comparison with the trainer's log-probabilities came to"),
    now("at"),
    sa.CheckConstraint("role IN ('promoted', 'candidate')", name="role"),
    sa.CheckConstraint("state IN ('served', 'refused', 'withdrawn')", name="state"),
)

canaries = sa.Table(
    "canaries",
    metadata,
    sa.Column("checkpoint_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), primary_key=True),
    sa.Column("canary_set", sa.Text, primary_key=True, comment="digest of the prompts"),
    sa.Column("precision", sa.Text, primary_key=True, comment="float32 | bfloat16"),
    sa.Column(
        "logprobs", Json, nullable=False, comment="by prompt: the likeliest next tokens and their log-probabilities"
    ),
    sa.Column("made_by", sa.Text, nullable=False, comment="trainer | afterwards: from the stored weights"),
    sa.Column("weights_sha256", sa.Text, comment="of what was asked; null for the base model itself"),
    now("created_at"),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("experiment_id", sa.Text, primary_key=True),
    sa.Column("candidate", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), nullable=False),
    sa.Column("baseline", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), nullable=False),
    sa.Column("design", sa.Text, nullable=False, comment="paired-by-window | switchback"),
    sa.Column("share", Real, nullable=False, comment="of agents, or of blocks, that the candidate answers; 0 to 1"),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("first_window", sa.Text, nullable=False),
    sa.Column("horizon", sa.Integer, nullable=False, comment="windows after which it ends without evidence"),
    sa.Column(
        "settings", Json, nullable=False, comment="metric, alpha, block, burn-in, guardrails: fixed before the start"
    ),
    sa.Column("forecast", Json, nullable=False, comment="hours needed for an effect, as it was told before the start"),
    sa.Column("tried", sa.Integer, nullable=False, comment="candidates tried against this baseline, this one included"),
    sa.Column("state", sa.Text, nullable=False, comment="running | promote | keep | harm | stopped"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    now("created_at"),
    sa.Column("ended_at", Time),
    sa.CheckConstraint("design IN ('paired-by-window', 'switchback')", name="design"),
    sa.CheckConstraint("state IN ('running', 'promote', 'keep', 'harm', 'stopped')", name="state"),
    sa.CheckConstraint("share > 0 AND share < 1", name="share"),
    # Two at once would each be a part of the other's market.
    sa.Index("uq_experiments_running", sa.text("(true)"), unique=True, postgresql_where=sa.text("state = 'running'")),
)

experiment_looks = sa.Table(
    "experiment_looks",
    metadata,
    sa.Column("look_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column(
        "experiment_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.experiments.experiment_id"), nullable=False, index=True
    ),
    sa.Column("last_window", sa.Text, nullable=False, comment="latest window that it saw"),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("blocks", sa.Integer, nullable=False, comment="observations: means of blocks of windows"),
    sa.Column("effect", Real, comment="candidate less baseline, in the experiment's metric; null before two blocks"),
    sa.Column("low", Real, comment="of the confidence sequence"),
    sa.Column("high", Real),
    sa.Column("sample_ratio_p", Real, comment="always-valid p-value of the planned share"),
    sa.Column("guardrails", Json, nullable=False),
    sa.Column("decision", sa.Text, nullable=False, comment="go on | promote | keep | harm"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, comment="of what it saw; the same look is kept once"),
    now("looked_at"),
    sa.UniqueConstraint("experiment_id", "digest"),
)
