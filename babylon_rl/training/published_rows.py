"""Finished checkpoints as rows of the application's `trained_models` and `training_batches`; arithmetic only, no I/O.

A row here is what a column should hold. Columns that the application fills itself (`benchmarkScore`, `accuracy`,
`wandbRunId`, `agentsUsing`, …) are not among them, so that publishing never takes away what it wrote there.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_rl.database.values import clean_text, encode_json
from babylon_rl.groups.trained_view import Group
from babylon_rl.training.runs import base_checkpoint

READY, DEPLOYED, ARCHIVED = "ready", "deployed", "archived"
COMPLETED, FAILED = "completed", "failed"
UNIT = "dollars an agent and window"
LONGEST_ERROR = 2000

_VERSION = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})")

Row = dict[str, Any]


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that ended and the checkpoint it left; either may be absent. Times are aware.

    `simulated`: of a run of the simulated market, which is none of the application's business.
    """

    training_run: str
    checkpoint_id: str | None
    path: str | None
    checkpoint_state: str | None
    metrics: dict[str, Any] | None
    trained_at: datetime | None
    promoted_at: datetime | None
    job_id: str | None
    snapshot_id: str | None
    state: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    base_model: str
    window_ids: list[str] | None
    simulated: bool


def next_version(known: Iterable[str | None]) -> str:
    """The application's own way to count: the highest patch and one more, from v1.0.0 on."""
    numbers = [tuple(map(int, found.groups())) for text in known if text and (found := _VERSION.fullmatch(text))]
    if not numbers:
        return "v1.0.0"
    major, minor, patch = max(numbers)
    return f"v{major}.{minor}.{patch + 1}"


def model_row(
    trained: Trained, version: str, served: str | None, there: Row | None, evaluations: list[Row], now: datetime
) -> Row:
    """Row of `trained_models`. `there`: the row that stands there; `evaluations`: those of the checkpoint, or none."""
    status, archived_at = _status(trained, served, there, now)
    metrics = eval_metrics(evaluations, base_checkpoint(trained.training_run))
    return {
        "modelId": trained.checkpoint_id,
        "version": version,
        "baseModel": trained.base_model,
        "trainingBatch": trained.job_id,
        "status": status,
        "deployedAt": moment(trained.promoted_at),
        "archivedAt": archived_at,
        "storagePath": trained.path,
        # What later windows say of the model; the mean of its training data would say nothing of it.
        "avgReward": None if metrics is None else metrics.get("candidatePnl"),
        "evalMetrics": metrics,
    }


def _status(trained: Trained, served: str | None, there: Row | None, now: datetime) -> tuple[str, datetime | None]:
    before = there or {}
    if trained.checkpoint_state == "deleted":
        return ARCHIVED, before.get("archivedAt") or moment(now)
    if trained.checkpoint_id == served:
        return DEPLOYED, None
    if before.get("status") == ARCHIVED:  # somebody's decision there
        return ARCHIVED, before.get("archivedAt")
    return READY, None


def eval_metrics(evaluations: list[Row], base: str) -> dict[str, Any] | None:
    """What the latest evaluation on each split came to; at the top what the test windows said of it over its start.

    A checkpoint was chosen on the validation windows, so these say nothing there.
    """
    if not evaluations:
        return None
    last: dict[str, str] = {}
    for row in evaluations:
        last[row["split"]] = max(row["window_id"], last.get(row["split"], ""))
    latest = [row for row in evaluations if row["window_id"] == last[row["split"]]]
    told = [_comparison(row) for row in sorted(latest, key=lambda row: (row["split"], row["baseline"]))]
    over_base = next((one for one in told if one["split"] == "test" and one["baseline"] == base), {})
    return {**over_base, "unit": UNIT, "comparisons": told}


def _comparison(row: Row) -> dict[str, Any]:
    return {
        "split": row["split"],
        "baseline": row["baseline"],
        "design": row["design"],
        "windows": row["windows"],
        "lastWindow": row["window_id"],
        "effect": row["effect"],
        "interval": [row["low"], row["high"]],
        "candidatePnl": row["candidate_pnl"],
        "baselinePnl": row["baseline_pnl"],
        "decision": row["decision"],
        "reason": row["reason"],
    }


def batch_row(trained: Trained, version: str) -> Row:
    """Row of `training_batches` without what its snapshot says, which never changes."""
    windows = sorted(trained.window_ids or [])
    named = None if not windows else windows[0] if len(windows) == 1 else f"{windows[0]}..{windows[-1]}"
    loss = (trained.metrics or {}).get("loss")
    return {
        "batchId": trained.job_id,
        "scenarioId": named,
        "baseModel": trained.base_model,
        "modelVersion": version,
        "trainingLoss": None if loss is None else float(loss),
        "status": COMPLETED if trained.state == "done" else FAILED,
        "error": None if trained.error is None else clean_text(trained.error)[:LONGEST_ERROR],
        "startedAt": moment(trained.started_at),
        "completedAt": moment(trained.finished_at),
    }


def snapshot_columns(groups: Iterable[Group]) -> Row:
    """Columns of `training_batches` that say what was trained on: ids, rewards in their order, ranking a window.

    `groups`: those of a snapshot, of which one at a time is looked at.
    """
    members: list[tuple[str, float]] = []
    rankings = []
    for group in groups:
        members += [(member.trajectory_id, member.reward) for member in group.members]
        ranked = sorted(group.members, key=lambda m: (-m.reward, m.trajectory_id))
        rankings.append({"windowId": group.window_id, "ranking": [member.trajectory_id for member in ranked]})
    members.sort(key=lambda member: member[0])
    return {
        "trajectoryIds": encode_json([trajectory_id for trajectory_id, _ in members]),
        "rewardsJson": encode_json([reward for _, reward in members]),
        "rankingsJson": encode_json(rankings),
    }


def changed(there: Mapping[str, Any], wanted: Row) -> Row:
    """The wanted columns that hold something else there."""
    return {name: value for name, value in wanted.items() if there[name] != value}


def moment(time: datetime | None) -> datetime | None:
    """As the application's columns hold a time: UTC without a zone, in whole milliseconds."""
    if time is None:
        return None
    utc = time.astimezone(UTC).replace(tzinfo=None)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)
