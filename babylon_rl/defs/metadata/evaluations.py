"""What a person sees of one hour of an evaluation: in the simulated market, by replay, and of what was played."""

from collections.abc import Mapping
from typing import Any

from babylon_rl.defs.metadata.plots import bars, intervals
from babylon_rl.defs.metadata.stages import this_window
from babylon_rl.defs.metadata.tables import Rows, cell, counted, differing, dollars, figures, table

MARKET = ("baseline", "effect", "low", "high", "candidate_value", "baseline_value")
REPLAY = ("candidate", "baseline", "effect", "candidate_value", "baseline_value")
ONLINE = ("checkpoint_id", "agents", "decisions", "pnl_mean", "reward_mean", "valid", "drawdown", "latency_p95_ms")


def market_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """The checkpoint's comparisons with their intervals."""
    if not rows:
        return {"status": "no evaluation", "reason": "no update ended in this hour"}
    first = rows[0]
    above = [row["baseline"] for row in rows if (row["low"] or 0.0) > 0]
    return {
        "status": "compared",
        "reason": cell(first["reason"]),
        "candidate": first["candidate"],
        "clearly better than": ", ".join(map(str, above)) or "none",
        "comparisons": table(rows, MARKET),
        "reasons": table(rows, ("baseline", "reason")),
        "effect with 95 % interval, $": intervals(
            "dollars an agent and window more than the baseline",
            [(row["baseline"], row["effect"], row["low"], row["high"]) for row in rows],
        ),
        "candidate's P&L": f"{dollars(first['candidate_value'])} an agent and window",
        **figures({f"effect over {row['baseline']}, $": row["effect"] for row in rows}),
        **figures({"valid share": first["valid"], "windows played": first["windows"]}),
        **this_window("market_evaluations", window_id),
    }


def replay_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """The checkpoints' comparisons on the hour's prompts."""
    if not rows:
        reason = "no prompt of this hour has a value, or no checkpoint was trained on earlier hours only"
        return {"status": "no evaluation", "reason": reason}
    values = {row["candidate"]: row["candidate_value"] for row in rows}
    values |= {row["baseline"]: row["baseline_value"] for row in rows}
    return {
        "status": "replayed",
        "reason": cell(rows[0]["reason"]),
        "candidates": counted(row["candidate"] for row in rows),
        "comparisons": table(rows, REPLAY),
        "reasons": table(rows, ("candidate", "baseline", "reason")),
        "value, % of capital": bars(
            "expected reward alpha an agent", [(name, 100 * value) for name, value in values.items()]
        ),
        **figures({"prompts": rows[0]["decisions"], "prompts without a value": rows[0]["unvalued"]}),
        **this_window("replay_evaluations", window_id),
    }


def online_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """What each checkpoint did."""
    if not rows:
        return {"status": "no checkpoint", "reason": "no call of this hour has its checkpoint recorded"}
    best = max(rows, key=lambda row: row["pnl_mean"])
    several = f"{len(rows)} checkpoints answered" if len(rows) > 1 else f"{best['checkpoint_id']} answered"
    return {
        "status": "observed",
        "reason": cell(f"{several}; best {best['checkpoint_id']}: {dollars(best['pnl_mean'])} an agent"),
        "checkpoints": table(rows, (*ONLINE, *differing(rows, ("experiment_id",)))),
        "mean P&L, $": bars("dollars an agent", [(row["checkpoint_id"], row["pnl_mean"]) for row in rows]),
        **({"experiment": rows[0]["experiment_id"]} if rows[0]["experiment_id"] else {}),
        **figures({"agents": sum(row["agents"] for row in rows), "decisions": sum(row["decisions"] for row in rows)}),
        **this_window("online_evaluations", window_id),
    }
