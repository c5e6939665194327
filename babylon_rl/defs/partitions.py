"""The one partitions definition that all assets share, and what they share beside it."""

import warnings
from collections.abc import Sequence
from typing import Any

import dagster as dg

from babylon_rl.settings import get_settings
from babylon_rl.windows import WINDOW_FORMAT, parse_window_id

# Dagster is pinned; that an argument is still in beta is no news to whoever runs a command.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

HOURS = dg.HourlyPartitionsDefinition(
    start_date=parse_window_id(get_settings().partitions_start), fmt=WINDOW_FORMAT, timezone="UTC", end_offset=0
)

RECORDED = dg.AssetKey("recorded_trajectories")

ONE, RANGE_FIRST, RANGE_LAST = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)

OWNERS = ["team:babylon_rl"]

# What every asset of the graph is declared with. One run for a whole range: a run of its own costs seconds a window.
SHARED: dict[str, Any] = {
    "partitions_def": HOURS,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "io_manager_key": "postgres",
    "owners": OWNERS,
}


def range_tags(first: str, last: str) -> dict[str, str]:
    """Tags of one run over the windows from first to last, both included."""
    return {RANGE_FIRST: first, RANGE_LAST: last}


def window_ids(context: dg.AssetExecutionContext) -> Sequence[str]:
    """Windows of the run. dg.Failure for a key that is off the hour: Dagster would silently take the next hour's."""
    for tag in (ONE, RANGE_FIRST, RANGE_LAST):
        if tag in context.run.tags:
            _checked(context.run.tags[tag])
    return [_checked(key) for key in context.partition_keys]


def _checked(window_id: str) -> str:
    try:
        parse_window_id(window_id)
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    return window_id
