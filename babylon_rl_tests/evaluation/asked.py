"""Checkpoints of the tiny model that are evaluated: a copy of the base model, and one with other weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from babylon_rl.database.connect import Database
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import trained_checkpoints
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation
from babylon_rl.market.policies import choose
from babylon_rl.market.world import MarketWindow
from babylon_rl.serving.process import Endpoint
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import Checkpoint, TrainingRun, save_checkpoint, start_run
from babylon_rl.training.trainer import weights_digest
from babylon_rl_tests.market.scripted import completion

RUN = "m"
COPY, OTHER = "m@1", "m@2"
TRAINED = {COPY: "2025-01-15T01:00", OTHER: "2025-01-15T03:00"}  # last window of each


def make_adapters(base: Path, folder: Path) -> dict[str, Path]:
    """A fresh adapter, which changes nothing, and one that does."""
    import torch

    policy = Policy(base)
    policy.add_fresh_adapter(Recipe(), 0)
    made = {}
    for name in (COPY, OTHER):
        if name == OTHER:
            torch.manual_seed(1)
            with torch.no_grad():
                for key, weight in policy.model.named_parameters():
                    if "lora_B" in key:
                        weight.normal_(0, 0.5)
        policy.model.save_pretrained(str(folder / name))
        made[name] = folder / name
    return made


def book(database: Database, adapters: dict[str, Path]) -> None:
    """The run with its two updates."""
    run = TrainingRun(
        training_run=RUN, base_model="tiny", seed=0, recipe=Recipe(), schedule={}, first_window="2025-01-15T00:00",
        last_window="2025-01-15T03:00", state="running",
    )  # fmt: skip
    parents = {COPY: f"{RUN}@0", OTHER: COPY}
    with database.connect() as connection:
        start_run(connection, run)
        for step, name in enumerate(adapters, start=1):
            window_id = TRAINED[name]
            made = Checkpoint(
                checkpoint_id=name, training_run=RUN, parent_id=parents[name], snapshot_id=None, base_model="tiny",
                step=step, path=str(adapters[name]), weights_sha256=weights_digest(adapters[name]),
                last_window=window_id, metrics={}, state="ready", backend="torch",
            )  # fmt: skip
            save_checkpoint(connection, made)
            row = {
                "window_id": window_id, "training_run": RUN, "updated": True, "reason": "trained", "step": step,
                "checkpoint_id": name, "parent_id": parents[name], "groups_trained": 1, "groups_left_out": 0,
                "metrics": {},
            }  # fmt: skip
            replace_windows(connection, trained_checkpoints, [window_id], pd.DataFrame([row]))


def one_endpoint(served: Endpoint) -> Callable[..., Any]:
    """In place of `running_endpoint`: the one that runs already, with the adapters that are asked for."""

    @contextmanager
    def running(folder, name, device, threads, adapters=None, precision=None) -> Iterator[Endpoint]:
        for adapter, place in (adapters or {}).items():
            served.load(adapter, place)
        yield served

    return running


def informed(windows: list[MarketWindow], agents: int, policy: str = "follow_news"):
    """A reply by a policy of the market that knows what the news of these windows mean; it draws as our endpoint does:
    a mixture of the policy and the uniform choice, with the mixture's log-probability."""
    knows = {
        observation(window, agent): choose(policy, window, agent)
        for window in windows
        for agent in make_agents(window.seed, window.split, window.index, agents)
    }

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        given, share = body["structured_outputs"]["choice"], body.get("exploration", 0.0)
        wanted = knows[body["messages"][-1]["content"]]
        assert set(given) == set(choices(wanted.partition(" ")[2]))
        mixed = np.array([(1 - share) * (choice == wanted) + share / len(given) for choice in given])
        drawn = int(np.random.default_rng(body["seed"]).choice(len(given), p=mixed))
        logprobs = {"content": [{"token": "token_id:5", "logprob": float(np.log(mixed[drawn]))}]}
        return 200, completion(given[drawn], logprobs=logprobs, token_ids=[5])

    return reply
