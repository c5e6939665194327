"""How checks are put together: what each looks for, which windows it looks at, and what a person is shown.

All checks of an asset are one step. Measured over the first four data assets (processor time for one window, for 100):
without checks 0.13 and 1.1 s, in one step an asset 0.32 and 2.4 s, in a step a check 0.38 and 3.9 s. Within the asset's
own step they take 0.30 and 1.6 s, and could not be run without materializing it.

A run over a range stores no partition with a check's result, so the windows concerned are in the metadata.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
from psycopg import sql

from babylon_rl.database.connect import Recordings
from babylon_rl.database.window_rows import open_failures
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.tables import table
from babylon_rl.defs.partitions import ONE, RANGE_FIRST, RANGE_LAST
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.staleness import stale_rows
from babylon_rl.windows import window_range

MOST_WINDOWS = 200
MOST_ERRORS = 5

# Rows that are not as they should be, `window_id` among their columns, of the given windows.
Find = Callable[[Recordings, Sequence[str]], pd.DataFrame]
FindInOurs = Callable[[psycopg.Connection, Sequence[str]], pd.DataFrame]


@dataclass(frozen=True)
class Check:
    """What is looked for, and what to do where it is found. `corruption`: nothing may be built on it, so it blocks."""

    name: str
    description: str
    find: Find
    remedy: str
    corruption: bool = False
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN


def in_ours(find: FindInOurs) -> Find:
    """What looks at our own tables alone."""
    return lambda recordings, window_ids: find(recordings.ours, window_ids)


def checks_of(asset: str, *checks: Check) -> dg.AssetChecksDefinition:
    """The asset's checks as one step; each can be chosen by itself in the UI."""
    specs = [dg.AssetCheckSpec(c.name, asset=asset, description=c.description, blocking=c.corruption) for c in checks]

    @dg.multi_asset_check(name=f"{asset}_checks", specs=specs, can_subset=True)
    def look(context: dg.AssetCheckExecutionContext, database: DatabaseResource) -> Iterator[dg.AssetCheckResult]:
        chosen = {key.name for key in context.selected_asset_check_keys}
        with typed_failures(), database.open().recordings() as recordings:
            window_ids = run_windows(context.run.tags)
            if window_ids is None:
                window_ids = newest_windows(recordings.ours, asset)
            results = [
                result(asset, check, check.find(recordings, window_ids), len(window_ids))
                for check in checks
                if check.name in chosen
            ]
        yield from results

    return look


def run_windows(tags: Mapping[str, str]) -> list[str] | None:
    """Windows of the run with these tags; None for a run without partitions, as of checks that are run alone."""
    if ONE in tags:
        return [tags[ONE]]
    first, last = tags.get(RANGE_FIRST), tags.get(RANGE_LAST)
    return list(window_range(first, last)) if first and last else None


def newest_windows(connection: psycopg.Connection, asset: str) -> list[str]:
    """The asset's newest windows, at most `MOST_WINDOWS`."""
    query = sql.SQL(
        "SELECT DISTINCT window_id FROM {} WHERE superseded_at IS NULL ORDER BY window_id DESC LIMIT %s"
    ).format(sql.Identifier("babylon_rl", asset))
    return sorted(window_id for (window_id,) in connection.execute(query, (MOST_WINDOWS,)))


def result(asset: str, check: Check, found: pd.DataFrame, looked_at: int) -> dg.AssetCheckResult:
    """Passed where nothing was found; else the windows, the rows, and what to do."""
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(asset),
        check_name=check.name,
        passed=found.empty,
        severity=dg.AssetCheckSeverity.ERROR if check.corruption else check.severity,
        description=None if found.empty else check.remedy,
        metadata={"windows looked at": looked_at, **shown(check, found)},
    )


def shown(check: Check, found: pd.DataFrame) -> dict[str, Any]:
    """What a person reads of the rows that were found; nothing where there are none."""
    if found.empty:
        return {}
    concerned = list(dict.fromkeys(found["window_id"]))
    # A table's cell cuts what is long, and an error's remedy stands at its end.
    told = {"errors": dg.MetadataValue.md("\n\n".join(found["detail"].head(MOST_ERRORS)))} if "detail" in found else {}
    return {
        **told,
        "windows concerned": len(concerned),
        "window_ids": dg.MetadataValue.json(concerned[:MOST_WINDOWS]),
        "rows": table(found.to_dict("records"), found.columns),
        "what to do": check.remedy,
    }


def all_windows_computed(asset: str) -> Check:
    """Whether no window of the asset is waiting to be mended, whichever run failed there."""
    return Check(
        "all_windows_computed",
        "No window's computation failed and is still to be mended; the other windows of its run were written.",
        lambda recordings, _: open_failures(recordings.ours, [asset]).drop(columns="asset"),
        f"Read the error, mend its cause (its message says how), and materialize {asset} and what comes after it for "
        "these windows. Until then their earlier rows stand, and later assets leave these windows out.",
        severity=dg.AssetCheckSeverity.ERROR,
    )


def rows_are_current(asset: str) -> Check:
    """Whether what the asset's rows were computed from is still current, in all windows: staleness needs no run."""
    return Check(
        "rows_are_current",
        "The rows were computed from what is current: the window, its outcomes, scores and groups, the parent.",
        lambda recordings, _: stale_rows(recordings.ours, [asset])[["window_id", "why"]],
        f"Materialize {asset} for these windows, the earliest first, after the assets that come before it.",
    )
