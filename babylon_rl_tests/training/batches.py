"""A small batch for the tests of training: sampled from a policy, with made-up rewards; and the update on it."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from babylon_rl.groups.snapshots import Snapshot, SnapshotHeader
from babylon_rl.groups.trained_view import Decision, Group, Member
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.world import make_window
from babylon_rl.serving.sampler import SampleRequest, sample
from babylon_rl.training.backends.torch.update import Start, Update, update
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe


def sample_requests(windows: int, exploration: float = 0.1) -> list[SampleRequest]:
    """One request an agent of each window."""
    return [
        SampleRequest(
            messages=[
                {"role": "system", "content": system_prompt()},
                {"role": "user", "content": observation(window, agent)},
            ],
            adapter=None,
            choices=choices(agent.instrument),
            temperature=1.0,
            top_p=1.0,
            exploration=exploration,
            max_tokens=8,
            seed=index * 100 + place,
        )
        for index, window in enumerate(make_window(0, "train", i) for i in range(windows))
        for place, agent in enumerate(make_agents(0, "train", index))
    ]


def valued(groups: list[Group], values: Callable[[Decision], list[float]]) -> list[Group]:
    """The groups with a value for each choice of each decision."""
    return [
        msgspec.structs.replace(
            group,
            members=[
                msgspec.structs.replace(member, action_values=values(member.decisions[0])) for member in group.members
            ],
        )
        for group in groups
    ]


def sampled_groups(policy: Policy, windows: int, exploration: float = 0.1) -> list[Group]:
    """Groups of simulated windows whose answers the policy gave; rewards are random numbers."""
    stream = random.Random(0)
    requests = sample_requests(windows, exploration)
    members = [
        Member(
            trajectory_id=f"trajectory-{i:04d}",
            agent_id=f"agent-{i % 8}",
            reward=stream.gauss(0, 0.01),
            advantage=0.0,
            checkpoint="run@0",
            decisions=[
                Decision(
                    call_id=f"call-{i}",
                    system_prompt=request.messages[0]["content"],
                    user_prompt=request.messages[1]["content"],
                    response=drawn.text,
                    token_ids=drawn.token_ids,
                    logprobs=drawn.logprobs,
                    prompt_token_ids=drawn.prompt_token_ids,
                    choices=request.choices,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    exploration=request.exploration,
                )
            ],
        )
        for i, (request, drawn) in enumerate(zip(requests, sample(policy, requests), strict=True))
    ]
    return [
        Group(
            window_id=f"2025-01-15T{w:02d}:00", scorer="alpha", scorer_version="1", members=members[8 * w : 8 * w + 8]
        )
        for w in range(windows)
    ]


def in_pairs(group: Group, apart: bool) -> Group:
    """Half of the members, two as one whose decisions earned half of its reward each, where that is told apart."""
    half = len(group.members) // 2
    members = [
        msgspec.structs.replace(
            one,
            decisions=[*one.decisions, *other.decisions],
            decision_rewards=[one.reward / 2, one.reward / 2] if apart else msgspec.UNSET,
        )
        for one, other in zip(group.members[:half:2], group.members[1:half:2], strict=True)
    ]
    return msgspec.structs.replace(group, members=[*members, *group.members[half:]])


def header_of(snapshot: Snapshot) -> SnapshotHeader:
    """The header of a snapshot that is in no database."""
    return SnapshotHeader(
        snapshot_id=snapshot.snapshot_id,
        training_run=snapshot.training_run,
        window_ids=snapshot.window_ids,
        settings=snapshot.settings,
        seed=snapshot.seed,
        left_out=snapshot.left_out,
        groups=len(snapshot.groups),
    )


def update_on(
    snapshot: Snapshot,
    recipe: Recipe,
    base: Path,
    work: Path,
    *,
    parent: Path | None = None,
    step: int = 0,
    report: Callable[[dict[str, float]], object] = lambda _: None,
    key: str = "",
) -> Update:
    """The update on the CPU, without a database."""
    work.mkdir(parents=True, exist_ok=True)
    start = Start(base_folder=base, parent_folder=parent, step=step, device="cpu")
    return update(header_of(snapshot), iter(snapshot.groups), recipe, start, work, lambda m, *_: report(m), key)
