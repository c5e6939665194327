"""The value of an answer is what settling it would have given, and is made of nothing that agents could not know."""

from dataclasses import replace

import msgspec
import pandas as pd
import pytest

from babylon_rl.groups.build import build_group
from babylon_rl.market.actions import choices, parse_action
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Answer, Sampling
from babylon_rl.market.settlement import quotes, settle
from babylon_rl.market.trajectories import Asked, Label, make_run, market_id
from babylon_rl.market.world import make_window
from babylon_rl.recording.window import UsableTrajectory
from babylon_rl.scoring.scorers import score_window
from babylon_rl_tests.scoring import made

WINDOW = made.WINDOW


def usable(window, agent, answer) -> UsableTrajectory:
    """The agent's trajectory as a reader gives it, alone in its window."""
    said = Answer(answer, "demo", "demo@0", "stop", [1, 2], [3], [-0.5], 1.0)
    action = parse_action(answer, window.instrument(agent.instrument))
    settlement = settle(window, [agent], [action])[0]
    asked = Asked(said, Sampling(), choices(agent.instrument), 0, True)
    run = make_run(WINDOW, window, agent, settlement, Label("demo@0"), asked)
    own = run.trajectory
    return UsableTrajectory(
        own.trajectory_id, own.agent_id, WINDOW, own.start_time, own.end_time, own.steps, 0.0, settlement.pnl,
        settlement.pnl, own.final_balance, run.calls, "logged", answer,
    )  # fmt: skip


def outcomes(window, settled=True) -> pd.DataFrame:
    rows = [
        {"instrument": i.name, "kind": "ticker", "change": i.close / i.open - 1, "outcome": None, "revision": "r"}
        for i in window.tickers
    ]
    question = window.instruments[-1]
    told = ("YES" if question.outcome else "NO") if settled else None
    rows.append({"instrument": market_id(WINDOW, question.name), "kind": "question", "outcome": told, "revision": "r"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("index", range(4))
def test_the_value_of_each_answer_is_the_reward_of_giving_it(index):
    window = make_window(5, "train", index)
    for agent in make_agents(5, "train", index, 4):
        for answer in choices(agent.instrument):
            recorded = made.recorded(usable(window, agent, answer))
            scored = score_window(recorded, outcomes(window)).iloc[0]
            assert set(scored["action_values"]) == set(choices(agent.instrument))
            assert scored["action_values"][answer] == pytest.approx(scored["reward"], abs=1e-12)


@pytest.mark.parametrize("index", range(4))
def test_the_best_in_hindsight_is_the_best_answers_value_and_no_run_has_more(index):
    window = make_window(6, "train", index)
    agents = make_agents(6, "train", index, 12)
    answers = [choices(agent.instrument)[number % 3] for number, agent in enumerate(agents)]
    actions = [parse_action(said, window.instrument(a.instrument)) for said, a in zip(answers, agents, strict=True)]
    # One market for all: an earlier stake moves the price of a later one.
    together = settle(window, agents, actions)
    runs = [usable(window, *pair) for pair in zip(agents, answers, strict=True)]
    runs = [
        msgspec.structs.replace(run, trajectory_id=f"{n}", window_pnl=settled.pnl)
        for n, (run, settled) in enumerate(zip(runs, together, strict=True))
    ]
    for scorer in ("alpha", "heuristic"):
        for row in score_window(made.recorded(*runs), outcomes(window), scorer).to_dict("records"):
            best = row["counterfactuals"]["best"]
            assert best >= 0 and best >= row["outcome_score"]
            if scorer == "alpha":
                assert best == max(0.0, row["reward"], *row["action_values"].values())


def test_quotes_hold_nothing_that_is_known_only_later():
    window = make_window(5, "train", 0)
    turned = replace(
        window,
        instruments=tuple(
            replace(i, path=(i.path[0], *reversed(i.path[1:])), outcome=None if i.outcome is None else not i.outcome)
            for i in window.instruments
        ),
    )
    for agent in make_agents(5, "train", 0, 4):
        assert quotes(window, agent, "x") == quotes(turned, agent, "x")


def test_nothing_is_valued_where_an_end_is_unknown_or_quotes_are_missing_or_foreign():
    window = make_window(5, "train", 0)
    ticker, question = (make_agents(5, "train", 0, 4)[i] for i in (0, 3))
    own = usable(window, question, "BUY MOON")
    assert score_window(made.recorded(own), outcomes(window, settled=False)).iloc[0]["action_values"] is None
    own = usable(window, ticker, "BUY ACME")
    assert score_window(made.recorded(own), outcomes(window), "heuristic").iloc[0]["action_values"] is None
    for state in ({"agentBalance": 900.0}, {"agentBalance": 900.0, "quotes": [{"bid": 1}]}):
        other = msgspec.structs.replace(own, steps=[msgspec.structs.replace(own.steps[0], environment_state=state)])
        assert score_window(made.recorded(other), outcomes(window)).iloc[0]["action_values"] is None


def test_a_window_in_which_all_did_the_same_is_trainable_where_their_actions_are_valued():
    window = make_window(5, "train", 0)
    recorded = made.recorded(*(usable(window, a, f"HOLD {a.instrument}") for a in make_agents(5, "train", 0, 4)))
    row = build_group({"status": "ready", "reason": ""}, recorded, score_window(recorded, outcomes(window)))
    assert row["status"] == "trainable" and "equal rewards" in row["reason"]
    assert all(len(member["action_values"]) == 3 for member in row["group"]["members"])
