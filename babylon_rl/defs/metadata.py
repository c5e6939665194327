"""What a person sees beside a materialization: tables and small plots made from the asset's own rows."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

MOST_ROWS = 200


def table(frame: pd.DataFrame, columns: Sequence[str]) -> dg.MetadataValue:
    """The columns as a Markdown table of at most `MOST_ROWS` rows; says how many more there are."""
    shown = frame.loc[:, list(columns)].head(MOST_ROWS)
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in shown.itertuples(index=False)]
    if len(frame) > MOST_ROWS:
        lines.append(f"\n{len(frame) - MOST_ROWS} more rows are in the table.")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    # Agents write what they like; a bar or a line break would end the cell.
    return str(value).replace("|", "\\|").replace("\n", " ")[:160]


def windows_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """Counts by status, agents and P&L a window, and the spread of P&L as a plot."""
    columns = (
        "window_id",
        "status",
        "reason",
        "agents",
        "usable",
        "rejected",
        "evaluation",
        "pnl_mean",
        "pnl_min",
        "pnl_max",
    )
    return {
        **_counts(frame, "status"),
        "windows": table(frame, columns),
        "P&L": _series_plot(frame, "pnl_mean", "pnl_min", "pnl_max", "P&L of agents, dollars"),
    }


def outcomes_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """Prices at the edges of the hour."""
    columns = ("window_id", "instrument", "kind", "open", "close", "change", "outcome", "settled", "source")
    return {**_counts(frame, "outcome"), "prices": table(frame, columns)}


def scores_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """Agents with P&L, reward, rank and reason."""
    shown = frame.assign(pnl=frame["features"].map(lambda f: f["window_pnl"])) if len(frame) else frame.assign(pnl=[])
    columns = ("window_id", "rank", "agent_id", "pnl", "reward", "reason", "provenance", "checkpoint")
    return {**_counts(frame, "provenance"), "agents": table(shown.sort_values(["window_id", "rank"]), columns)}


def groups_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """Sizes, spread, and who was left out and why."""
    left = [
        {"window_id": row.window_id, **entry} for row in frame.itertuples(index=False) for entry in (row.left_out or [])
    ]
    members = [
        {"window_id": row.window_id, **{k: member[k] for k in ("agent_id", "reward", "advantage", "checkpoint")}}
        for row in frame.itertuples(index=False)
        for member in row.group["members"]
    ]
    found: dict[str, Any] = {
        **_counts(frame, "status"),
        "groups": table(frame, ("window_id", "status", "reason", "members", "reward_mean", "reward_spread")),
    }
    if members:
        found["members"] = table(pd.DataFrame(members), ("window_id", "agent_id", "reward", "advantage", "checkpoint"))
    if left:
        found["left out"] = table(pd.DataFrame(left), ("window_id", "trajectory_id", "agent_id", "reason"))
    return found


def checkpoints_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """State after each hour, and the curves of the last update's steps."""
    columns = (
        "window_id",
        "updated",
        "reason",
        "checkpoint_id",
        "parent_id",
        "step",
        "groups_trained",
        "groups_left_out",
    )
    found: dict[str, Any] = {"state": table(frame, columns), "updates": int(frame["updated"].sum())}
    checked = [metrics for metrics in frame["metrics"] if "health" in metrics]
    if checked:
        found |= _health(checked[-1]["health"])
        found["alarms"] = alarms_table([alarm for metrics in checked for alarm in metrics["alarms"]])
    updated = frame[frame["updated"]]
    if len(updated):
        last = updated.iloc[-1]
        steps = last["metrics"]["steps"]
        found["checkpoint"] = last["checkpoint_id"]
        found["parent"] = last["parent_id"]
        found["steps"] = table(pd.DataFrame(steps), list(steps[0]))
        found["curves"] = _plot(lambda axes: _curves(axes, steps))
    return found


def alarms_table(alarms: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """The alarms as a table, or that there are none."""
    if not alarms:
        return dg.MetadataValue.md("No alarm.")
    columns = ("window_id", "kind", "value", "limit_value", "detail", "response", "back_to", "exploration")
    return table(pd.DataFrame(list(alarms)), columns)


def _health(health: Mapping[str, Any]) -> dict[str, float]:
    """The figures that alarms look at, of the last update, so that Dagster draws them over time."""
    return {
        **{f"share {label}": float(share) for label, share in health["shares"].items()},
        "fees over P&L before them": float(health["fees"]),
        "share of groups without spread": float(health["no_spread"]),
    }


def evaluations_metadata(frame: pd.DataFrame) -> Mapping[str, Any]:
    """Each comparison with its interval, and the decision."""
    columns = (
        *("window_id", "split", "candidate", "baseline", "windows", "effect", "low", "high"),
        *("candidate_pnl", "baseline_pnl", "decision", "reason"),
    )
    if frame.empty:
        return {"comparisons": "No evaluation ended in these windows."}
    return {"comparisons": table(frame, columns), "effects": _plot(lambda axes: _effects(axes, frame))}


def _counts(frame: pd.DataFrame, column: str) -> dict[str, int]:
    return {f"{column} {name}": int(count) for name, count in frame[column].value_counts(dropna=True).items()}


def _plot(draw: Any) -> dg.MetadataValue:
    """A small PNG inside the Markdown; it lives in the event log, hence its size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 2.6), dpi=72)
    draw(axes)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")


def _series_plot(frame: pd.DataFrame, middle: str, low: str, high: str, label: str) -> dg.MetadataValue:
    known = frame[frame[middle].notna()].sort_values("window_id")
    if known.empty:
        return dg.MetadataValue.md("No P&L is recorded in these windows.")

    def draw(axes: Any) -> None:
        x = range(len(known))
        axes.vlines(x, known[low].astype(float), known[high].astype(float), color="0.8")
        axes.plot(x, known[middle].astype(float), ".-", linewidth=0.8)
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set_xlabel(f"windows from {known['window_id'].iloc[0]}")
        axes.set_ylabel(label, fontsize=8)

    return _plot(draw)


def _curves(axes: Any, steps: Sequence[Mapping[str, float]]) -> None:
    for name in ("loss", "entropy", "ratio", "grad_norm"):
        axes.plot(range(1, len(steps) + 1), [step[name] for step in steps], ".-", label=name)
    axes.set_xlabel("optimizer step")
    axes.legend(fontsize=7)


def _effects(axes: Any, frame: pd.DataFrame) -> None:
    shown = frame.reset_index(drop=True)
    error = [(shown["effect"] - shown["low"]).astype(float), (shown["high"] - shown["effect"]).astype(float)]
    axes.errorbar(shown["effect"].astype(float), range(len(shown)), xerr=error, fmt="o", capsize=3)
    axes.set_yticks(range(len(shown)), [f"{r.split}: over {r.baseline}" for r in shown.itertuples()], fontsize=7)
    axes.axvline(0, color="0.6", linewidth=0.6)
    axes.set_xlabel("dollars an agent and window, 95 % interval")
