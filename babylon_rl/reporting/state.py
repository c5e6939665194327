"""The state of the loop in one record, read from the database: what the report's page shows.

Each part is a function of its own and stands where its table holds nothing too: a page of an empty database says what
is missing, and how to get it.
"""

import statistics
from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd
import psycopg
from psycopg.rows import dict_row

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import checkpoint_evaluations, windows
from babylon_rl.evaluation.paired import mean_interval
from babylon_rl.evaluation.summary import Standing, standing
from babylon_rl.reporting.progress import Round, latest_run, rounds, validation_curve
from babylon_rl.scoring.judge.budget import Prices
from babylon_rl.settings import Settings
from babylon_rl.training.backends.submission import estimate
from babylon_rl.training.runs import load_run, promoted

BLOCK = 24  # windows whose mean is one point of the course of P&L
BLOCKS = 28
LOOKS = 200  # of an experiment, the latest


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval; `label`: what it is of, `count`: windows that it rests on."""

    label: str
    middle: float
    low: float
    high: float
    count: int
    note: str = ""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What was promoted last. `answering`: what the gateways really serve, each with its state and reason."""

    checkpoint: str
    before: str | None
    since: datetime
    kind: str
    who: str
    why: str
    experiment: str | None
    evidence: dict[str, Any]
    answering: list[dict[str, Any]]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment with its looks, the oldest first; `running`: whether it still runs."""

    experiment: str
    candidate: str
    baseline: str
    design: str
    share: float
    first_window: str
    horizon: int
    state: str
    reason: str
    looks: list[dict[str, Any]]

    @property
    def running(self) -> bool:
        return self.state == "running"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What something has taken; `dollars` None where no price is known or nothing is paid."""

    what: str
    count: int
    detail: str
    dollars: float | None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the loop at `made_at`.

    `standings`: of what is served and of the candidate, by checkpoint: market, replay and online evaluations.
    `rejects`: reason, refused for, rows, latest window. `gaps`: answered calls that no record is kept of.
    """

    made_at: datetime
    windows: dict[str, int]
    served: Served | None
    candidate: Candidate | None
    evidence: list[Interval]
    standings: dict[str, list[Standing]]
    training_run: str | None
    base_model: str | None
    rounds: list[Round]
    validation: list[Interval]
    pnl: list[Interval]
    judge: dict[str, Any] | None
    rejects: list[dict[str, Any]]
    costs: list[Cost]
    gaps: int


def read_state(database: Database, settings: Settings, now: datetime | None = None) -> State:
    """The state of the loop, in one transaction."""
    with database.connect() as connection:
        served = _served(connection)
        run = load_run(connection, _run_of(connection, served)) if served else None
        run = run or latest_run(connection)
        curve = validation_curve(connection, run) if run else pd.DataFrame()
        candidate = _candidate(connection)
        compared = ([candidate.candidate] if candidate else []) + ([served.checkpoint] if served else [])
        return State(
            made_at=now or datetime.now(UTC),
            windows=_windows(connection),
            served=served,
            candidate=candidate,
            evidence=_evidence(connection),
            standings={one: found for one in dict.fromkeys(compared) if (found := standing(connection, one))},
            training_run=run.training_run if run else None,
            base_model=run.base_model if run else None,
            rounds=rounds(connection, run) if run else [],
            validation=[
                Interval(label=str(int(r["step"])), middle=r["pnl"], low=r["low"], high=r["high"], count=0)
                for r in curve.to_dict("records")
            ],
            pnl=_pnl(connection),
            judge=_judge(connection),
            rejects=_rejects(connection),
            costs=_costs(connection, settings),
            gaps=_one(connection, "SELECT coalesce(sum(calls), 0) AS n FROM babylon_rl.recording_gaps")["n"],
        )


def _rows(connection: psycopg.Connection, query: str, parameters: tuple = ()) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def _one(connection: psycopg.Connection, query: str) -> dict[str, Any]:
    return _rows(connection, query)[0]


# --- what is served --------------------------------------------------------------------------------


def _served(connection: psycopg.Connection) -> Served | None:
    row = promoted(connection)
    if row is None:
        return None
    answering = _rows(
        connection,
        """SELECT DISTINCT ON (gateway, role) gateway, role, checkpoint_id, state, reason, at
           FROM babylon_rl.deployments ORDER BY gateway, role, deployment_id DESC""",
    )
    return Served(
        checkpoint=row["to_checkpoint"],
        before=row["from_checkpoint"],
        since=row["promoted_at"],
        kind=row["kind"],
        who=row["who"],
        why=row["why"],
        experiment=row["experiment_id"],
        evidence=row["evidence"],
        answering=answering,
    )


def _run_of(connection: psycopg.Connection, served: Served) -> str:
    found = _rows(
        connection, "SELECT training_run FROM babylon_rl.checkpoints WHERE checkpoint_id = %s", (served.checkpoint,)
    )
    return found[0]["training_run"]


def _candidate(connection: psycopg.Connection) -> Candidate | None:
    """The running experiment, else the one that ended last."""
    found = _rows(
        connection,
        """SELECT experiment_id AS experiment, candidate, baseline, design, share, first_window, horizon, state, reason
           FROM babylon_rl.experiments ORDER BY state = 'running' DESC, created_at DESC LIMIT 1""",
    )
    if not found:
        return None
    looks = _rows(
        connection,
        """SELECT last_window, windows, blocks, effect, low, high, sample_ratio_p, guardrails, decision, reason
           FROM babylon_rl.experiment_looks WHERE experiment_id = %s ORDER BY look_id DESC LIMIT %s""",
        (found[0]["experiment"], LOOKS),
    )
    return Candidate(**found[0], looks=looks[::-1])


# --- evidence --------------------------------------------------------------------------------------


def _evidence(connection: psycopg.Connection) -> list[Interval]:
    """The latest comparison of each candidate with each of its baselines, the newest first."""
    frame = read_frame(connection, current_rows(checkpoint_evaluations))
    if frame.empty:
        return []
    frame = frame[frame["split"] != "validation"].sort_values("window_id", ascending=False)
    latest = frame.drop_duplicates(["candidate", "baseline", "split"])
    return [
        Interval(
            label=f"{row['candidate']} over {row['baseline']} ({row['split']})",
            middle=row["effect"],
            low=row["low"],
            high=row["high"],
            count=int(row["windows"]),
            note=row["decision"],
        )
        for row in latest.to_dict("records")[:16]
    ]


def _windows(connection: psycopg.Connection) -> dict[str, int]:
    found = _one(
        connection,
        """SELECT count(*) FILTER (WHERE recorded > 0) AS recorded, count(*) FILTER (WHERE status = 'ready') AS ready,
           count(*) FILTER (WHERE recorded > 0 AND status <> 'ready') AS "not ready",
           coalesce(sum(recorded), 0)::bigint AS trajectories
           FROM babylon_rl.windows WHERE superseded_at IS NULL""",
    )
    return {name: int(value) for name, value in found.items()}


def _pnl(connection: psycopg.Connection) -> list[Interval]:
    """Mean P&L an agent and window over blocks of windows that follow each other, the latest ones."""
    frame = read_frame(connection, current_rows(windows))
    frame = frame[frame["usable"] > 0].sort_values("window_id") if len(frame) else frame
    blocks = [frame.iloc[start : start + BLOCK] for start in range(0, len(frame), BLOCK)][-BLOCKS:]
    found = []
    for block in blocks:
        values = block["pnl_mean"].astype(float).dropna()
        if len(values) < 2:
            continue
        mean, low, high = mean_interval(values)
        label = str(block["window_id"].iloc[0])
        found.append(Interval(label=label, middle=mean, low=low, high=high, count=len(values)))
    return found


def _judge(connection: psycopg.Connection) -> dict[str, Any] | None:
    """The judge of the latest judged window, with its figures; None where none ever judged."""
    found = _rows(
        connection,
        """SELECT window_id, judge, verdict, reason, windows, agreement, agreement_low, agreement_high, repeat,
           repeat_low, repeat_high, order_bias, order_low, order_high, length_bias, length_low, length_high, noise
           FROM babylon_rl.judge_calibration WHERE superseded_at IS NULL AND judge IS NOT NULL
           ORDER BY window_id DESC LIMIT 1""",
    )
    return found[0] if found else None


def judge_intervals(judge: dict[str, Any]) -> list[Interval]:
    """The judge's rank correlations that have an interval."""
    named = (
        ("agreement with alpha", "agreement", "agreement"),
        ("agreement with itself", "repeat", "repeat"),
        ("with the place in the prompt", "order_bias", "order"),
        ("with the length of the text", "length_bias", "length"),
    )
    return [
        Interval(
            label=label,
            middle=judge[column],
            low=judge[f"{part}_low"],
            high=judge[f"{part}_high"],
            count=judge["windows"],
        )
        for label, column, part in named
        if judge[column] is not None and judge[f"{part}_low"] is not None
    ]


def _rejects(connection: psycopg.Connection) -> list[dict[str, Any]]:
    return _rows(
        connection,
        """SELECT reason, refused_for, count(*) AS rows, max(coalesce(window_id, ended_in)) AS latest
           FROM babylon_rl.rejected_trajectories WHERE superseded_at IS NULL
           GROUP BY reason, refused_for ORDER BY count(*) DESC, reason LIMIT 30""",
    )


# --- cost ------------------------------------------------------------------------------------------


def _costs(connection: psycopg.Connection, settings: Settings) -> list[Cost]:
    return [*_training_costs(connection, settings), _judge_cost(connection, settings), _calls_cost(connection)]


def _training_costs(connection: psycopg.Connection, settings: Settings) -> list[Cost]:
    """Updates by backend; of the hosted service the dollars of the tokens sent, by BABYLON_RL_TRAINING_PRICE."""
    found = []
    for row in _rows(
        connection,
        """SELECT backend, count(*) AS jobs, array_agg(extract(epoch FROM finished_at - created_at)::float8) AS seconds,
           (SELECT sum(cardinality(c.prompt_token_ids) + cardinality(c.token_ids))
            FROM babylon_rl.training_attempts sent JOIN babylon_rl.snapshot_members m USING (snapshot_id)
            JOIN babylon_rl.recorded_calls c USING (trajectory_id)
            WHERE sent.state = 'done' AND sent.backend = a.backend) AS tokens
           FROM babylon_rl.training_attempts a WHERE state = 'done' GROUP BY backend ORDER BY backend""",
    ):
        seconds = [s for s in row["seconds"] if s is not None]
        median = f", median {statistics.median(seconds):.0f} s each" if seconds else ""
        paid = row["backend"] == "wandb" and settings.training_price > 0
        dollars = estimate(int(row["tokens"] or 0), settings) if paid else None
        detail = f"trained on {int(row['tokens'] or 0):,} tokens{median}"
        found.append(Cost(what=f"updates ({row['backend']})", count=row["jobs"], detail=detail, dollars=dollars))
    return found


def _judge_cost(connection: psycopg.Connection, settings: Settings) -> Cost:
    row = _one(
        connection,
        """SELECT count(*) AS answers, coalesce(sum(prompt_tokens), 0)::bigint AS prompt,
           coalesce(sum(completion_tokens), 0)::bigint AS completion FROM babylon_rl.judge_answers""",
    )
    dollars = Prices(settings.judge_prices).dollars(row["prompt"], row["completion"])
    detail = f"{row['prompt']:,} tokens read, {row['completion']:,} written"
    return Cost(what="answers of the judge", count=row["answers"], detail=detail, dollars=dollars)


def _calls_cost(connection: psycopg.Connection) -> Cost:
    row = _one(
        connection,
        """SELECT count(*) AS calls, coalesce(sum(cardinality(prompt_token_ids)), 0)::bigint AS prompt,
           coalesce(sum(cardinality(token_ids)), 0)::bigint AS answered,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95 FROM babylon_rl.gateway_calls""",
    )
    latency = "" if row["p95"] is None else f", 95 % within {row['p95']:.0f} ms"
    detail = f"{row['prompt']:,} tokens read, {row['answered']:,} written{latency}"
    return Cost(what="calls through the gateway", count=row["calls"], detail=detail, dollars=None)
