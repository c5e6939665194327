"""From a window of one stage to the same window of the others: links that a person follows."""

import dagster as dg

STAGES = (
    "windows",
    "market_outcomes",
    "scored_trajectories",
    "judge_calibration",
    "art_groups",
    "trained_checkpoints",
)


def link(asset: str, window_id: str, text: str | None = None) -> str:
    """A Markdown link to the partition's page."""
    return f"[{text or asset}](/assets/{asset}?view=partitions&partition={window_id})"


def this_window(asset: str, window_id: str) -> dict[str, dg.MetadataValue]:
    """Links to the window in the other stages, in the order of the data's way."""
    links = " · ".join(link(other, window_id) for other in STAGES if other != asset)
    return {"same window in": dg.MetadataValue.md(links)}
