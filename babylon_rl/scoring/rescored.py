"""What scoring a range anew changed: how its windows stood before, how they stand after, and how alike both rank."""

from collections.abc import Mapping, Sequence

import msgspec
import pandas as pd
import psycopg
from psycopg import sql

from babylon_rl.database.bulk import compiled
from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.readiness.buckets import origins_of
from babylon_rl.scoring.compare_runs import best_and_worst
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, window_of

_MATERIALIZED = """
    SELECT window_id, recorded > 0 FROM babylon_rl.windows
    WHERE window_id COLLATE "C" BETWEEN %s AND %s AND superseded_at IS NULL
"""
_ENDED = sql.SQL("""
    SELECT DISTINCT date_trunc('hour', "endTime") FROM {trajectories}
    WHERE "endTime" >= %(start)s AND "endTime" < %(end)s
""")


class Extreme(msgspec.Struct, frozen=True):
    """The best or the worst run of a window, with the reason in words."""

    agent_id: str
    reward: float
    reason: str


class Standing(msgspec.Struct, frozen=True):
    """A window's current scores. `scorer`: with its version; `rewards`: by trajectory id. Equal ones have no best."""

    digest: str
    scorer: str
    rewards: Mapping[str, float]
    best: Extreme | None
    worst: Extreme | None

    @property
    def mean(self) -> float:
        return sum(self.rewards.values()) / len(self.rewards)


class Rescored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a window's scores; None where there were none before, or are none after.

    `written`, `unchanged`: rows. `rank_correlation`: Spearman's, of the runs that have both rewards; None where it is
    not defined: fewer than two runs, or all rewards of one side equal. `failed`: why it was not scored.
    """

    window_id: str
    written: int
    unchanged: int
    scorer_before: str | None
    scorer_after: str | None
    mean_before: float | None
    mean_after: float | None
    rank_correlation: float | None
    best: Extreme | None
    worst: Extreme | None
    failed: str | None = None


def standing(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[str, Standing]:
    """How the windows stand that have scores."""
    columns = scored_trajectories.c
    names = ("window_id", "digest", "scorer", "scorer_version", "trajectory_id", "agent_id", "reward", "rank", "reason")
    statement = current_rows(scored_trajectories, window_ids).with_only_columns(
        *(columns[name] for name in (*names, "provenance"))
    )
    rows: dict[str, list[dict]] = {}
    for told in connection.execute(*compiled(statement)):
        row = dict(zip((*names, "provenance"), told, strict=True))
        rows.setdefault(row["window_id"], []).append(row)
    return {window_id: _standing(own) for window_id, own in rows.items()}


def _standing(rows: list[dict]) -> Standing:
    # Of equal rewards none is the best: their ranks are by id.
    pair = best_and_worst(rows) if len({row["reward"] for row in rows}) > 1 else None
    best, worst = (Extreme(row["agent_id"], row["reward"], row["reason"]) for row in pair) if pair else (None, None)
    return Standing(
        digest=rows[0]["digest"],
        scorer=f"{rows[0]['scorer']} {rows[0]['scorer_version']}",
        rewards={row["trajectory_id"]: row["reward"] for row in rows},
        best=best,
        worst=worst,
    )


def rescored(window_id: str, before: Standing | None, after: Standing | None, failed: str | None = None) -> Rescored:
    """What changed in a window between two looks."""
    rows = len(after.rewards) if after else 0
    same = before is not None and after is not None and before.digest == after.digest
    return Rescored(
        window_id=window_id,
        written=0 if same else rows,
        unchanged=rows if same else 0,
        scorer_before=before.scorer if before else None,
        scorer_after=after.scorer if after else None,
        mean_before=before.mean if before else None,
        mean_after=after.mean if after else None,
        rank_correlation=rank_correlation(before.rewards, after.rewards) if before and after else None,
        best=after.best if after else None,
        worst=after.worst if after else None,
        failed=failed,
    )


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation of the values with the same key, equal values at their mean rank; None: undefined."""
    shared = sorted(first.keys() & second.keys())
    ranks = [pd.Series([values[key] for key in shared], dtype=float).rank() for values in (first, second)]
    if len(shared) < 2 or any(one.nunique() < 2 for one in ranks):
        return None
    return float(ranks[0].corr(ranks[1]))


def windows_to_score(recordings: Recordings, first: str, last: str) -> tuple[list[str], list[str]]:
    """Windows from first to last in which something is recorded: those that are materialized, and the others.

    There is no index for when a run ended, so this reads the recorded tables.
    """
    found = recordings.ours.execute(_MATERIALIZED, (first, last)).fetchall()
    every = {window_id for window_id, _ in found}
    start, end = (parse_window_id(window_id).replace(tzinfo=None) for window_id in (first, last))
    values = {"start": start, "end": end + WINDOW_LENGTH}
    ended: set[str] = set()
    for origin in origins_of(recordings):
        ended |= {window_of(hour) for (hour,) in origin.connection.execute(origin.query(_ENDED), values)}
    return sorted(window_id for window_id, recorded in found if recorded), sorted(ended - every)
