"""Attaches to each partition of a run what a person sees of its own rows, and to none what belongs to another."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from babylon_rl.defs.metadata.tables import Rows

# A window and its rows in, its metadata out; the rows may be none. `status` and `reason` are always among it.
Describe = Callable[[str, Rows], Mapping[str, Any]]


def describe_windows(
    context: dg.AssetExecutionContext, window_ids: Sequence[str], frame: pd.DataFrame, describe: Describe
) -> dict[str, Any]:
    """Describe each window in its own partition; returns what belongs into the output's metadata, shared by all.

    Dagster shows what is shared above what is a partition's own, and stores it with each partition, so it is short.
    `status` and `reason` stand in it for their place alone: each window has its own.
    """
    rows: dict[Hashable, list[Mapping[str, Any]]] = {}
    for row in frame.to_dict("records"):
        # pandas says NaN for what is missing in a column of texts or numbers.
        known = {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
        rows.setdefault(row["window_id"], []).append(known)
    for window_id in window_ids:
        own = rows.get(window_id, [])
        context.add_asset_metadata({**describe(window_id, own), "dagster/row_count": len(own)}, partition_key=window_id)
    return {"status": "", "reason": ""}
