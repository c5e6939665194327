import pandas as pd
import pytest

from babylon_rl.database.tables import metadata
from babylon_rl.errors import EmptyWindowError
from babylon_rl.evaluation.compare import choose_candidate, comparison_rows, info_row, window_pnl
from babylon_rl.evaluation.gates import decide


def evaluation(**arms):
    """Two agents a window; an arm's figures are the windows' means."""
    rows = [
        (f"w{number}", arm, f"agent-{agent}", pnl + shift, 1000.0, agent == 0)
        for arm, figures in arms.items()
        for number, pnl in enumerate(figures)
        for agent, shift in enumerate((-1.0, 1.0))
        if pnl is not None
    ]
    return pd.DataFrame(rows, columns=["window_id", "arm", "agent_id", "pnl", "capital", "valid"])


def test_a_windows_figure_is_the_mean_of_its_agents():
    assert window_pnl(evaluation(a=[1.0, 3.0], b=[0.0, 0.0]), "a").to_dict() == {"w0": 1.0, "w1": 3.0}
    with pytest.raises(EmptyWindowError, match="'c'"):
        window_pnl(evaluation(a=[1.0]), "c")


def test_the_candidate_has_the_best_mean_over_the_windows_that_all_share():
    frame = evaluation(**{"demo@1": [1.0, 1.0, 90.0], "demo@2": [2.0, 2.0, None], "demo@3": [0.0, 1.0, 0.0]})
    arm, table = choose_candidate(frame)
    assert arm == "demo@2"
    assert list(table["arm"]) == ["demo@1", "demo@2", "demo@3"]
    assert set(table["windows"]) == {2} and list(table["pnl"]) == [1.0, 2.0, 0.5] and set(table["valid"]) == {0.5}


def test_a_tie_goes_to_the_earlier_step():
    frame = evaluation(**{"demo@10": [1.0, 2.0], "demo@9": [2.0, 1.0]})
    assert choose_candidate(frame)[0] == "demo@9"
    assert choose_candidate(frame, ["demo@10", "demo@9"])[0] == "demo@10"


def test_fixed_policies_are_no_candidates_where_candidates_are_named():
    frame = evaluation(**{"demo@1": [1.0, 2.0], "always_buy": [9.0, 9.0]})
    arm, table = choose_candidate(frame, ["demo@1"])
    assert arm == "demo@1" and len(table) == 1


def test_candidates_without_shared_windows_cannot_be_compared():
    with pytest.raises(EmptyWindowError):
        choose_candidate(evaluation(a=[1.0, None], b=[None, 1.0]))
    with pytest.raises(EmptyWindowError):
        choose_candidate(evaluation(), [])


def decision(candidate):
    frame = evaluation(c=candidate, s=[0.0, 0.1, 0.0, 0.1], always_buy=[0.2, 0.1, 0.2, 0.1], hold=[0.0] * 4)
    pnl = {arm: window_pnl(frame, arm) for arm in ("c", "s", "always_buy", "hold")}
    return decide(pnl["c"], pnl["s"], {"always_buy": pnl["always_buy"], "hold": pnl["hold"]}, 0)


@pytest.mark.parametrize(("figures", "verdict"), [([3.0, 3.1, 3.0, 3.2], "promote"), ([0.0, 0.1, 0.1, 0.1], "keep")])
def test_a_decision_becomes_one_row_a_baseline_in_the_columns_of_the_table(figures, verdict):
    made = decision(figures)
    rows = comparison_rows(made, window_id="2026-01-05T10:00", candidate="demo@4", start="demo@0")
    history = {"row_id", "digest", "created_at", "superseded_at"}
    table = set(metadata.tables["babylon_rl.checkpoint_evaluations"].columns.keys()) - history
    assert set(rows.columns) == table
    found = rows.set_index("baseline")["decision"].to_dict()
    assert found == {"demo@0": verdict, "always_buy": verdict, "hold": "info"}
    assert rows.loc[0, "reason"] == made.reason
    assert set(comparison_rows(made, window_id="w", candidate="c", start="s", split="unseen")["decision"]) == {"info"}
    info = info_row(made.over_start, window_id="w", candidate="c", baseline="s", split="unseen")
    assert set(info.columns) == table and list(info["decision"]) == ["info"]
