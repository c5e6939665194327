"""What a person sees beside a materialization: bounded tables, small plots, and nothing that breaks the Markdown."""

import pandas as pd

from babylon_rl.defs.metadata import (
    MOST_ROWS,
    checkpoints_metadata,
    evaluations_metadata,
    groups_metadata,
    scores_metadata,
    table,
    windows_metadata,
)
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"
MOST_PLOT = 25_000


def text(value) -> str:
    return value.value if hasattr(value, "value") else str(value)


def plots(metadata) -> list[str]:
    return [text(value) for value in metadata.values() if "data:image/png;base64," in text(value)]


def windows_frame(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "window_id": [shift_window(FIRST, n) for n in range(count)],
            "status": "ready",
            "reason": "8 agents",
            **{name: 8 for name in ("agents", "usable", "rejected", "evaluation")},
            "pnl_mean": [float(n % 7) for n in range(count)],
            "pnl_min": -5.0,
            "pnl_max": 12.0,
        }
    )


def test_a_table_is_cut_at_a_bound_and_says_how_many_rows_more_there_are():
    said = text(table(pd.DataFrame({"n": range(MOST_ROWS + 7)}), ["n"]))
    assert f"| {MOST_ROWS - 1} |" in said and f"| {MOST_ROWS} |" not in said and "7 more rows" in said
    assert "more rows" not in text(table(pd.DataFrame({"n": range(MOST_ROWS)}), ["n"]))


def test_what_agents_wrote_cannot_break_out_of_its_cell():
    said = text(table(pd.DataFrame({"reason": ["a | b\n\n# c", "x" * 1000, None]}), ["reason"]))
    lines = said.splitlines()
    assert lines[2] == "| a \\| b  # c |" and len(lines[3]) < 200 and lines[4] == "|  |"


def test_a_range_of_a_thousand_windows_has_one_small_plot():
    (plot,) = plots(windows_metadata(windows_frame(1000)))
    assert len(plot) < MOST_PLOT


def test_windows_without_pnl_have_a_word_in_place_of_the_plot():
    metadata = windows_metadata(windows_frame(2).assign(pnl_mean=None, pnl_min=None, pnl_max=None))
    assert not plots(metadata) and "No P&L" in text(metadata["P&L"])


def test_agents_are_shown_by_window_and_rank_with_pnl_reward_and_reason():
    rows = [
        {"window_id": FIRST, "rank": rank, "agent_id": f"a{rank}", "features": {"window_pnl": 10.0 - rank},
         "reward": 0.5, "reason": f"earned {rank}", "provenance": "logged", "checkpoint": "run@0"}
        for rank in (2, 1)
    ]  # fmt: skip
    said = text(scores_metadata(pd.DataFrame(rows))["agents"])
    assert said.index("| a1 | 9 | 0.5 | earned 1 |") < said.index("| a2 | 8 | 0.5 | earned 2 |")


def test_no_scores_are_an_empty_table():
    columns = ["window_id", "rank", "agent_id", "features", "reward", "reason", "provenance", "checkpoint"]
    assert "agent_id" in text(scores_metadata(pd.DataFrame(columns=columns))["agents"])


def test_groups_show_advantages_and_who_was_left_out_and_why():
    member = {"agent_id": "a1", "reward": 0.1, "advantage": 0.25, "checkpoint": "run@0"}
    left = {"trajectory_id": "t2", "agent_id": "a2", "reason": "no_text: nothing recorded"}
    row = {"window_id": FIRST, "status": "trainable", "reason": "2 members", "members": 1, "reward_mean": 0.1,
           "reward_spread": 0.0, "group": {"members": [member]}, "left_out": [left]}  # fmt: skip
    metadata = groups_metadata(pd.DataFrame([row]))
    assert "| a1 | 0.1 | 0.25 | run@0 |" in text(metadata["members"])
    assert "| t2 | a2 | no_text: nothing recorded |" in text(metadata["left out"])
    assert metadata["status trainable"] == 1


def checkpoint_row(**changes) -> dict:
    row = {"window_id": FIRST, "updated": False, "reason": "window 1 of 16", "checkpoint_id": "run@0",
           "parent_id": None, "step": 0, "groups_trained": 0, "groups_left_out": 0, "metrics": {}}  # fmt: skip
    return {**row, **changes}


def test_an_update_shows_its_parent_and_the_curves_of_its_steps():
    steps = [{"loss": 0.1, "entropy": 1.0, "ratio": 1.0, "grad_norm": 0.5, "clipped": 0.0}] * 4
    rows = [
        checkpoint_row(),
        checkpoint_row(updated=True, checkpoint_id="run@1", parent_id="run@0", metrics={"steps": steps}),
    ]
    metadata = checkpoints_metadata(pd.DataFrame(rows))
    assert (metadata["updates"], metadata["checkpoint"], metadata["parent"]) == (1, "run@1", "run@0")
    (plot,) = plots(metadata)
    assert len(plot) < MOST_PLOT


def test_hours_without_an_update_say_why_and_have_no_curves():
    metadata = checkpoints_metadata(pd.DataFrame([checkpoint_row()]))
    assert "window 1 of 16" in text(metadata["state"]) and not plots(metadata) and metadata["updates"] == 0


def test_an_update_shows_what_the_batch_looked_like_and_its_alarms():
    health = {"shares": {"SELL": 0.97, "BUY": 0.03}, "fees": 0.04, "no_spread": 0.0}
    alarm = {"window_id": FIRST, "kind": "one_sided", "value": 0.97, "limit_value": 0.89, "detail": "SELL 97 %",
             "response": "step_back", "back_to": "run@1", "exploration": 0.3}  # fmt: skip
    metadata = checkpoints_metadata(pd.DataFrame([checkpoint_row(metrics={"health": health, "alarms": [alarm]})]))
    assert "| one_sided | 0.97 | 0.89 | SELL 97 % | step_back | run@1 | 0.3 |" in text(metadata["alarms"])
    assert (metadata["share SELL"], metadata["share BUY"]) == (0.97, 0.03)
    quiet = checkpoints_metadata(pd.DataFrame([checkpoint_row(metrics={"health": health, "alarms": []})]))
    assert text(quiet["alarms"]) == "No alarm."
    assert "alarms" not in checkpoints_metadata(pd.DataFrame([checkpoint_row()]))


def test_evaluations_show_effect_interval_and_decision_and_none_is_said():
    row = {"window_id": FIRST, "split": "test", "candidate": "run@2", "baseline": "run@0", "windows": 30, "effect": 4.5,
           "low": 1.25, "high": 7.75, "candidate_pnl": 6.0, "baseline_pnl": 1.5, "decision": "promote",
           "reason": "r"}  # fmt: skip
    metadata = evaluations_metadata(pd.DataFrame([row]))
    assert "| 4.5 | 1.25 | 7.75 | 6 | 1.5 | promote |" in text(metadata["comparisons"])
    (plot,) = plots(metadata)
    assert len(plot) < MOST_PLOT
    assert "No evaluation" in text(evaluations_metadata(pd.DataFrame(columns=list(row)))["comparisons"])
