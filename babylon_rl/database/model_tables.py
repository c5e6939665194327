"""Tables of models: training runs, snapshots, the ledger of training jobs, checkpoints, promotions."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.metadata import SCHEMA, Json, Real, Time, metadata, now

training_runs = sa.Table(
    "training_runs",
    metadata,
    sa.Column("training_run", sa.Text, primary_key=True, comment="name of the model that is trained"),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("settings", Json, nullable=False, comment="training settings; what a snapshot's id covers"),
    sa.Column("schedule", Json, nullable=False, comment="how the demo lays out its windows; empty otherwise"),
    sa.Column("first_window", sa.Text, nullable=False),
    sa.Column("last_window", sa.Text, comment="null while the run has no end"),
    sa.Column("state", sa.Text, nullable=False, comment="running | finished"),
    sa.Column(
        "backend",
        sa.Text,
        nullable=False,
        server_default="torch",
        comment="where its updates are made: TRAINING_BACKEND",
    ),
    now("created_at"),
)

# Immutable: a trigger refuses to change a row of these three. Deleting a snapshot deletes its parts.
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("snapshot_id", sa.Text, primary_key=True, comment="SHA-256 of the content"),
    sa.Column("training_run", sa.Text, nullable=False),
    sa.Column(
        "content",
        sa.Text,
        nullable=False,
        comment="canonical JSON: settings, seed, and the digest of each group; in format 1 the groups themselves",
    ),
    sa.Column("window_ids", ARRAY(sa.Text), nullable=False),
    sa.Column("made_from", Json, comment="what `snapshot rebuild` starts from; no part of the id"),
    sa.Column("code_version", sa.Text, comment="version that made it; no part of the id"),
    now("created_at"),
)

snapshot_groups = sa.Table(
    "snapshot_groups",
    metadata,
    sa.Column(
        "snapshot_id",
        sa.Text,
        sa.ForeignKey(f"{SCHEMA}.snapshots.snapshot_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("place", sa.Integer, primary_key=True, comment="from 0, by window"),
    sa.Column("window_id", sa.Text, nullable=False, index=True),
    sa.Column(
        "content", sa.Text, nullable=False, comment="canonical JSON of the trained view, final advantages included"
    ),
    sa.Column("content_sha256", sa.Text, nullable=False),
    sa.Column("group_digest", sa.Text, comment="of the row of art_groups that it was made from"),
    sa.Column("scores_digest", sa.Text, comment="of the window's scored_trajectories"),
    sa.Column("window_revision", sa.Text),
    sa.Column("outcome_revision", sa.Text),
)

snapshot_members = sa.Table(
    "snapshot_members",
    metadata,
    sa.Column(
        "snapshot_id",
        sa.Text,
        sa.ForeignKey(f"{SCHEMA}.snapshots.snapshot_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("window_id", sa.Text, primary_key=True),
    sa.Column("trajectory_id", sa.Text, primary_key=True, index=True),
    sa.Column("agent_id", sa.Text, nullable=False, index=True),
    sa.Column("label", sa.Text, comment="on_policy | stale(k) | foreign_model | no_logprobs; null where nobody asked"),
    sa.Column("loss", sa.Text, nullable=False, comment="importance_weighted | weighted_supervised"),
    sa.Column("reward", Real, nullable=False),
    sa.Column("advantage", Real, nullable=False),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("checkpoint_id", sa.Text, primary_key=True),
    sa.Column("training_run", sa.Text, nullable=False, index=True),
    sa.Column("parent_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id")),
    sa.Column("snapshot_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.snapshots.snapshot_id")),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, comment="folder or fsspec URL of the adapter; null for the base model and hosted ones"),
    sa.Column("weights_sha256", sa.Text, comment="null where a service keeps the weights"),
    sa.Column("last_window", sa.Text, comment="latest window trained on"),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("state", sa.Text, nullable=False, comment="ready | candidate | deleted"),
    sa.Column("backend", sa.Text, comment="where it was made; null for the base model itself"),
    sa.Column("base_sha256", sa.Text, comment="of the base model's weights"),
    sa.Column("tokenizer_sha256", sa.Text, comment="of tokenizer and chat template"),
    sa.Column("inference_url", sa.Text, comment="OpenAI-compatible base URL that serves it; null: `babylon-rl serve`"),
    sa.Column("inference_name", sa.Text, comment="name of this very step there"),
    sa.Column("code_version", sa.Text, comment="version that trained it"),
    sa.Column("deleted_at", Time, comment="when its weights were deleted; the row stays"),
    now("created_at"),
)

# The ledger: at most one job per snapshot, parent and settings. A trigger allows the moves of `training_attempt_moves`
# and no others, and books each in `training_attempt_log`.
training_attempts = sa.Table(
    "training_attempts",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True, comment="SHA-256 of parent, snapshot and settings"),
    sa.Column("snapshot_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.snapshots.snapshot_id"), nullable=False),
    sa.Column("parent_id", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), nullable=False),
    sa.Column("settings_digest", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column(
        "remote_model", sa.Text, comment="the model there that it writes: URL, entity, project, name; null: local"
    ),
    sa.Column("remote_model_id", sa.Text, comment="the service's id of that model"),
    sa.Column("remote_job_id", sa.Text),
    sa.Column("cursor", sa.Text, comment="last event of the remote job that was read"),
    sa.Column("deadline", Time, comment="when waiting for the remote job ends"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("submissions", sa.Integer, nullable=False, server_default="0", comment="times it left for a service"),
    sa.Column("step_before", sa.Integer, nullable=False, comment="of the remote model, or of the parent"),
    sa.Column("step_after", sa.Integer),
    sa.Column("window_id", sa.Text, comment="window that ended its update, under which its checkpoint is booked"),
    sa.Column("metrics", Json, comment="of the remote job, as far as its events were read"),
    sa.Column("error", sa.Text, comment="what went wrong, or what is not known"),
    sa.Column("actor", sa.Text, comment="who made the latest move"),
    now("created_at"),
    sa.Column("finished_at", Time),
    sa.UniqueConstraint("snapshot_id", "parent_id", "settings_digest"),
    sa.CheckConstraint(
        "state IN ('written', 'submitting', 'running', 'done', 'failed', 'cancelled', 'in_doubt')", name="state"
    ),
    # One writer per remote model: a step that advances can be one job's only.
    sa.Index(
        "uq_training_attempts_writer",
        "remote_model",
        unique=True,
        postgresql_where=sa.text("remote_model IS NOT NULL AND state IN ('submitting', 'running', 'in_doubt')"),
    ),
)

training_attempt_moves = sa.Table(
    "training_attempt_moves",
    metadata,
    sa.Column("before", sa.Text, primary_key=True),
    sa.Column("after", sa.Text, primary_key=True),
)

training_attempt_log = sa.Table(
    "training_attempt_log",
    metadata,
    sa.Column("move_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
    sa.Column("before", sa.Text, comment="null: it was written down"),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("remote_job_id", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("detail", sa.Text),
    now("at"),
)

training_alarms = sa.Table(
    "training_alarms",
    metadata,
    sa.Column("alarm_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("training_run", sa.Text, nullable=False),
    sa.Column("window_id", sa.Text, nullable=False, comment="last window of the update whose batch raised it"),
    sa.Column("checkpoint_id", sa.Text, nullable=False, comment="checkpoint that played the batch"),
    sa.Column("kind", sa.Text, nullable=False, comment="one_sided | all_hold | malformed | overtrading | no_spread"),
    sa.Column("value", Real, nullable=False),
    sa.Column("limit_value", Real, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("back_to", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), comment="state after it"),
    sa.Column("exploration", Real, nullable=False, comment="of the round after it"),
    sa.Column("detail", sa.Text, nullable=False, comment="the value as a person reads it"),
    now("created_at"),
    sa.UniqueConstraint("training_run", "window_id", "kind"),
    sa.CheckConstraint("response IN ('explore', 'step_back', 'stop')", name="response"),
)

promotions = sa.Table(
    "promotions",
    metadata,
    sa.Column("promotion_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("training_run", sa.Text, nullable=False),
    sa.Column("from_checkpoint", sa.Text),
    sa.Column("to_checkpoint", sa.Text, sa.ForeignKey(f"{SCHEMA}.checkpoints.checkpoint_id"), nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("evidence", Json, nullable=False),
    sa.Column(
        "kind",
        sa.Text,
        nullable=False,
        server_default="promotion",
        comment="promotion | rollback: back to an earlier one",
    ),
    sa.Column("experiment_id", sa.Text, comment="the experiment that decided it"),
    now("promoted_at"),
    sa.CheckConstraint("kind IN ('promotion', 'rollback')", name="kind"),
)
