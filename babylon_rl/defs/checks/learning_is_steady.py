"""Check `learning_is_steady` on `trained_checkpoints`: whether the last update's batch raised an alarm."""

import dagster as dg
import msgspec

from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.models import alarms_table
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.training.alarm_log import newest_alarms


@dg.asset_check(
    asset="trained_checkpoints",
    description="The last update's batch was not one-sided, all HOLD, malformed, overtrading or without spread.",
)
@typed_failures()
def learning_is_steady(database: DatabaseResource) -> dg.AssetCheckResult:
    with database.open().connect() as connection:
        window_id, alarms = newest_alarms(connection)
    return dg.AssetCheckResult(
        passed=not alarms,
        severity=dg.AssetCheckSeverity.WARN,
        description=", ".join(f"{a.kind} ({a.detail}): {a.response}" for a in alarms) or None,
        metadata={
            "update": window_id or "No update yet.",
            "alarms": alarms_table([msgspec.structs.asdict(alarm) for alarm in alarms]),
        },
    )
