"""Whether the recipe still learns: the tiny model on three seeds, play and update by the product's own functions.

Without database, Dagster and HTTP, which `test_loop` goes through; every trajectory is made, scored, grouped and put
into a snapshot as there.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from babylon_rl.evaluation.paired import paired_effect
from babylon_rl.groups.build import build_group
from babylon_rl.groups.snapshots import make_snapshot
from babylon_rl.groups.trained_view import Group, decode_group
from babylon_rl.loop import corpus
from babylon_rl.market.actions import choices, parse_action
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Answer as Answered
from babylon_rl.market.endpoint import Sampling
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.play import call_seed
from babylon_rl.market.policies import FIXED_POLICIES, choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.trajectories import Asked, Label, make_run, market_id
from babylon_rl.market.world import MarketWindow, make_window
from babylon_rl.plans import PLANS
from babylon_rl.recording.window import RecordedWindow, UsableTrajectory
from babylon_rl.scoring.scorers import score_window
from babylon_rl.serving.sampler import SampleRequest, sample
from babylon_rl.training.base_models import TINY, prepare_base_model
from babylon_rl.training.policy import Policy, use_threads
from babylon_rl.windows import shift_window
from babylon_rl_tests.training.batches import update_on

PLAN = PLANS[TINY]
WINDOWS, TEST_WINDOWS, AGENTS = PLAN.recipe.windows_per_update, 128, PLAN.agents
SEEDS = (1, 2, 3)
FIRST = "2025-01-15T00:00"
READY = {"status": "ready", "reason": ""}


def test_the_recipe_learns_over_seeds(tmp_path: Path):
    """Better than the start on every seed; over all seeds clearly better, also than every fixed policy."""
    use_threads(1)
    learnt, rivals = [], {name: [] for name in ("start", *FIXED_POLICIES)}
    for seed in SEEDS:
        own, others = outcome(seed, tmp_path / f"seed-{seed}")
        assert own.mean() > others["start"].mean(), seed
        learnt.append(own)
        for name, pnl in others.items():
            rivals[name].append(pnl)
    for name, pnls in rivals.items():
        effect = paired_effect(pd.concat(learnt, ignore_index=True), pd.concat(pnls, ignore_index=True), 0)
        assert effect.low > 0.4, (name, effect)


def outcome(seed: int, folder: Path) -> tuple[pd.Series, dict[str, pd.Series]]:
    """P&L a test window of the policy after the plan's rounds, and of its start and the fixed policies."""
    base = prepare_base_model(TINY, folder, seed, corpus())
    adapter = None
    for number in range(PLAN.rounds):
        adapter = train(base, adapter, number, seed, folder / f"round-{number}")
    windows = [make_window(seed, "test", index) for index in range(TEST_WINDOWS)]
    start, learnt = (pnl_of(answers(base, arm, windows, seed), windows) for arm in (None, adapter))
    fixed = {
        name: pnl_of([[choose(name, w, a) for a in agents_of(w)] for w in windows], windows) for name in FIXED_POLICIES
    }
    return learnt, {"start": start, **fixed}


def train(base: Path, parent: Path | None, number: int, seed: int, work: Path) -> Path:
    """One round: play, score, group, update; the adapter's folder."""
    windows = [make_window(seed, "train", number * WINDOWS + index) for index in range(WINDOWS)]
    groups = [group_of(*played) for played in zip(windows, samples(base, parent, windows, seed), strict=True)]
    snapshot = make_snapshot(groups, "run", PLAN.recipe.as_json(), seed)
    return update_on(snapshot, PLAN.recipe, base, work, parent=parent, step=number).folder


def agents_of(window: MarketWindow):
    return make_agents(window.seed, window.split, window.index, AGENTS)


def samples(base: Path, adapter: Path | None, windows: list[MarketWindow], seed: int):
    """For each window a sample an agent."""
    policy = Policy(base)
    if adapter is not None:
        policy.add_adapter(adapter, "own")
    requests = [
        SampleRequest(
            messages=[
                {"role": "system", "content": system_prompt()},
                {"role": "user", "content": observation(window, agent)},
            ],
            adapter=None if adapter is None else "own",
            choices=choices(agent.instrument),
            temperature=1.0,
            top_p=1.0,
            exploration=0.0,
            max_tokens=8,
            seed=call_seed(seed, f"{window.split}{window.index}", agent.agent_id),
        )
        for window in windows
        for agent in agents_of(window)
    ]
    drawn = iter(sample(policy, requests))
    return [[next(drawn) for _ in range(AGENTS)] for _ in windows]


def answers(base: Path, adapter: Path | None, windows: list[MarketWindow], seed: int) -> list[list[str]]:
    return [[one.text for one in own] for own in samples(base, adapter, windows, seed)]


def settled(window: MarketWindow, texts: list[str]):
    state = agents_of(window)
    actions = [parse_action(t, window.instrument(a.instrument)) for t, a in zip(texts, state, strict=True)]
    return settle(window, state, actions)


def pnl_of(given: list[list[str]], windows: list[MarketWindow]) -> pd.Series:
    """Mean P&L of each window, dollars an agent."""
    return pd.Series(
        [np.mean([one.pnl for one in settled(window, texts)]) for window, texts in zip(windows, given, strict=True)]
    )


def group_of(window: MarketWindow, drawn: list) -> Group:
    """The window's group, from records as the application keeps them."""
    window_id = shift_window(FIRST, window.index)
    usable = []
    for agent, one, settlement in zip(
        agents_of(window), drawn, settled(window, [one.text for one in drawn]), strict=True
    ):
        said = Answered(one.text, "run", "run@0", "stop", one.prompt_token_ids, one.token_ids, one.logprobs, 1.0)
        asked = Asked(said, Sampling(), choices(agent.instrument), 0, True)
        run = make_run(window_id, window, agent, settlement, Label("run@0"), asked)
        own = run.trajectory
        usable.append(
            UsableTrajectory(
                own.trajectory_id, own.agent_id, window_id, own.start_time, own.end_time, own.steps, 0.0,
                settlement.pnl, settlement.pnl, own.final_balance, run.calls, "logged", own.trajectory_id,
            )
        )  # fmt: skip
    recorded = RecordedWindow(window_id, usable, [], "revision")
    return decode_group(build_group(READY, recorded, score_window(recorded, outcomes_of(window, window_id)))["group"])


def outcomes_of(window: MarketWindow, window_id: str) -> pd.DataFrame:
    rows = [{"instrument": i.name, "kind": "ticker", "change": i.move, "outcome": None} for i in window.tickers]
    question = window.instruments[-1]
    told = "YES" if question.outcome else "NO"
    rows.append(
        {"instrument": market_id(window_id, question.name), "kind": "question", "change": None, "outcome": told}
    )
    return pd.DataFrame(rows).assign(revision="r")
