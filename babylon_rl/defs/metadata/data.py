"""What a person sees of one window of a data asset. Each function takes the window's rows, which may be none."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import psycopg

from babylon_rl.defs.metadata.plots import bars
from babylon_rl.defs.metadata.stages import link, this_window
from babylon_rl.defs.metadata.tables import Rows, cell, counted, differing, dollars, figures, table
from babylon_rl.defs.metadata.windows import Describe
from babylon_rl.training.ancestry import trained_into

NO_ROW = {"status": "no row", "reason": "the window was not computed in this run"}
COUNTS = ("agents", "recorded", "usable", "trainable", "rejected", "misnamed")
OUTCOME = ("instrument", "open", "close", "change", "outcome", "settled", "source")
MEMBER = ("agent_id", "reward", "baseline", "advantage", "answer")
ALARM = ("kind", "detail", "value", "limit")
MOST_TRAINED = 6  # checkpoints that are named
LEFT_OUT = ("agent_id", "reason", "trajectory_id")


def windows_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """Status and reason, the counts, and how the agents' P&L spreads."""
    if not rows:
        return dict(NO_ROW)
    row = rows[0]
    return {
        "status": row["status"],
        "reason": row["reason"],
        "P&L of agents": _spread(row),
        "rejected by reason": by_reason(row["reasons"]),
        "not trainable by reason": by_reason(row["not_trainable"]),
        **figures({name: row[name] for name in COUNTS}),
        **figures({f"P&L {name}": row[f"pnl_{name}"] for name in ("mean", "std", "min", "max")}),
        **this_window("windows", window_id),
    }


def by_reason(counts: Mapping[str, int]) -> str:
    """How many rows each reason refused, the most frequent first: `3 cut_off_json, 1 no_pnl`."""
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in found) or "none"


def _spread(row: Mapping[str, Any]) -> str:
    if row["pnl_mean"] is None:
        return "no P&L is known"
    return f"mean {dollars(row['pnl_mean'])}, from {dollars(row['pnl_min'])} to {dollars(row['pnl_max'])}"


def outcomes_metadata(window_id: str, rows: Rows) -> Mapping[str, Any]:
    """Prices at the edges of the hour, and each ticker's change."""
    if not rows:
        return {"status": "quiet", "reason": "nothing was traded or resolved in this hour"}
    provisional = [row["instrument"] for row in rows if not row["settled"]]
    tickers = [row for row in rows if row["kind"] == "ticker" and row["change"] is not None]
    changes = [(row["instrument"], 100 * row["change"]) for row in tickers]
    settled = f"all {len(rows)} instruments are settled"
    return {
        "status": "provisional" if provisional else "settled",
        "reason": cell(f"not settled: {', '.join(map(str, provisional))}") if provisional else settled,
        "prices": table(rows, (*OUTCOME, *differing(rows, ["question"]))),
        **({"change of tickers, %": bars("change of tickers in per cent", changes)} if changes else {}),
        **figures({"instruments": len(rows), "unsettled": len(provisional)}),
        **figures({"market move %": sum(change for _, change in changes) / len(changes) if changes else None}),
        **this_window("market_outcomes", window_id),
    }


def groups_described(connection: psycopg.Connection, window_ids: Sequence[str]) -> Describe:
    """`groups_metadata` with the checkpoints that are trained on each window by now."""
    trained = trained_into(connection, window_ids)
    return lambda window_id, rows: groups_metadata(window_id, rows, trained.get(window_id, ()))


def groups_metadata(window_id: str, rows: Rows, trained: Sequence[tuple[str, str]] = ()) -> Mapping[str, Any]:
    """The group's members with their baselines and advantages, who was left out and why, and what the window shows."""
    if not rows:
        return dict(NO_ROW)
    row = rows[0]
    members = [
        {**member, "baseline": member.get("baseline", 0.0), "answer": _answer(member)}
        for member in row["group"]["members"]
    ]
    members.sort(key=lambda member: -member["advantage"])
    left_out, alarms = row["left_out"] or [], row.get("alarms") or []
    found: dict[str, Any] = {"status": row["status"], "reason": row["reason"]}
    if members:
        found["members by advantage"] = table(members, (*MEMBER, *differing(members, ["checkpoint"])))
        found["advantage by agent"] = bars(
            "advantage by agent", [(member["agent_id"], member["advantage"]) for member in members], "{:+.2g}"
        )
    if trained:
        named = [link("trained_checkpoints", ended, checkpoint) for checkpoint, ended in trained[:MOST_TRAINED]]
        more = [f"{len(trained) - MOST_TRAINED} more"] if len(trained) > MOST_TRAINED else []
        found["trained into"] = dg.MetadataValue.md(", ".join([*named, *more]))
    found["left out"] = table(left_out, LEFT_OUT) if left_out else "nobody"
    reasons = counted(str(one["reason"]).partition(":")[0] for one in left_out)
    return {
        **found,
        **({"left out by reason": reasons} if left_out else {}),
        "alarms": table(alarms, ALARM) if alarms else "none",
        "baselines from": _history(row.get("settings")),
        "judge": row.get("judge_verdict") or "none asked",
        "checkpoint that played": counted(member["checkpoint"] for member in members) or "none",
        "scorer": row["scorer"],
        "group digest": row["group_digest"][:12],
        **figures(
            {
                "members": row["members"],
                "members left out": len(left_out),
                "reward mean": row["reward_mean"],
                "reward spread": row["reward_spread"],
                "agent share": row.get("agent_share"),
                "alarms raised": len(alarms),
            }
        ),
        **this_window("art_groups", window_id),
    }


def _history(made_with: Mapping[str, Any] | None) -> str:
    """Which windows the agents' baselines rest on."""
    made_with = made_with or {}
    history = made_with.get("history") or {}
    if made_with.get("agent_baseline") == "none" or not history.get("windows"):
        return "none"
    if history["shrinkage"] is None:
        return f"{history['windows']} windows up to {history['last']}, in which agents do not differ"
    return f"{history['windows']} windows up to {history['last']}, shrinkage {history['shrinkage']:.3g}"


def _answer(member: Mapping[str, Any]) -> str:
    """What the member answered, as trained on: one decision verbatim, of several how many."""
    decisions = member.get("decisions") or []
    return decisions[0]["response"] if len(decisions) == 1 else f"{len(decisions)} decisions"
