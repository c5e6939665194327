"""What the evaluations together say of a checkpoint: in the simulated market, by replay, and from what it played."""

from typing import Literal, NamedTuple

import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_evaluations, online_evaluations, replay_evaluations
from babylon_rl.evaluation.paired import paired_effect

Source = Literal["market", "replay", "online"]
SOURCES: tuple[Source, ...] = ("market", "replay", "online")


class Standing(NamedTuple):
    """How a checkpoint stands against a baseline by one source.

    `effect`: candidate less baseline over `windows` windows, with its 95 % interval, None where fewer than two windows
    are there. Unit: dollars an agent and window (market, online), reward `alpha`, a share of capital (replay).
    `valid`: share of the checkpoint's answers that are legal actions, None where replay draws none.
    """

    source: Source
    baseline: str
    effect: float | None
    low: float | None
    high: float | None
    windows: int
    unit: str
    valid: float | None = None


DOLLARS, REWARD = "dollars an agent and window", "reward alpha an agent and window"


def standing(
    connection: psycopg.Connection, checkpoint_id: str, first: str | None = None, last: str | None = None
) -> list[Standing]:
    """All that is stored of the checkpoint, by source and baseline; `first`, `last`: windows of replay and online.

    The market's rows are those of its latest evaluation. Replay and online rows are one a window, so the interval is
    over windows. Online figures are no experiment: the arms traded in one market, and chance did not choose who did.
    """
    return [
        *_market(connection, checkpoint_id),
        *replay_standing(connection, checkpoint_id, first, last),
        *online_standing(connection, checkpoint_id, first, last),
    ]


def _market(connection: psycopg.Connection, checkpoint_id: str) -> list[Standing]:
    rows = read_frame(
        connection, current_rows(market_evaluations).where(market_evaluations.c.candidate == checkpoint_id)
    )
    if rows.empty:
        return []
    latest = rows[rows["window_id"] == rows["window_id"].max()]
    return [
        Standing(
            "market", r.baseline, _known(r.effect), _known(r.low), _known(r.high), r.windows, DOLLARS, _known(r.valid)
        )
        for r in latest.itertuples()
    ]


def replay_standing(
    connection: psycopg.Connection, candidate: str, first: str | None = None, last: str | None = None
) -> list[Standing]:
    """The candidate against each baseline that it was replayed with, over the windows that both have a figure in."""
    table = replay_evaluations
    rows = _between(read_frame(connection, current_rows(table).where(table.c.candidate == candidate)), first, last)
    return [
        _over("replay", str(baseline), _series(own, "candidate_value"), _series(own, "baseline_value"), REWARD)
        for baseline, own in rows.groupby("baseline", sort=True)
    ]


def online_standing(
    connection: psycopg.Connection, checkpoint_id: str, first: str | None = None, last: str | None = None
) -> list[Standing]:
    """The checkpoint against each other that answered in the same windows, from recorded P&L."""
    rows = _between(read_frame(connection, current_rows(online_evaluations)), first, last)
    mine = rows[rows["checkpoint_id"] == checkpoint_id]
    if mine.empty:
        return []
    valid = float((mine["valid"] * mine["decisions"]).sum() / mine["decisions"].sum())
    own, found = _series(mine, "pnl_mean"), []
    for other, theirs in rows[rows["checkpoint_id"] != checkpoint_id].groupby("checkpoint_id", sort=True):
        baseline = _series(theirs, "pnl_mean")
        if own.index.intersection(baseline.index).size:
            found.append(_over("online", str(other), own, baseline, DOLLARS)._replace(valid=valid))
    return found


def _over(source: Source, baseline: str, candidate: pd.Series, theirs: pd.Series, unit: str) -> Standing:
    shared = candidate.index.intersection(theirs.index)
    if len(shared) < 2:
        effect = float((candidate[shared] - theirs[shared]).mean()) if len(shared) else None
        return Standing(source, baseline, effect, None, None, len(shared), unit)
    found = paired_effect(candidate, theirs, seed=0)
    return Standing(source, baseline, found.effect, found.low, found.high, found.windows, unit)


def _series(rows: pd.DataFrame, column: str) -> pd.Series:
    """The figure by window, where it is known."""
    return rows.set_index("window_id")[column].astype(float).dropna()


def _between(rows: pd.DataFrame, first: str | None, last: str | None) -> pd.DataFrame:
    inside = [(first is None or w >= first) and (last is None or w <= last) for w in rows["window_id"].tolist()]
    return rows[pd.Series(inside, index=rows.index, dtype=bool)]


def _known(value: float | None) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
