"""Groups of a range of windows, the texts of one window's members in memory at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import scored_trajectories
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import EmptyWindowError, SettingsError
from babylon_rl.groups.advantages import SPREAD_TOLERANCE
from babylon_rl.groups.baselines import COLUMNS as OBSERVED
from babylon_rl.groups.baselines import HISTORY_HOURS, REWARDED, AgentHistory, hour_of
from babylon_rl.groups.build import COLUMNS, GroupSettings, build_group
from babylon_rl.groups.searching import LeakGuard
from babylon_rl.recording.reader import RangeReader
from babylon_rl.scoring.scorers import scorer_of
from babylon_rl.scoring.seam import Scorer
from babylon_rl.settings import Settings, get_settings
from babylon_rl.windows import shift_window

EARLIER = ("windows", "market_outcomes", "scored_trajectories", "judge_calibration")


def group_windows(
    database: Database,
    window_ids: Sequence[str],
    windows: pd.DataFrame,
    scored: pd.DataFrame,
    calibration: pd.DataFrame | None = None,
    settings: Settings | None = None,
) -> WindowRows:
    """Rows of `art_groups`; `windows`, `scored` and `calibration` (`judge_calibration`) are the rows of all windows.

    Rewards of the windows before them are read once for the whole range. A window's baselines rest on the windows
    before it alone, so they are the same whichever range it is computed in.
    """
    settings = settings or get_settings()
    made_with = GroupSettings.of(settings)
    by_id = {row["window_id"]: row for row in windows.to_dict("records")}
    verdicts = {row["window_id"]: row for row in calibration.to_dict("records")} if calibration is not None else {}
    scores = dict(iter(scored.groupby("window_id"))) if len(scored) else {}
    scorers = _scorers(scored, settings, database)
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, EARLIER, window_ids)
        history = AgentHistory(_observed(recordings, window_ids, scored))
        reader, guard = RangeReader(recordings, window_ids), LeakGuard(recordings, window_ids)

        def build(window_id: str) -> dict[str, Any]:
            if window_id not in by_id:
                raise EmptyWindowError(
                    f"Window {window_id} is not materialized yet: materialize windows before art_groups."
                )
            recorded, own = reader.trainable(window_id), scores.get(window_id, scored.iloc[:0])
            verdict = verdicts.get(window_id)
            return build_group(
                by_id[window_id],
                recorded,
                own,
                settings=made_with,
                verdict=verdict,
                history=history,
                leaks=guard.leaks(recorded, own.to_dict("records")),
                tolerance=tolerance_for(scorers.get(own["scorer"].iloc[0]) if len(own) else None, verdict),
            )

        rows, failed = each_window(window_ids, build, waiting)
    # Of objects: what is missing stays None, and is no number that is not one.
    return WindowRows(pd.DataFrame(rows, columns=list(COLUMNS), dtype=object), tuple(window_ids), failed)


def tolerance_for(scorer: Scorer | None, verdict: Mapping[str, Any] | None) -> float:
    """Rewards of a window that differ by less are equal: the scorer's noise, or the judge's as measured, if larger.

    `scorer`: None where it is not known here any more. A judge's noise counts in a blend by the judge's weight.
    """
    noise = scorer.noise if scorer is not None else SPREAD_TOLERANCE
    measured = verdict.get("noise") if verdict is not None else None
    if measured is None or pd.isna(measured) or (scorer is not None and not scorer.reads_texts):
        return noise
    weights = scorer.settings.get("weights", {}) if scorer is not None else {}
    return max(noise, float(measured) * float(weights.get("ruler", 1.0)))


def _scorers(scored: pd.DataFrame, settings: Settings, database: Database) -> dict[str, Scorer]:
    """The scorers of the rows by name, without those that the settings no longer make."""
    found = {}
    for name in sorted(set(scored["scorer"])):
        try:
            found[name] = scorer_of(name, settings, database)
        except SettingsError:
            continue
    return found


def _observed(recordings: Recordings, window_ids: Sequence[str], scored: pd.DataFrame) -> pd.DataFrame:
    """Rewards of the windows, as given, and of those before them, as stored."""
    own = [scored[list(OBSERVED)]]
    hours = {hour_of(window_id): window_id for window_id in window_ids}
    earlier = {hour for one in hours for hour in range(one - HISTORY_HOURS, one)} - hours.keys()
    if earlier:
        some_hour, some_window = next(iter(hours.items()))
        wanted = sa.literal([shift_window(some_window, hour - some_hour) for hour in sorted(earlier)], ARRAY(sa.Text))
        statement = (
            current_rows(scored_trajectories)
            .with_only_columns(*(scored_trajectories.c[name] for name in OBSERVED))
            .where(
                scored_trajectories.c.window_id == sa.any_(wanted),
                scored_trajectories.c.provenance == sa.any_(sa.literal(list(REWARDED), ARRAY(sa.Text))),
            )
        )
        own.append(read_frame(recordings.ours, statement))
    filled = [frame for frame in own if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else own[0]
