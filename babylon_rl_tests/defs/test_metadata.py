"""What a person sees of a window: what must be there is there, bounded, and nothing that agents wrote breaks out."""

from datetime import UTC, datetime

import dagster as dg

from babylon_rl.defs.metadata.data import groups_metadata, outcomes_metadata, windows_metadata
from babylon_rl.defs.metadata.evaluations import market_metadata, online_metadata, replay_metadata
from babylon_rl.defs.metadata.models import MadeOf, checkpoints_metadata, evaluations_metadata
from babylon_rl.defs.metadata.plots import INLINE
from babylon_rl.defs.metadata.scores import scores_metadata
from babylon_rl.training.ancestry import Ancestor, Counted
from babylon_rl.windows import shift_window
from babylon_rl_tests.defs.shown import NASTY, WINDOW, image, images, records, size, texts

EVENT_BYTES = 10_000
STEP = {"loss": 0.1, "entropy": 1.0, "ratio": 1.0, "grad_norm": 0.5, "clipped": 0.0, "answers": 96.0}


def window_row(**changes) -> dict:
    row = {"window_id": WINDOW, "status": "ready", "reason": "8 agents", "agents": 8, "recorded": 9,
           "usable": 8, "trainable": 5, "rejected": 1, "reasons": {"unfinished": 1},
           "not_trainable": {"text_missing": 1, "no_llm_call": 2}, "misnamed": 0, "pnl_mean": 1.25, "pnl_std": 2.0,
           "pnl_min": -5.0, "pnl_max": 12.5}  # fmt: skip
    return {**row, **changes}


def outcome_row(instrument: str, **changes) -> dict:
    row = {"window_id": WINDOW, "instrument": instrument, "kind": "ticker", "question": None, "open": 100.0,
           "close": 105.0, "change": 0.05, "outcome": "up", "settled": True, "source": "StockPrice"}  # fmt: skip
    return {**row, **changes}


def score_row(rank: int, **changes) -> dict:
    row = {"window_id": WINDOW, "rank": rank, "agent_id": f"agent-{rank}", "features": {"window_pnl": 10.0 - rank},
           "reward": 0.5 - rank, "reason": f"earned {rank}", "provenance": "logged", "checkpoint": "run@0",
           "scorer": "alpha", "scorer_version": "1"}  # fmt: skip
    return {**row, **changes}


def group_row(members: int, left_out: int = 0, **changes) -> dict:
    group = [
        {"agent_id": f"agent-{n}", "reward": 0.1 * n, "advantage": 0.25 * n, "checkpoint": "run@0",
         "decisions": [{"response": f"BUY {n}"}]}
        for n in range(members)
    ]  # fmt: skip
    left = [{"trajectory_id": f"t{n}", "agent_id": f"left-{n}", "reason": "no_text: nothing"} for n in range(left_out)]
    row = {"window_id": WINDOW, "status": "trainable", "reason": "members", "members": members, "reward_mean": 0.1,
           "reward_spread": 0.2, "group": {"members": group}, "left_out": left, "scorer": "alpha",
           "group_digest": "d" * 64}  # fmt: skip
    return {**row, **changes}


def checkpoint_row(**changes) -> dict:
    row = {"window_id": WINDOW, "updated": False, "reason": "window 1 of 16", "checkpoint_id": "run@0",
           "parent_id": None, "snapshot_id": None, "step": 0, "groups_trained": 0, "groups_left_out": 0,
           "metrics": {}, "group_digests": None}  # fmt: skip
    return {**row, **changes}


def update_row(steps: int = 8, **metrics) -> dict:
    return checkpoint_row(
        updated=True, checkpoint_id="run@1", parent_id="run@0", snapshot_id="s" * 64, step=1, groups_trained=2,
        metrics={"steps": [{**STEP, "loss": 0.1 / n} for n in range(1, steps + 1)], "mean": STEP, **metrics},
        group_digests={"2025-01-15T09:00": "a", WINDOW: "b"},
    )  # fmt: skip


def comparison_row(baseline: str, decision: str = "info", **changes) -> dict:
    row = {"window_id": WINDOW, "split": "test", "candidate": "run@2", "baseline": baseline, "windows": 30,
           "effect": 4.5, "low": 1.25, "high": 7.75, "candidate_pnl": 6.0, "baseline_pnl": 1.5, "decision": decision,
           "reason": f"over {baseline}"}  # fmt: skip
    return {**row, **changes}


# --- the stages --------------------------------------------------------------------------------------


def test_a_window_says_its_status_reason_counts_and_spread():
    found = windows_metadata(WINDOW, [window_row()])
    assert (found["status"], found["reason"]) == ("ready", "8 agents")
    assert (found["agents"], found["rejected"], found["P&L mean"]) == (8, 1, 1.25)
    assert found["P&L of agents"] == "mean +$1.25, from -$5.00 to +$12.50"
    assert found["rejected by reason"] == "1 unfinished"
    assert found["not trainable by reason"] == "2 no_llm_call, 1 text_missing"


def test_a_window_without_pnl_has_no_figure_for_it():
    found = windows_metadata(WINDOW, [window_row(pnl_mean=None, pnl_std=None, pnl_min=None, pnl_max=None)])
    assert found["P&L of agents"] == "no P&L is known" and "P&L mean" not in found


def test_outcomes_show_prices_and_what_is_not_settled():
    rows = [outcome_row("ACME"), outcome_row("Q1", kind="question", question="Will it?", change=-0.4, settled=False,
                                             outcome=None)]  # fmt: skip
    found = outcomes_metadata(WINDOW, rows)
    assert (found["status"], found["reason"]) == ("provisional", "not settled: Q1")
    acme, question = records(found["prices"])
    assert (acme["open"], acme["close"], acme["change"], acme["outcome"]) == (100.0, 105.0, 0.05, "up")
    assert question["question"] == "Will it?" and question["outcome"] is None
    assert (found["unsettled"], found["market move %"]) == (1, 5.0)
    assert texts(image(found["change of tickers, %"])[1]) == ["ACME +5.00"]
    settled = outcomes_metadata(WINDOW, [outcome_row("ACME", change=None)])
    assert settled["status"] == "settled" and "market move %" not in settled and not images(settled)


def test_agents_stand_by_rank_with_pnl_reward_and_reason():
    found = scores_metadata(WINDOW, [score_row(2), score_row(1)])
    first, second = records(found["agents by reward"])
    assert (first["agent_id"], first["pnl"], first["reward"], first["reason"]) == ("agent-1", 9.0, -0.5, "earned 1")
    assert second["rank"] == 2
    assert (found["reward spread"], found["P&L mean"], found["provenance"]) == (1.0, 8.5, "2 logged")
    assert images(found) == ["P&L by agent, $"]


def test_provenance_and_checkpoint_are_columns_where_they_differ():
    alike = records(scores_metadata(WINDOW, [score_row(1), score_row(2)])["agents by reward"])
    found = scores_metadata(WINDOW, [score_row(1), score_row(2, provenance="no_text", checkpoint=None)])
    unlike = records(found["agents by reward"])
    assert "provenance" not in alike[0] and "checkpoint" not in alike[0]
    assert (unlike[1]["provenance"], unlike[1]["checkpoint"]) == ("no_text", None)
    assert found["checkpoint that played"] == "1 none recorded, 1 run@0"


def scored(**changes) -> list[dict]:
    """The rows of a window in which one bought ACME, one sold it and one held."""
    acted = [("BUY ACME", {"ACME": 100.0}), ("HOLD", {}), ("SELL ACME", {"ACME": -50.0})]
    return [
        score_row(n, features={"window_pnl": 10.0 - n, "acted": did, "exposure": moved,
                               "notional": {name: abs(dollars) for name, dollars in moved.items()}}, **changes)
        for n, (did, moved) in enumerate(acted, start=1)
    ]  # fmt: skip


def test_the_best_stands_beside_the_worst_with_what_the_market_then_did():
    rows = scored(counterfactuals={"flat": 0.0, "hold": None, "best": 0.75}, outcome_score=-0.5)
    found = scores_metadata(WINDOW, rows, [outcome_row("ACME"), outcome_row("BOLT")])
    assert (found["best"], found["worst"]) == ("agent-1: earned 1", "agent-3: earned 3")
    assert found["best beside worst"].value.splitlines() == [
        "|  | 1. agent-1 | 3. agent-3 |",
        "|---|---|---|",
        "| did | BUY ACME | SELL ACME |",
        "| traded | +$100.00 of ACME | -$50.00 of ACME |",
        "| market then | ACME 100.00 to 105.00, +5.0 % | ACME 100.00 to 105.00, +5.0 % |",
        "| earned | +$9.00, reward -0.50000 | +$7.00, reward -2.50000 |",
        "| not done | flat +0.0000, best +0.7500 | flat +0.0000, best +0.7500 |",
    ]
    assert found["regret mean"] == 1.25


def test_what_a_judge_said_and_what_could_be_had_are_columns_where_there_is_any():
    plain = records(scores_metadata(WINDOW, scored())["agents by reward"])
    assert set(plain[0]) == {"rank", "agent_id", "pnl", "reward", "reason"}
    rows = scored(process_score=0.5, hindsight_score=0.75, outcome_score=0.25, counterfactuals={"best": 1.0})
    rows[1]["injection_signs"] = ["asks for a score", "closes the fence"]
    found = scores_metadata(WINDOW, rows)
    first, second, _ = records(found["agents by reward"])
    told = ("outcome_score", "process_score", "hindsight_score", "best", "regret", "injection_signs")
    assert [first[name] for name in told] == [0.25, 0.5, 0.75, 1.0, 0.75, None]
    assert second["injection_signs"] == "asks for a score, closes the fence"
    assert found["runs with injection signs"] == 1


def test_of_equal_rewards_and_of_one_run_none_is_the_best():
    for rows in (scored(reward=0.5), scored()[:1], scored(provenance="no_capital")):
        assert not {"best", "worst", "best beside worst"} & set(scores_metadata(WINDOW, rows))


def test_the_side_by_side_stands_inline_and_holds_words_alone_whatever_agents_wrote():
    rows = scored(agent_id=NASTY)
    for row in rows:
        row["features"] |= {"acted": NASTY, "notional": {NASTY: 1.0}, "exposure": {NASTY: -1.0}}
    shown = scores_metadata(WINDOW, rows, [outcome_row(NASTY)])["best beside worst"].value
    assert len(shown) < INLINE
    assert {line.count("|") for line in shown.splitlines()} == {4}
    assert not any(part in shown for part in ("<", "`", "[", "\\", "_", "*", "#", "//", "%41"))


def test_groups_show_advantages_and_who_was_left_out_and_why():
    found = groups_metadata(WINDOW, [group_row(2, left_out=1)])
    best, _ = records(found["members by advantage"])
    assert (best["agent_id"], best["advantage"], best["answer"]) == ("agent-1", 0.25, "BUY 1")
    assert records(found["left out"]) == [{"agent_id": "left-0", "reason": "no_text: nothing", "trajectory_id": "t0"}]
    assert (found["members"], found["members left out"]) == (2, 1)
    empty = groups_metadata(WINDOW, [group_row(0, status="not_ready", reward_mean=None, reward_spread=None)])
    assert empty["status"] == "not_ready" and empty["left out"] == "nobody" and "reward mean" not in empty


def test_groups_show_baselines_the_agents_share_alarms_and_the_judges_verdict():
    alarm = {"kind": "all_hold", "detail": "HOLD 100 %", "value": 1.0, "limit": 0.95}
    settings = {"agent_baseline": "shrunken", "history": {"windows": 40, "last": WINDOW, "shrinkage": 12.5}}
    row = group_row(2, 3, alarms=[alarm], settings=settings, judge_verdict="set_aside", agent_share=0.625)
    for one, reason in zip(row["left_out"], ("leak: a price ('105.3')", *["max_per_group: 2 of 4"] * 2), strict=True):
        one["reason"] = reason
    row["group"]["members"][1]["baseline"] = -0.02
    found = groups_metadata(WINDOW, [row])
    best, other = records(found["members by advantage"])
    assert (best["baseline"], other["baseline"]) == (-0.02, 0.0)
    assert records(found["alarms"]) == [alarm] and found["alarms raised"] == 1
    assert (found["judge"], found["agent share"]) == ("set_aside", 0.625)
    assert found["baselines from"] == f"40 windows up to {WINDOW}, shrinkage 12.5"
    assert found["left out by reason"] == "2 max_per_group, 1 leak"
    alike = {**settings, "history": {**settings["history"], "shrinkage": None}}
    assert "agents do not differ" in groups_metadata(WINDOW, [group_row(2, settings=alike)])["baselines from"]
    for without in (None, {"agent_baseline": "shrunken"}, {**settings, "agent_baseline": "none"}):
        shown = groups_metadata(WINDOW, [group_row(2, settings=without, judge_verdict=None, agent_share=None)])
        assert (shown["baselines from"], shown["alarms"], shown["judge"]) == ("none", "none", "none asked")
        assert "agent share" not in shown


def test_an_update_shows_its_parent_its_windows_its_curves_and_its_batch():
    health = {"shares": {"SELL": 0.97, "BUY": 0.03}, "fees": 0.04, "no_spread": 0.0}
    alarm = {"window_id": WINDOW, "kind": "one_sided", "value": 0.97, "limit_value": 0.89, "detail": "SELL 97 %",
             "response": "step_back", "back_to": "run@1", "exploration": 0.3}  # fmt: skip
    found = checkpoints_metadata(WINDOW, [update_row(health=health, alarms=[alarm])])
    assert (found["status"], found["checkpoint"], found["parent"]) == ("updated", "run@1", "run@0")
    assert found["snapshot"] == "s" * 12
    assert f"(/assets/art_groups?view=partitions&partition={WINDOW})" in found["trained on"].value
    assert texts(image(found["curves"])[1])[0] == "loss 0.1 → 0.0125"
    assert records(found["optimizer steps"])[0]["loss"] == 0.1
    assert records(found["alarms"])[0]["response"] == "step_back"
    assert (found["share SELL"], found["step"], found["groups trained"]) == (0.97, 1, 2)
    assert checkpoints_metadata(WINDOW, [update_row(health=health, alarms=[])])["alarms"].text == "No alarm."


def ancestor(checkpoint_id: str, **fields) -> Ancestor:
    known = {
        "checkpoint_id": checkpoint_id, "training_run": "run", "parent_id": "run@0", "step": 1, "state": "ready",
        "base_model": "tiny", "backend": "torch", "job_id": "j" * 64, "remote_job_id": None, "snapshot_id": "s" * 64,
        "windows": [WINDOW], "members": [Counted(label="on_policy", loss="importance_weighted", members=40, agents=4)],
        "weights_sha256": "w" * 64, "base_sha256": "b" * 64, "tokenizer_sha256": None, "code_version": "0.1.0 abc",
        "snapshot_code": None, "path": "s3://bucket/run@2", "inference_name": None, "inference_url": None,
        "last_window": WINDOW, "made": datetime(2025, 1, 1, tzinfo=UTC), "promoted": False,
    }  # fmt: skip
    return Ancestor(**{**known, **fields})


def test_an_update_shows_what_it_was_made_of_with_links_to_its_parent_and_its_groups():
    windows = {shift_window(WINDOW, n): {"on_policy": 3, "stale(1)": 1} for n in range(200)}
    made_of = MadeOf(ancestor("run@2", step=2), ancestor("run@1"), windows)
    found = checkpoints_metadata(WINDOW, [update_row()], made_of)
    assert found["parent"].value == f"[run@1](/assets/trained_checkpoints?view=partitions&partition={WINDOW})"
    assert (found["snapshot"], found["job"], found["weights"]) == ("s" * 64, "j" * 12, "w" * 12)
    assert found["members by label"] == "40 on_policy (importance_weighted)" and "tokenizer" not in found
    table = found["made of"].value
    assert (
        f"| [{WINDOW}](/assets/art_groups?view=partitions&partition={WINDOW}) | 4 | 3 on_policy, 1 stale(1) |" in table
    )
    assert "194 more windows; all: `babylon-rl lineage run@2 --trajectories`" in table and len(table) < INLINE
    start = ancestor("run@0", last_window=None)
    first = checkpoints_metadata(WINDOW, [update_row()], MadeOf(ancestor("run@1"), start, {}))
    assert first["parent"] == "run@0"
    assert size(checkpoints_metadata(WINDOW, [update_row(32)], made_of)) < EVENT_BYTES


def test_a_group_that_is_materialized_again_names_the_checkpoints_that_are_trained_on_it():
    found = groups_metadata(WINDOW, [group_row(2)], [(f"run@{n}", WINDOW) for n in range(1, 10)])["trained into"].value
    assert found.startswith("[run@1](/assets/trained_checkpoints?") and found.endswith(", 3 more")
    assert "trained into" not in groups_metadata(WINDOW, [group_row(2)])


def test_an_hour_without_an_update_says_why_and_has_no_curves():
    found = checkpoints_metadata(WINDOW, [checkpoint_row()])
    assert (found["status"], found["reason"]) == ("no update", "window 1 of 16")
    assert not images(found) and "alarms" not in found and "parent" not in found
    nothing = checkpoints_metadata(WINDOW, [checkpoint_row(checkpoint_id=None, step=None, metrics=None)])
    assert nothing["checkpoint"] == "none" and "step" not in nothing


def test_evaluations_show_effect_interval_and_the_decision():
    found = evaluations_metadata(WINDOW, [comparison_row("hold"), comparison_row("run@0", "promote")])
    assert (found["status"], found["reason"]) == ("promote", "over run@0")
    hold = records(found["comparisons"])[0]
    assert (hold["baseline"], hold["effect"], hold["low"], hold["high"]) == ("hold", 4.5, 1.25, 7.75)
    assert texts(image(found["effect with 95 % interval, $"])[1]) == ["hold +4.50", "run@0 +4.50"]
    assert found["test effect over hold, $"] == 4.5


def market_row(baseline: str, **changes) -> dict:
    row = {"window_id": WINDOW, "candidate": "run@3", "baseline": baseline, "effect": 4.5, "low": 1.25, "high": 7.75,
           "candidate_value": 2.0, "baseline_value": -2.5, "windows": 48, "valid": 0.75,
           "reason": "it earned more"}  # fmt: skip
    return {**row, **changes}


def replay_row(baseline: str, **changes) -> dict:
    row = {
        "window_id": WINDOW,
        "candidate": "run@3",
        "baseline": baseline,
        "effect": 0.002,
        "low": None,
        "high": None,
        "candidate_value": 0.001,
        "baseline_value": -0.001,
        "decisions": 8,
        "unvalued": 1,
        "reason": "it did",
    }
    return {**row, **changes}


def online_row(checkpoint: str, **changes) -> dict:
    row = {"window_id": WINDOW, "checkpoint_id": checkpoint, "agents": 4, "decisions": 5, "pnl_mean": 1.5,
           "reward_mean": 0.01, "valid": 1.0, "drawdown": 0.02, "latency_p95_ms": 80.0,
           "experiment_id": None}  # fmt: skip
    return {**row, **changes}


def test_what_a_checkpoint_earned_in_the_simulated_market_stands_with_intervals_and_what_it_is_clearly_better_than():
    found = market_metadata(WINDOW, [market_row("hold"), market_row("run@0", effect=-0.5, low=-2.0, high=1.0)])
    assert found["clearly better than"] == "hold" and found["candidate"] == "run@3"
    assert texts(image(found["effect with 95 % interval, $"])[1]) == ["hold +4.50", "run@0 -0.50"]
    assert (found["effect over run@0, $"], found["valid share"], found["windows played"]) == (-0.5, 0.75, 48)


def test_a_replayed_window_shows_what_each_policy_was_worth():
    found = replay_metadata(WINDOW, [replay_row("hold", baseline_value=0.0), replay_row("recorded")])
    assert texts(image(found["value, % of capital"])[1]) == ["run@3 +0.10", "hold +0.00", "recorded -0.10"]
    assert (found["prompts"], found["prompts without a value"]) == (8, 1)


def test_an_observed_window_shows_its_checkpoints_and_the_experiment():
    found = online_metadata(WINDOW, [online_row("a"), online_row("b", pnl_mean=2.5, experiment_id=None)])
    assert "2 checkpoints answered; best b" in found["reason"] and found["agents"] == 8 and "experiment" not in found
    assert online_metadata(WINDOW, [online_row("a", experiment_id="e7")])["experiment"] == "e7"


def test_every_stage_has_a_status_and_a_reason_also_of_a_window_without_rows():
    full = {
        windows_metadata: [window_row()],
        outcomes_metadata: [outcome_row("ACME")],
        scores_metadata: [score_row(1)],
        groups_metadata: [group_row(2)],
        checkpoints_metadata: [update_row()],
        evaluations_metadata: [comparison_row("hold")],
        market_metadata: [market_row("hold")],
        replay_metadata: [replay_row("hold")],
        online_metadata: [online_row("a")],
    }
    for describe, rows in full.items():
        for given in (rows, []):
            found = describe(WINDOW, given)
            assert list(found)[:2] == ["status", "reason"] and found["status"] and found["reason"]


def test_an_event_stays_small_however_much_agents_wrote_and_however_many_there_are():
    agents = [score_row(n, agent_id=NASTY, reason=NASTY, checkpoint=f"run@{n}") for n in range(64)]
    group = group_row(64, left_out=64, reason="64 members")
    for member in group["group"]["members"]:
        member["agent_id"] = member["decisions"][0]["response"] = NASTY
    found = [
        scores_metadata(WINDOW, agents),
        groups_metadata(WINDOW, [group]),
        outcomes_metadata(WINDOW, [outcome_row(f"T{n}", source=NASTY, settled=False) for n in range(64)]),
        checkpoints_metadata(WINDOW, [update_row(400)]),
        evaluations_metadata(WINDOW, [comparison_row(f"base-{n}") for n in range(12)]),
        market_metadata(WINDOW, [market_row(f"base-{n}", reason=NASTY) for n in range(12)]),
        replay_metadata(WINDOW, [replay_row(f"base-{n}", candidate=f"c{n}", reason=NASTY) for n in range(64)]),
        online_metadata(WINDOW, [online_row(NASTY + str(n)) for n in range(64)]),
    ]
    sizes = [size(metadata) for metadata in found]
    assert max(sizes) < 2.5 * EVENT_BYTES, sizes
    usual = [
        size(scores_metadata(WINDOW, [score_row(n) for n in range(12)])),
        size(groups_metadata(WINDOW, [group_row(12)])),
        size(checkpoints_metadata(WINDOW, [update_row(32)])),
    ]
    assert max(usual) < EVENT_BYTES, usual


def test_what_agents_wrote_stands_in_no_markdown():
    group = group_row(1, left_out=1)
    group["group"]["members"][0] |= {"agent_id": NASTY, "decisions": [{"response": NASTY}]}
    group["left_out"][0] |= {"agent_id": NASTY, "reason": NASTY}
    for found in (
        scores_metadata(WINDOW, [score_row(1, agent_id=NASTY, reason=NASTY)]),
        groups_metadata(WINDOW, [group]),
        outcomes_metadata(WINDOW, [outcome_row(NASTY)]),
        online_metadata(WINDOW, [online_row(NASTY)]),
    ):
        for value in found.values():
            if isinstance(value, dg.MarkdownMetadataValue):
                assert not any(part in value.value for part in ("onerror=", "<img", "http://x", "%41"))
