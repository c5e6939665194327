"""Our own tables: schema `babylon_rl`, the source of the Alembic migrations.

Tables of assets keep their history: a row is current while `superseded_at` is null, and the rows of a
window are replaced together (`database.history`). Times are `timestamptz`. Those of models are in `model_tables`,
those of serving in `serving_tables`. The application's tables are in `application_tables.py`, in a MetaData of their
own that Alembic never sees.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database import application_tables, model_tables, serving_tables
from babylon_rl.database.metadata import SCHEMA, WHOLE_HOUR, Json, Real, Time, asset_table, metadata, now

__all__ = ["SCHEMA", "metadata", "model_tables", "serving_tables"]


# --- what agents did -------------------------------------------------------------------------------

recorded_calls = sa.Table(
    "recorded_calls",
    metadata,
    sa.Column("call_id", sa.Text, primary_key=True),
    sa.Column("trajectory_id", sa.Text, nullable=False, index=True),
    sa.Column("step_number", sa.Integer, nullable=False),
    sa.Column("model", sa.Text, nullable=False, comment="name under which the endpoint was asked"),
    sa.Column("checkpoint", sa.Text, nullable=False, index=True, comment="checkpoint that answered"),
    sa.Column("prompt_token_ids", ARRAY(sa.Integer), nullable=False),
    sa.Column("token_ids", ARRAY(sa.Integer), nullable=False, comment="sampled tokens"),
    sa.Column("logprobs", ARRAY(Real), nullable=False, comment="of the distribution really sampled from"),
    sa.Column("choices", ARRAY(sa.Text), comment="the answers that constrained decoding allowed"),
    sa.Column("temperature", Real, nullable=False),
    sa.Column("top_p", Real, nullable=False),
    sa.Column("exploration", Real, nullable=False, comment="share of uniform choice mixed into the policy"),
    sa.Column("seed", sa.BigInteger),
    sa.Column("finish_reason", sa.Text, nullable=False),
    now("recorded_at"),
)

# What is recorded or imported where the application's tables may not be written: their very columns.
trajectories, llm_call_logs = (
    sa.Table(
        table.name,
        metadata,
        *(
            sa.Column(
                column.name,
                column.type,
                primary_key=column.primary_key,
                nullable=column.nullable,
                unique=column.unique,
                index=column.name in indexed or None,
                server_default=column.server_default.arg if column.server_default is not None else None,
            )
            for column in table.columns
        ),
    )
    for table, indexed in (
        (application_tables.trajectories, set()),
        (application_tables.llm_call_logs, {"trajectoryId"}),
    )
)
# Those of the application's that readiness goes through.
sa.Index("ix_trajectories_windowId_agentId", trajectories.c.windowId, trajectories.c.agentId)
sa.Index("ix_trajectories_agentId_startTime", trajectories.c.agentId, trajectories.c.startTime)

# --- assets ----------------------------------------------------------------------------------------

windows = asset_table(
    "windows",
    (),
    sa.Column("status", sa.Text, nullable=False, comment="open | waiting | ready | too_few_agents | empty"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("agents", sa.Integer, nullable=False),
    sa.Column("recorded", sa.Integer, nullable=False),
    sa.Column("usable", sa.Integer, nullable=False, comment="rows that can be scored"),
    sa.Column("rejected", sa.Integer, nullable=False),
    sa.Column(
        "trainable", sa.Integer, nullable=False, server_default="0", comment="usable runs whose text can be trained on"
    ),
    sa.Column("reasons", Json, nullable=False, server_default="{}", comment="rejected rows by reason"),
    sa.Column(
        "not_trainable",
        Json,
        nullable=False,
        server_default="{}",
        comment="usable rows that are not trainable, by reason",
    ),
    sa.Column(
        "misnamed",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="rows whose windowId names something else",
    ),
    sa.Column("pnl_mean", Real),
    sa.Column("pnl_std", Real),
    sa.Column("pnl_min", Real),
    sa.Column("pnl_max", Real),
    sa.Column("revision", sa.Text, nullable=False, comment="digest of the finished trajectories in the window"),
)

rejected_trajectories = asset_table(
    "rejected_trajectories",
    ("trajectory_id",),
    sa.Column("trajectory_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column(
        "refused_for",
        sa.Text,
        nullable=False,
        server_default="scoring",
        comment="scoring: of no use; training: it is scored and cannot be trained on",
    ),
    sa.Column("ended_in", sa.Text, comment="hour in which it ended, where no window is its own"),
    window_required=False,
)

market_outcomes = asset_table(
    "market_outcomes",
    ("instrument",),
    sa.Column("instrument", sa.Text, nullable=False, comment="ticker, or id of a prediction market"),
    sa.Column("kind", sa.Text, nullable=False, comment="ticker | question"),
    sa.Column("question", sa.Text),
    sa.Column("open", Real, comment="price; for a question the probability of YES"),
    sa.Column("close", Real),
    sa.Column("change", Real, comment="close / open - 1 for a ticker, close - open for a question"),
    sa.Column("outcome", sa.Text, comment="up | down | flat, or YES | NO; null while unknown"),
    sa.Column("settled", sa.Boolean, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
)

scored_trajectories = asset_table(
    "scored_trajectories",
    ("trajectory_id", "scorer"),
    sa.Column("trajectory_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("scorer", sa.Text, nullable=False),
    sa.Column("scorer_version", sa.Text, nullable=False),
    sa.Column("scorer_settings", Json, comment="what its numbers depend on beside the runs"),
    sa.Column("reward", Real, nullable=False),
    sa.Column("parts", Json, nullable=False, comment="what the reward is made of"),
    sa.Column(
        "decision_rewards", Json, comment="reward of each decision by its step; null where it is the whole run's"
    ),
    sa.Column("counterfactuals", Json, comment="rewards of what was not done: flat, hold, best in hindsight"),
    sa.Column("process_score", Real, comment="judge, 0..1, shown only what was knowable at the decision"),
    sa.Column("outcome_score", Real, comment="alpha, computed from what was earned"),
    sa.Column("hindsight_score", Real, comment="judge, 0..1, shown what the market then did"),
    sa.Column("judge", Json, comment="what the judge was asked and answered"),
    sa.Column("injection_signs", Json, comment="signs that the agent wrote to its judge"),
    sa.Column("features", Json, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False, comment="1 is the window's best"),
    sa.Column("reason", sa.Text, nullable=False, comment="one line that a person reads"),
    sa.Column("provenance", sa.Text, nullable=False, comment="logged | no_logprobs | no_text"),
    sa.Column("checkpoint", sa.Text, comment="behaviour policy"),
    sa.Column("action_values", Json, comment="reward of every legal answer of the decision, by its text"),
    sa.Column("window_revision", sa.Text, nullable=False),
    sa.Column("outcome_revision", sa.Text, nullable=False),
)

judge_calibration = asset_table(
    "judge_calibration",
    (),
    sa.Column("judge", sa.Text, comment="model and digest of how it was asked; null where none judged"),
    sa.Column("verdict", sa.Text, nullable=False, comment="no_judge | unproven | trusted | set_aside"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("runs", sa.Integer, nullable=False, comment="judged runs of this window"),
    sa.Column(
        "windows", sa.Integer, nullable=False, comment="judged windows that the verdict rests on, up to this one"
    ),
    sa.Column("agreement", Real, comment="mean rank correlation with alpha over those windows"),
    sa.Column("agreement_low", Real, comment="95 % interval"),
    sa.Column("agreement_high", Real),
    sa.Column("repeat", Real, comment="mean rank correlation of the judge with itself"),
    sa.Column("repeat_low", Real),
    sa.Column("repeat_high", Real),
    sa.Column("order_bias", Real, comment="mean rank correlation of score and place in the prompt"),
    sa.Column("order_low", Real),
    sa.Column("order_high", Real),
    sa.Column("length_bias", Real, comment="mean rank correlation of score and length of the run's text"),
    sa.Column("length_low", Real),
    sa.Column("length_high", Real),
    sa.Column("noise", Real, comment="standard deviation of a score from one repeat to the next"),
    sa.Column("statistics", Json, comment="of this window alone"),
    sa.Column("scores_digest", sa.Text, comment="digest of the window's scored_trajectories"),
)

art_groups = asset_table(
    "art_groups",
    (),
    sa.Column("group", Json, nullable=False, comment="the trained view: groups.trained_view.Group as JSON"),
    sa.Column("group_digest", sa.Text, nullable=False),
    sa.Column(
        "status",
        sa.Text,
        nullable=False,
        comment="trainable | too_few_members | no_spread | not_ready | agent_bias",
    ),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("members", sa.Integer, nullable=False),
    sa.Column("left_out", Json, nullable=False, comment="list of {trajectory_id, agent_id, reason}"),
    sa.Column("scorer", sa.Text, nullable=False),
    sa.Column("reward_mean", Real),
    sa.Column("reward_spread", Real, comment="largest minus smallest reward"),
    sa.Column("window_revision", sa.Text, comment="revision of the window that the group was built from"),
    sa.Column(
        "scores_digest", sa.Text, comment="digest of the window's scored_trajectories; null where there are none"
    ),
    sa.Column(
        "agent_share", Real, comment="share of the rewards' variance by agent identity, over earlier windows too"
    ),
    sa.Column("baselines", Json, comment="what was taken off for who the agent is, by agent"),
    sa.Column("alarms", Json, comment="figures of the window that reached a limit: {kind, value, limit, detail}"),
    sa.Column("settings", Json, comment="settings that the group was made with"),
    sa.Column("judge_verdict", sa.Text, comment="of judge_calibration; set_aside: rewards are those of alpha"),
)

trained_checkpoints = asset_table(
    "trained_checkpoints",
    (),
    sa.Column("training_run", sa.Text),
    sa.Column("updated", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("checkpoint_id", sa.Text, comment="the state after this hour"),
    sa.Column("parent_id", sa.Text),
    sa.Column("snapshot_id", sa.Text),
    sa.Column("step", sa.Integer),
    sa.Column("groups_trained", sa.Integer, nullable=False),
    sa.Column("groups_left_out", sa.Integer, nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("group_digests", Json, comment="of a batch: group_digest of each window that was looked at, or null"),
)

checkpoint_evaluations = asset_table(
    "checkpoint_evaluations",
    ("candidate", "baseline", "split"),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("baseline", sa.Text, nullable=False, comment="checkpoint, or name of a fixed policy"),
    sa.Column("split", sa.Text, nullable=False, comment="validation | test | unseen"),
    sa.Column("design", sa.Text, nullable=False, comment="paired-by-window"),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("effect", Real, nullable=False, comment="mean P&L of the candidate minus the baseline's, dollars"),
    sa.Column("low", Real, nullable=False, comment="95 % interval"),
    sa.Column("high", Real, nullable=False),
    sa.Column("candidate_pnl", Real, nullable=False, comment="dollars an agent and window"),
    sa.Column("baseline_pnl", Real, nullable=False),
    sa.Column("decision", sa.Text, nullable=False, comment="promote | keep | info"),
    sa.Column("reason", sa.Text, nullable=False),
)

_EVALUATED = (
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("baseline", sa.Text, nullable=False, comment="checkpoint, or name of a fixed policy"),
    sa.Column("effect", Real, comment="candidate less baseline; null where there is no window to compare in"),
    sa.Column("low", Real, comment="95 % interval"),
    sa.Column("high", Real),
    sa.Column("candidate_value", Real),
    sa.Column("baseline_value", Real),
)


def _evaluated() -> list[sa.Column]:
    return [column.copy() for column in _EVALUATED]


market_evaluations = asset_table(
    "market_evaluations",
    ("candidate", "baseline"),
    *_evaluated(),
    sa.Column("windows", sa.Integer, nullable=False, comment="of the simulated market, made of the seed"),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("valid", Real, comment="share of the candidate's answers that are legal actions"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("made_from", sa.Text, nullable=False, comment="digest of weights, windows and seeds"),
)

replay_evaluations = asset_table(
    "replay_evaluations",
    ("candidate", "baseline"),
    *_evaluated(),
    sa.Column("decisions", sa.Integer, nullable=False, comment="recorded prompts that the policy answered again"),
    sa.Column("unvalued", sa.Integer, nullable=False, comment="prompts whose answers have no known value"),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("window_revision", sa.Text, nullable=False),
    sa.Column("outcome_revision", sa.Text, nullable=False),
    sa.Column("made_from", sa.Text, nullable=False, comment="digest of weights, revisions and seed"),
)

online_evaluations = asset_table(
    "online_evaluations",
    ("checkpoint_id",),
    sa.Column("checkpoint_id", sa.Text, nullable=False, comment="what answered, as recorded"),
    sa.Column("agents", sa.Integer, nullable=False),
    sa.Column("decisions", sa.Integer, nullable=False),
    sa.Column("pnl_mean", Real, comment="dollars an agent"),
    sa.Column("reward_mean", Real, comment="reward of the window's scorer"),
    sa.Column("valid", Real, comment="share of decisions that are legal actions"),
    sa.Column("drawdown", Real, comment="worst loss from an agent's peak, as a share of its capital"),
    sa.Column("latency_p95_ms", Real),
    sa.Column("experiment_id", sa.Text, comment="the experiment that ran in the window"),
    sa.Column("window_revision", sa.Text, nullable=False),
    sa.Column("scores_digest", sa.Text, comment="digest of the window's scored_trajectories"),
)

# --- what judges answered ---------------------------------------------------------------------------

judge_answers = sa.Table(
    "judge_answers",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True, comment="SHA-256 of everything that went into the question"),
    sa.Column("window_id", sa.Text, nullable=False, index=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("question", sa.Text, nullable=False, comment="process | hindsight"),
    sa.Column("answer", sa.Text, nullable=False, comment="as the judge wrote it, once it could be read"),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    now("answered_at"),
    sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
)

# --- what the sensors know -------------------------------------------------------------------------

recorded_buckets = sa.Table(
    "recorded_buckets",
    metadata,
    sa.Column(
        "origin",
        sa.Text,
        primary_key=True,
        server_default="application",
        comment="application | ours: whose table the rows are in",
    ),
    sa.Column("named", sa.Text, primary_key=True, comment="the rows' windowId as written; empty where it is null"),
    sa.Column("window_id", sa.Text, primary_key=True, index=True, comment="the hour in which the rows ended"),
    sa.Column(
        "started", sa.Text, primary_key=True, comment="the hour in which rows without a windowId started; else empty"
    ),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False, comment="changes whenever a row is written; see readiness"),
    sa.Column("calls", sa.Text, comment="the same of the rows' recorded calls; null where they were not looked at"),
    now("seen_at"),
    sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
)

window_requests = sa.Table(
    "window_requests",
    metadata,
    sa.Column("window_id", sa.Text, primary_key=True),
    sa.Column("revision", sa.Text, nullable=False, comment="of what is recorded in the window; see windows.revision"),
    sa.Column("agents", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, comment="one line that a person reads"),
    sa.Column("run_key", sa.Text, comment="of the latest request"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="requests of this revision"),
    sa.Column("look_at", Time, comment="when time may change the state; null: only what is recorded does"),
    now("changed_at"),
    sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
    sa.CheckConstraint("state IN ('changed', 'waiting', 'requested', 'materialized', 'failed')", name="state"),
    sa.Index("ix_window_requests_unsettled", "window_id", postgresql_where=sa.text("state <> 'materialized'")),
)

window_failures = sa.Table(
    "window_failures",
    metadata,
    sa.Column("failure_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("window_id", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False, comment="type of the error"),
    sa.Column("detail", sa.Text, nullable=False, comment="its message"),
    now("failed_at"),
    sa.Column("resolved_at", Time, comment="when the asset's window was computed without an error"),
    sa.CheckConstraint(WHOLE_HOUR, name="whole_hour"),
    sa.Index(
        "uq_window_failures_open", "asset", "window_id", unique=True, postgresql_where=sa.text("resolved_at IS NULL")
    ),
)
