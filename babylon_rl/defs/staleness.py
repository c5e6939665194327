"""Sensor `staleness`: shows on later assets, for which nothing runs, that what they were computed from has changed."""

import hashlib
import json

import dagster as dg
import pandas as pd

from babylon_rl.defs.automation import SENSOR_STATUS
from babylon_rl.defs.checks.results import rows_are_current, shown
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.staleness import ASSETS, stale_rows


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=SENSOR_STATUS,
    description="Reports check rows_are_current of each asset whose stale windows are others than at the last look.",
)
def staleness(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult | dg.SkipReason:
    """The cursor holds a digest of each asset's stale windows, so that an unchanged state reports nothing."""
    with database.open().connect() as connection:
        stale = stale_rows(connection)
    found = {asset: stale.loc[stale["asset"] == asset, ["window_id", "why"]] for asset in ASSETS}
    digests = {asset: _digest(rows) for asset, rows in found.items()}
    before = json.loads(context.cursor) if context.cursor else {}
    changed = [asset for asset in ASSETS if before.get(asset) != digests[asset]]
    if not changed:
        return dg.SkipReason(f"{len(stale)} stale windows, as before.")
    return dg.SensorResult(
        asset_events=[_evaluation(asset, found[asset]) for asset in changed],
        # A tick that requests no run is shown as skipped, with this.
        skip_reason=f"{len(stale)} stale windows; reported on {', '.join(changed)}.",
        cursor=json.dumps(digests),
    )


def _digest(rows: pd.DataFrame) -> str:
    return hashlib.sha256(json.dumps(rows.values.tolist()).encode()).hexdigest()


def _evaluation(asset: str, rows: pd.DataFrame) -> dg.AssetCheckEvaluation:
    check = rows_are_current(asset)
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=check.name,
        passed=rows.empty,
        severity=check.severity,
        description=None if rows.empty else check.remedy,
        metadata=shown(check, rows),
    )
