"""A database with something to report of: a promotion, an experiment with looks, an evaluation, a judge, rejects."""

from datetime import UTC, datetime, timedelta

import pandas as pd
from psycopg.types.json import Jsonb

from babylon_rl.database.connect import Database
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, base_checkpoint, promote, save_checkpoint, start_run

RUN = "loop"
WHY = 'better <script>alert("x")</script> & sure'


def plant(database: Database) -> None:
    """Fill an empty database."""
    with database.connect() as connection:
        run = TrainingRun(
            training_run=RUN,
            base_model="tiny",
            seed=0,
            recipe=Recipe(),
            schedule={},
            first_window="2025-01-15T00:00",
            last_window=None,
            state="running",
        )
        start_run(connection, run)
        for step in (1, 2):
            made = Checkpoint(
                checkpoint_id=f"{RUN}@{step}",
                training_run=RUN,
                parent_id=base_checkpoint(RUN),
                snapshot_id=None,
                base_model="tiny",
                step=step,
                path=None,
                weights_sha256=None,
                last_window="2025-01-15T09:00",
                metrics={},
                state="ready",
            )
            save_checkpoint(connection, made)
        promote(connection, RUN, f"{RUN}@1", "ada", WHY, {"effect": 1.5})
        connection.execute(
            """INSERT INTO babylon_rl.experiments (experiment_id, candidate, baseline, design, share, seed,
               first_window, horizon, settings, forecast, tried, state, reason, who)
               VALUES ('e1', %s, %s, 'paired-by-window', 0.5, 0, '2025-01-16T00:00', 96, %s, %s, 1, 'running',
                       'no evidence yet', 'ada')""",
            (f"{RUN}@2", f"{RUN}@1", Jsonb({}), Jsonb({})),
        )
        for look in range(1, 13):
            half = 4 / look
            connection.execute(
                """INSERT INTO babylon_rl.experiment_looks (experiment_id, last_window, windows, blocks, effect, low,
                   high, sample_ratio_p, guardrails, decision, reason, digest)
                   VALUES ('e1', %s, %s, %s, 0.5, %s, %s, 0.8, %s, 'go on', 'the sequence holds zero', %s)""",
                (f"2025-01-16T{look:02}:00", look, look, 0.5 - half, 0.5 + half, Jsonb({}), str(look)),
            )
        connection.execute(
            """INSERT INTO babylon_rl.deployments (gateway, role, checkpoint_id, state, reason)
               VALUES ('http://127.0.0.1:8100/v1', 'promoted', %s, 'refused', 'the served log-probabilities differ')""",
            (f"{RUN}@1",),
        )
        connection.execute(
            """INSERT INTO babylon_rl.recording_gaps (gap_id, since, until, calls, reason)
               VALUES ('g', %s, %s, 3, 'disk full')""",
            (datetime(2025, 1, 16, tzinfo=UTC), datetime(2025, 1, 16, tzinfo=UTC) + timedelta(minutes=1)),
        )
        for reason, rows in (("no_final_pnl", 3), ("unfinished", 1)):
            for number in range(rows):
                connection.execute(
                    """INSERT INTO babylon_rl.rejected_trajectories (window_id, trajectory_id, reason, detail, digest)
                       VALUES ('2025-01-15T10:00', %s, %s, 'd', 'd')""",
                    (f"{reason}-{number}", reason),
                )
        connection.execute(
            """INSERT INTO babylon_rl.judge_answers (digest, window_id, model, question, answer, prompt_tokens,
               completion_tokens) VALUES ('a', '2025-01-15T10:00', 'judge', 'process', '{}', 1000000, 500000)"""
        )
        _evaluation(connection)
        _windows(connection)


def _evaluation(connection) -> None:
    for baseline, effect in ((f"{RUN}@0", 2.0), ("hold", 1.0)):
        connection.execute(
            """INSERT INTO babylon_rl.checkpoint_evaluations (window_id, candidate, baseline, split, design, windows,
               effect, low, high, candidate_pnl, baseline_pnl, decision, reason, digest)
               VALUES ('2025-01-17T00:00', %s, %s, 'test', 'paired-by-window', 96, %s, %s, %s, 2, 0, 'promote', 'r',
                       'd')""",
            (f"{RUN}@1", baseline, effect, effect - 1, effect + 1),
        )


def _windows(connection) -> None:
    hours = pd.date_range("2025-01-15", periods=60, freq="h")
    for number, hour in enumerate(hours):
        connection.execute(
            """INSERT INTO babylon_rl.windows (window_id, status, reason, agents, recorded, usable, rejected, pnl_mean,
               revision, digest) VALUES (%s, 'ready', 'r', 4, 4, 4, 0, %s, 'r', 'd')""",
            (f"{hour:%Y-%m-%dT%H}:00", (-1) ** number * 2 + number / 20),
        )
