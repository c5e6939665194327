"""What a person sees of a window's scores: its agents, and the best run beside the worst with what the market did."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from babylon_rl.defs.metadata.plots import INLINE, bars
from babylon_rl.defs.metadata.stages import this_window
from babylon_rl.defs.metadata.tables import Rows, cell, counted, differing, dollars, figures, table
from babylon_rl.defs.metadata.windows import Describe
from babylon_rl.scoring.compare_runs import best_and_worst, instruments_to_compare, market_then, not_done

AGENT = ("rank", "agent_id", "pnl", "reward", "reason")
# Shown where a window has any: what a judge said, and what could have been had.
PERHAPS = ("process_score", "hindsight_score", "best", "regret", "injection_signs")
# Characters of a cell of the side-by-side, from the longest to what surely stands inline.
CELLS = (120, 60, 40)


def scores_described(outcomes: pd.DataFrame) -> Describe:
    """`scores_metadata` for windows of these rows of `market_outcomes`."""
    by_window = dict(iter(outcomes.groupby("window_id"))) if len(outcomes) else {}

    def describe(window_id: str, rows: Rows) -> Mapping[str, Any]:
        own = by_window.get(window_id)
        return scores_metadata(window_id, rows, [] if own is None else own.to_dict("records"))

    return describe


def scores_metadata(window_id: str, rows: Rows, outcomes: Rows = ()) -> Mapping[str, Any]:
    """Agents with P&L, reward, rank and reason, the best first, the best beside the worst, and P&L as bars."""
    if not rows:
        return {"status": "no scores", "reason": "no usable run was recorded; `windows` says why"}
    agents = [_agent(row) for row in sorted(rows, key=lambda row: row["rank"])]
    pnls = [agent["pnl"] for agent in agents]
    rewards = [agent["reward"] for agent in agents]
    there = [name for name in PERHAPS if any(agent[name] is not None for agent in agents)]
    if any(agent.get("outcome_score") not in (None, agent["reward"]) for agent in agents):
        there.insert(0, "outcome_score")
    return {
        "status": "scored",
        "reason": f"{len(agents)} runs, rewards from {min(rewards):+.5f} to {max(rewards):+.5f}",
        **_extremes(agents, outcomes),
        "agents by reward": table(agents, (*AGENT, *there, *differing(agents, ("provenance", "checkpoint")))),
        "P&L by agent, $": bars("P&L by agent, dollars", [(agent["agent_id"], agent["pnl"]) for agent in agents]),
        "provenance": counted(agent["provenance"] for agent in agents),
        "checkpoint that played": counted(agent["checkpoint"] or "none recorded" for agent in agents),
        "scorer": counted(f"{agent['scorer']} {agent['scorer_version']}" for agent in agents),
        **figures(
            {
                "scored": len(agents),
                "P&L mean": sum(pnls) / len(pnls),
                "reward mean": sum(rewards) / len(rewards),
                "reward spread": max(rewards) - min(rewards),
                "regret mean": _mean(agent["regret"] for agent in agents),
                "runs with injection signs": sum(bool(agent["injection_signs"]) for agent in agents) or None,
            }
        ),
        **this_window("scored_trajectories", window_id),
    }


def _agent(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what its table shows beside its columns; `regret`: what the best would have earned more."""
    best = (row.get("counterfactuals") or {}).get("best")
    # Counterfactuals are rewards of alpha, which the outcome score is under every scorer.
    earned = row.get("outcome_score")
    regret = best - earned if best is not None and earned is not None else None
    signs = ", ".join(map(str, row.get("injection_signs") or ())) or None
    given = {name: row.get(name) for name in PERHAPS}
    return {**given, **row, "pnl": row["features"]["window_pnl"], "best": best, "regret": regret,
            "injection_signs": signs}  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _extremes(agents: Sequence[Mapping[str, Any]], outcomes: Rows) -> dict[str, Any]:
    """The best and the worst run with their reasons, and both side by side; nothing where all rewards are equal."""
    pair = best_and_worst(agents)
    if pair is None or pair[0]["reward"] == pair[1]["reward"]:
        return {}
    told = [cell(f"{run['agent_id']}: {run['reason']}") for run in pair]
    return {"best": told[0], "worst": told[1], "best beside worst": dg.MetadataValue.md(_side_by_side(pair, outcomes))}


def _side_by_side(pair: tuple[Mapping[str, Any], Mapping[str, Any]], outcomes: Rows) -> str:
    """A Markdown table short enough to stand inline. What agents wrote is in it as plain words alone."""
    traded = [run["features"].get("notional") or {} for run in pair]
    names = instruments_to_compare(*traded)
    looked = (names[0] or names[1], names[1] or names[0])
    by_name = {str(row["instrument"]): row for row in outcomes}
    lines = [("", [f"{run['rank']}. {run['agent_id']}" for run in pair])]
    lines.append(("did", [str(run["features"].get("acted", "")) for run in pair]))
    lines.append(("traded", [_traded(run["features"], name) for run, name in zip(pair, names, strict=True)]))
    if any(looked):
        lines.append(("market then", [market_then(name, by_name) for name in looked]))
    lines.append(("earned", [f"{dollars(run['pnl'])}, reward {run['reward']:+.5f}" for run in pair]))
    lines.append(("not done", [not_done(run.get("counterfactuals"), 3) for run in pair]))
    shown = [(name, cells) for name, cells in lines if not name or any(cells)]
    for longest in CELLS:
        rows = [f"| {name} | {' | '.join(_plain(one, longest) for one in cells)} |" for name, cells in shown]
        markdown = "\n".join([rows[0], "|---|---|---|", *rows[1:]])
        if len(markdown) < INLINE:
            break
    return markdown


def _traded(features: Mapping[str, Any], instrument: str | None) -> str:
    if instrument is None:
        return ""
    signed = (features.get("exposure") or {}).get(instrument, 0.0)
    return f"{dollars(signed)} of {instrument}"


def _plain(text: str, longest: int) -> str:
    """Words without anything that Markdown or HTML reads: letters, digits and a few marks, cut."""
    known = "".join(mark if mark.isalnum() or mark in " .,:+-$%()?" else " " for mark in text)
    clean = " ".join(re.sub(r"%(?=\w)", " ", known).split())
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"
