"""Attaches to each partition of a run what a person sees of its own rows, and to none what belongs to another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from babylon_rl.defs.metadata.tables import Rows

# A window and its rows in, its metadata out; the rows may be none. `status` and `reason` are always among it.
Describe = Callable[[str, Rows], Mapping[str, Any]]


def describe_windows(
    context: dg.AssetExecutionContext, window_ids: Sequence[str], frames: Iterable[pd.DataFrame], describe: Describe
) -> dict[str, Any]:
    """Describe each window in its own partition; `frames`: a window's rows are all in one.

    Returns what belongs into the output's metadata, which all share. Dagster shows that above what is a partition's
    own, and stores it with each partition, so it is short.
    `status` and `reason` stand in it for their place alone: each window has its own.
    """
    left = dict.fromkeys(window_ids)
    for frame in frames:
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in frame.to_dict("records"):
            # pandas says NaN for what is missing in a column of texts or numbers.
            known = {n: None if isinstance(value, float) and value != value else value for n, value in row.items()}
            rows.setdefault(str(row["window_id"]), []).append(known)
        for window_id, own in rows.items():
            del left[window_id]
            _describe(context, window_id, own, describe)
    for window_id in left:
        _describe(context, window_id, [], describe)
    return {"status": "", "reason": ""}


def _describe(context: dg.AssetExecutionContext, window_id: str, rows: Rows, describe: Describe) -> None:
    context.add_asset_metadata({**describe(window_id, rows), "dagster/row_count": len(rows)}, partition_key=window_id)
