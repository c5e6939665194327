"""The readiness sensor."""

from datetime import UTC, datetime

import dagster as dg
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import windows
from babylon_rl.defs.jobs import materialize_windows
from babylon_rl.defs.partitions import HOURS, RECORDED
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.recording.reader import list_windows, read_window
from babylon_rl.settings import get_settings
from babylon_rl.windows import window_of

MOST_REQUESTS = 50  # a tick; each request looks for its run key in the run storage
FROM_THE_START = "0"  # before every window id; an empty cursor would leave the one before in place


@dg.sensor(
    job=materialize_windows,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Requests each closed window with enough agents, again when what agents wrote there has changed.",
)
def window_readiness(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult:
    """The run key carries the window's revision: the same data give no second run, late data do."""
    requests, seen = [], []
    with database.open().connect() as connection:
        # The cursor only spreads the work over ticks: it goes round, and late data are found on the next round.
        looked_at = _closed_windows(connection, after=context.cursor or FROM_THE_START)[:MOST_REQUESTS]
        known = _materialized_revisions(connection, looked_at)
        for window_id in looked_at:
            revision = read_window(connection, window_id).revision
            if known.get(window_id) != revision:
                requests.append(dg.RunRequest(run_key=f"{window_id}:{revision}", partition_key=window_id))
                seen.append(dg.AssetObservation(RECORDED, partition=window_id, metadata={"revision": revision}))
    cursor = looked_at[-1] if len(looked_at) == MOST_REQUESTS else FROM_THE_START
    return dg.SensorResult(run_requests=requests, asset_events=seen, cursor=cursor)


def _closed_windows(connection: psycopg.Connection, after: str) -> list[str]:
    """Windows that are over, have enough agents and are partitions, in order; one outside would fail the whole tick."""
    listed = list_windows(connection)
    first, now = HOURS.get_first_partition_key() or "", window_of(datetime.now(UTC))
    enough = listed["agents"] >= get_settings().min_agents_per_window
    ids = listed["window_id"]
    return ids[enough & (ids >= first) & (ids < now) & (ids > after)].tolist()


def _materialized_revisions(connection: psycopg.Connection, window_ids: list[str]) -> dict[str, str]:
    """Revision under which each window was last materialized; one that was still open then is to be done again."""
    rows = read_frame(connection, current_rows(windows, window_ids))
    return {row.window_id: row.revision for row in rows.itertuples() if row.status != "open"}
