"""What the loop came to, read from the database: the numbers of `status`, the table of rounds, the learning curve."""

from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import checkpoint_evaluations, scored_trajectories, trained_checkpoints, windows
from babylon_rl.evaluation.compare import window_pnl
from babylon_rl.evaluation.paired import mean_interval
from babylon_rl.evaluation.schedule import Schedule, schedule_of
from babylon_rl.recording.reader import read_evaluation
from babylon_rl.serving.gateway.standing import trajectories_standing
from babylon_rl.training.alarm_log import AlarmRow, list_alarms
from babylon_rl.training.runs import TrainingRun, list_checkpoints, load_run, promoted
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id

PNL = "dollars an agent and window"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round of play and its update. P&L in dollars an agent and window, before the update."""

    number: int
    windows: int
    trajectories: int
    pnl: float
    low: float
    high: float
    valid: float
    entropy: float | None
    left_out: int
    checkpoint: str | None


def status(database: Database) -> dict[str, Any]:
    """The loop's state as `babylon-rl status --json` prints it. `over_http`: trajectories that the gateway was told."""
    with database.connect() as connection:
        row = promoted(connection)
        counts = connection.execute(
            """SELECT count(*) FILTER (WHERE recorded > 0), count(*) FILTER (WHERE status = 'ready')
               FROM babylon_rl.windows WHERE superseded_at IS NULL"""
        ).fetchone()
        trained = connection.execute(
            "SELECT coalesce(sum(groups_trained), 0) FROM babylon_rl.trained_checkpoints WHERE superseded_at IS NULL"
        ).fetchone()
        checkpoints = connection.execute("SELECT count(*) FROM babylon_rl.checkpoints WHERE step > 0").fetchone()
        over_http = trajectories_standing(connection)
    assert counts and trained and checkpoints
    return {
        "promoted": _promoted(row) if row else None,
        "checkpoints": checkpoints[0],
        "windows": {"recorded": counts[0], "ready": counts[1], "trained": int(trained[0])},
        "over_http": msgspec.to_builtins(over_http),
        "database": "embedded" if database.embedded else "external",
    }


def _promoted(row: dict[str, Any]) -> dict[str, Any]:
    """The promotion with what it rests on; null where a person promoted without an evaluation."""
    evidence = row["evidence"]
    unseen = evidence.get("unseen")
    return {
        "checkpoint": row["to_checkpoint"],
        **{key: evidence.get(key) for key in ("base", "effect", "interval", "over_best_fixed", "windows")},
        "unseen": unseen and {key: unseen[key] for key in ("effect", "interval")},
        "who": row["who"],
        "why": row["why"],
    }


def evaluation_rows(connection: psycopg.Connection, schedule: Schedule) -> pd.DataFrame:
    """Current rows of `checkpoint_evaluations` of the run's validation, test and unseen splits."""
    last = [schedule.validation[1], schedule.test[1], schedule.unseen[1]]
    return read_frame(connection, current_rows(checkpoint_evaluations, last))


def policy_pnl(rows: pd.DataFrame, base: str) -> dict[str, float]:
    """Mean P&L on the test windows of the policies without a model, by name, from the rows of the evaluation."""
    compared = rows[(rows["split"] == "test") & (rows["baseline"] != base)]
    return {str(row["baseline"]): float(row["baseline_pnl"]) for _, row in compared.iterrows()}


def candidate_interval(connection: psycopg.Connection, schedule: Schedule, candidate: str) -> tuple[float, float]:
    """95 % interval of the candidate's mean P&L on the test windows."""
    played = read_evaluation(connection, schedule.windows("test"), "test")
    return mean_interval(window_pnl(played, candidate))[1:]


def runs_alike(connection: psycopg.Connection, run: TrainingRun) -> tuple[int, int]:
    """How many demos of the same base model and recipe have ended in this database, and how many were promoted."""
    row = connection.execute(
        """SELECT count(*), count(*) FILTER (WHERE EXISTS (
               SELECT 1 FROM babylon_rl.promotions p WHERE p.training_run = r.training_run))
           FROM babylon_rl.training_runs r
           JOIN babylon_rl.training_runs mine ON mine.training_run = %s
               AND mine.base_model = r.base_model AND mine.settings = r.settings
           WHERE r.state = 'finished' AND jsonb_exists(r.schedule, 'test')""",
        (run.training_run,),
    ).fetchone()
    assert row
    return row[0], row[1]


def rounds(connection: psycopg.Connection, run: TrainingRun) -> list[Round]:
    """The rounds played so far, oldest first."""
    schedule = schedule_of(run)
    if schedule is None:
        return []
    size = run.recipe.windows_per_update
    planned = schedule.windows("train")
    summary = read_frame(connection, current_rows(windows, planned)).set_index("window_id")
    scores = read_frame(connection, current_rows(scored_trajectories, planned))
    updates = read_frame(connection, current_rows(trained_checkpoints, planned)).set_index("window_id")
    found = []
    for number, start in enumerate(range(0, len(planned), size), start=1):
        mine = [w for w in planned[start : start + size] if w in summary.index and summary.loc[w, "usable"] > 0]
        if len(mine) < 2:
            break
        mean, low, high = mean_interval(summary.loc[mine, "pnl_mean"].astype(float))
        own = scores[scores["window_id"].isin(mine)]
        update = updates.loc[planned[start + size - 1]] if planned[start + size - 1] in updates.index else None
        steps = (update["metrics"] or {}).get("steps", []) if update is not None else []
        found.append(
            Round(
                number=number,
                windows=len(mine),
                trajectories=int(summary.loc[mine, "usable"].sum()),
                pnl=mean,
                low=low,
                high=high,
                valid=float((own["features"].map(lambda f: f["malformed"]) == 0).mean()),
                entropy=sum(s["entropy"] for s in steps) / len(steps) if steps else None,
                left_out=int(update["groups_left_out"]) if update is not None else 0,
                checkpoint=update["checkpoint_id"] if update is not None and update["updated"] else None,
            )
        )
    return found


def alarm_lines(connection: psycopg.Connection, run: TrainingRun) -> list[str]:
    """One line an alarm, oldest first: the round, what was seen, and what was done."""
    first, size = parse_window_id(run.first_window), run.recipe.windows_per_update
    lines = []
    for alarm in list_alarms(connection, run.training_run):
        number = (parse_window_id(alarm.window_id) - first) // WINDOW_LENGTH // size + 1
        lines.append(f"round {number}: {alarm.kind} ({alarm.detail}): {_done_about(alarm)}")
    return lines


def _done_about(alarm: AlarmRow) -> str:
    if alarm.response == "stop":
        return f"stopped at {alarm.back_to}"
    back = f"stepped back to {alarm.back_to}, " if alarm.back_to else ""
    return f"{back}exploration {alarm.exploration:g}"


def validation_curve(connection: psycopg.Connection, run: TrainingRun) -> pd.DataFrame:
    """Step, P&L with interval of every checkpoint on the validation windows; empty before they are played."""
    schedule = schedule_of(run)
    columns = ["step", "pnl", "low", "high"]
    if schedule is None:
        return pd.DataFrame(columns=columns)
    played = read_evaluation(connection, schedule.windows("validation"), "validation")
    rows = []
    for checkpoint in list_checkpoints(connection, run.training_run):
        own = played[played["arm"] == checkpoint.checkpoint_id].groupby("window_id")["pnl"].mean()
        if len(own) > 1:
            rows.append(dict(zip(columns, (checkpoint.step, *mean_interval(own)), strict=True)))
    return pd.DataFrame(rows, columns=columns)


def draw_curve(connection: psycopg.Connection, run: TrainingRun, target: Path) -> Path:
    """Write the learning curve as a PNG: P&L while training and on validation windows, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    played, curve = rounds(connection, run), validation_curve(connection, run)
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=110)
    axes.axhline(0, color="0.7", linewidth=0.8)
    if played:
        x = [r.number - 1 for r in played]
        axes.fill_between(x, [r.low for r in played], [r.high for r in played], color="tab:blue", alpha=0.15)
        axes.plot(x, [r.pnl for r in played], "o-", color="tab:blue", label="training windows")
    if len(curve):
        errors = [(curve["pnl"] - curve["low"]).abs(), (curve["high"] - curve["pnl"]).abs()]
        axes.errorbar(
            curve["step"],
            curve["pnl"],
            yerr=errors,
            fmt="s--",
            color="tab:orange",
            capsize=3,
            label="validation windows",
        )
    schedule = schedule_of(run)
    if schedule is not None:
        informed = read_evaluation(connection, schedule.windows("test"), "test")
        ceiling = informed[informed["arm"] == "follow_news"]["pnl"].mean()
        if pd.notna(ceiling):
            axes.axhline(ceiling, color="tab:green", linestyle=":", label="always follows the news (test windows)")
    axes.set_xlabel("updates")
    axes.set_ylabel(f"P&L, {PNL}")
    axes.set_title(f"{run.training_run}: {run.base_model}, seed {run.seed}")
    axes.legend(loc="best", fontsize=8)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    pyplot.close(figure)
    return target


def latest_run(connection: psycopg.Connection) -> TrainingRun | None:
    """The run that was started last."""
    row = connection.execute(
        "SELECT training_run FROM babylon_rl.training_runs ORDER BY created_at DESC LIMIT 1"
    ).fetchone()
    return load_run(connection, row[0]) if row else None
