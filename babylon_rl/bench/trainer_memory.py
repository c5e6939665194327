"""`babylon-rl bench trainer-memory`: peak memory of an update, by the number of groups in its snapshot.

The tiny model is updated on windows of eight agents, ten windows a minibatch however many there are, each update in a
process of its own on a database of the bench's own. What is reported is the most that the process ever held, its
libraries and the model included.
"""

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.memory import peak_bytes
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.groups.snapshots import make_snapshot, save_snapshot
from babylon_rl.groups.trained_view import Decision, Group, Member
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.world import make_window, random_stream
from babylon_rl.training.admission import messages_of
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.trainer import TrainerRequest, train_update
from babylon_rl.windows import shift_window

FIRST = "2025-01-01T00:00"
WINDOWS_A_MINIBATCH = 10
# Growth of the peak over ten times the windows, that is still flat: allocators keep some of what they had.
MOST_GROWTH = 1.1


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """An update over so many windows: peak of the process, bytes, and its seconds."""

    windows: int
    members: int
    peak_bytes: int
    seconds: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The updates, by windows."""

    seed: int
    updates: tuple[Trained, ...]

    @property
    def growth(self) -> float:
        """Peak of the largest over that of the smallest."""
        return self.updates[-1].peak_bytes / self.updates[0].peak_bytes

    @property
    def reached(self) -> bool:
        """Whether memory is flat in the number of groups."""
        return self.growth <= MOST_GROWTH

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "growth": self.growth, "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        lines = [
            f"{each.windows:,} windows, {each.members:,} members: peak {each.peak_bytes / 1e6:,.1f} MB, "
            f"{each.seconds:,.1f} s"
            for each in self.updates
        ]
        said = "reached" if self.reached else "MISSED"
        return "\n".join([*lines, f"{said}: the peak grew {self.growth:.3f} times (at most {MOST_GROWTH})"])


def measure_trainer_memory(
    base: Path, windows: Sequence[int], agents: int, seed: int, say: Callable[[str], None]
) -> Figures:
    """An update of the model in `base` over each number of windows."""
    found = []
    with scratch_server() as (_, database), tempfile.TemporaryDirectory(prefix="babylon_rl-bench-") as folder:
        for count in windows:
            say(f"{count:,} windows of {agents} agents")
            request = _request(database, base, Path(folder), count, agents, seed)
            # A fresh process: one that was forked would begin with this one's memory.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peak, seconds = pool.apply(_train, (database.url, msgspec.json.encode(request)))
            found.append(Trained(windows=count, members=count * agents, peak_bytes=peak, seconds=seconds))
    return Figures(seed=seed, updates=tuple(found))


def _request(database: Database, base: Path, folder: Path, windows: int, agents: int, seed: int) -> TrainerRequest:
    """The request of an update whose snapshot is in the database."""
    recipe = Recipe(
        windows_per_update=windows,
        minibatches=math.ceil(windows / WINDOWS_A_MINIBATCH),
        advantages="leave_one_out",
        dropout_target=windows * agents,
    )
    groups = made_groups(base, windows, agents, seed)
    snapshot = make_snapshot(groups, f"memory-{windows}", recipe.as_json(), seed)
    with database.connect() as connection:
        save_snapshot(connection, snapshot)
    return TrainerRequest(
        checkpoint_id=f"memory-{windows}@1",
        snapshot_id=snapshot.snapshot_id,
        parent_id=f"memory-{windows}@0",
        parent_folder=None,
        parent_step=0,
        base_folder=str(base),
        folder=str(folder / str(windows)),
        recipe=recipe,
        device="cpu",
        threads=1,
    )


def made_groups(base: Path, windows: int, agents: int, seed: int) -> Iterator[Group]:
    """Groups of simulated windows whose answers were drawn uniformly from the choices; rewards are random numbers."""
    from transformers import AutoTokenizer

    from babylon_rl.training.chat_tokens import ChatTokens

    chat, stream = ChatTokens(AutoTokenizer.from_pretrained(base)), random_stream(seed, "train", 0, "memory")
    for index in range(windows):
        window = make_window(seed, "train", index)
        members = []
        for place, agent in enumerate(make_agents(seed, "train", index, agents)):
            texts = choices(agent.instrument)
            response = stream.choice(texts)
            tokens = chat.answer(response)
            decision = Decision(
                call_id=f"call-{index}-{place}",
                system_prompt=system_prompt(),
                user_prompt=observation(window, agent),
                response=response,
                token_ids=tokens,
                logprobs=[-math.log(len(texts)), *[0.0] * (len(tokens) - 1)],  # the first token tells the choices apart
                prompt_token_ids=[],
                choices=texts,
                temperature=1.0,
                top_p=1.0,
                exploration=1.0,
            )
            decision = msgspec.structs.replace(decision, prompt_token_ids=chat.prompt(messages_of(decision)))
            members.append(
                Member(
                    trajectory_id=f"trajectory-{index:06d}-{place:02d}",
                    agent_id=agent.agent_id,
                    reward=stream.gauss(0, 0.01),
                    advantage=0.0,
                    checkpoint="memory@0",
                    decisions=[decision],
                )
            )
        yield Group(window_id=shift_window(FIRST, index), scorer="alpha", scorer_version="1", members=members)


def _train(url: str, request: bytes) -> tuple[int, float]:
    begun = time.monotonic()
    train_update(msgspec.json.decode(request, type=TrainerRequest), Database(url, embedded=True), lambda _: None)
    return peak_bytes(), time.monotonic() - begun
