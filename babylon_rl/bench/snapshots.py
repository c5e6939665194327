"""`babylon-rl bench snapshots`: seconds and memory of a snapshot of many trajectories, from stored groups to saved.

A process of its own does what an update does: it reads the rows of `art_groups`, checks each group's digest, admits
members, centres advantages over minibatches, and saves. The groups are made by seed, on a server of the bench's own.
"""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import psutil

from babylon_rl.bench.made_rows import NEWS, TICKERS
from babylon_rl.bench.memory import peak_bytes
from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.bulk import copy_rows
from babylon_rl.database.connect import Database
from babylon_rl.database.tables import art_groups
from babylon_rl.groups.provenance import Lineage
from babylon_rl.groups.snapshots import Origin, build_snapshot, stream_groups
from babylon_rl.groups.statuses import TRAINABLE
from babylon_rl.groups.stored import group_rows, sources_of, stream_trainable
from babylon_rl.groups.trained_view import Decision, Group, Member, digest_of, encode_group
from babylon_rl.windows import shift_window

FIRST = "2024-03-01T00:00"
MEMBERS = 8  # of a window
MOST_SECONDS = 60.0
MOST_BYTES = 1_000_000_000
VOCABULARY = 49_152
VERBS = ("BUY", "SELL", "HOLD")
SETTINGS = {"advantages": "leave_one_out_action_centred", "minibatches": 8, "dropout_target": 1_000_000_000}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of so many trajectories. `json_bytes`: stored.

    `cpu`, `server_cpu`: seconds of processor time within `seconds`, of the process and of the server for it. They take
    turns, so on an idle machine their sum is about all of it; on a busy one they tell the work from the waiting.
    """

    trajectories: int
    windows: int
    seconds: float
    cpu: float
    server_cpu: float
    peak_bytes: int
    read_seconds: float
    json_bytes: int

    @property
    def reached(self) -> bool:
        """Whether time and memory are within their limits."""
        return self.seconds <= MOST_SECONDS and self.peak_bytes <= MOST_BYTES


class Snapshots(msgspec.Struct, frozen=True, kw_only=True):
    """The figures by size, and how much memory each trajectory more takes."""

    seed: int
    measured: list[Measured]

    @property
    def reached(self) -> bool:
        """Whether every size is within the limits."""
        return all(each.reached for each in self.measured)

    @property
    def bytes_a_trajectory(self) -> float | None:
        """Growth of the peak from the first size to the last; None for one size."""
        first, last = self.measured[0], self.measured[-1]
        more = last.trajectories - first.trajectories
        return (last.peak_bytes - first.peak_bytes) / more if more else None

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            **msgspec.to_builtins(self),
            "bytes_a_trajectory": self.bytes_a_trajectory,
            "limits": {"seconds": MOST_SECONDS, "peak_bytes": MOST_BYTES},
            "reached": self.reached,
        }

    def table(self) -> str:
        """As a person reads it."""
        lines = [
            f"{'reached' if one.reached else 'MISSED'}: {one.trajectories:,} trajectories in {one.windows:,} windows, "
            f"{one.json_bytes / 1e6:,.0f} MB of JSON: {one.seconds:.1f} s (at most {MOST_SECONDS:.0f}), "
            f"of processor time {one.cpu:.1f} s of its own and {one.server_cpu:.1f} s of the server; "
            f"peak {one.peak_bytes / 1e6:,.0f} MB (at most {MOST_BYTES / 1e6:,.0f}); "
            f"read back in {one.read_seconds:.1f} s"
            for one in self.measured
        ]
        if self.bytes_a_trajectory is not None:
            lines.append(f"seed {self.seed}; a trajectory more takes {self.bytes_a_trajectory:,.0f} bytes of memory")
        return "\n".join(lines)


def measure_snapshots(sizes: Sequence[int], seed: int, say: Callable[[str], None]) -> Snapshots:
    """A snapshot of each of the sizes, smallest first, each in a fresh process on a server of its own."""
    measured = []
    for size in sorted(sizes):
        windows = max(1, size // MEMBERS)
        with scratch_server() as (_, database):
            say(f"{size:,} trajectories: storing their groups")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(fill, (database.url, windows, seed))
            say(f"{size:,} trajectories: making the snapshot")
            # A fresh process: one that was forked would begin with this one's memory.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured.append(pool.apply(work, (database.url, windows, seed)))
    return Snapshots(seed=seed, measured=measured)


def made_group(window_id: str, seed: int) -> Group:
    """A window's group of a realistic size and shape: prompts of about 1.5 kB and 200 to 300 tokens."""
    chance = random.Random(f"{seed} {window_id}")
    members = [_made_member(chance, window_id, place) for place in range(MEMBERS)]
    return Group(window_id=window_id, scorer="alpha", scorer_version="2", members=members)


def _made_member(chance: random.Random, window_id: str, place: int) -> Member:
    name = f"bench-{window_id}-{place}"
    prices = "\n".join(f"{ticker}: {chance.uniform(1, 900):.2f} ({chance.gauss(0, 3):+.2f} %)" for ticker in TICKERS)
    decision = Decision(
        call_id=f"{name}-0-0",
        system_prompt="You trade shares for a living. Answer with one word.",
        user_prompt=f"{prices}\n{NEWS * chance.randint(9, 13)}\nYou hold {chance.randint(0, 90)} shares.",
        response=chance.choice(VERBS),
        token_ids=[chance.randrange(VOCABULARY), 2],
        logprobs=[-chance.expovariate(1.0), -chance.expovariate(1e6)],
        prompt_token_ids=chance.choices(range(VOCABULARY), k=chance.randint(200, 300)),
        choices=list(VERBS),
        temperature=1.0,
        top_p=1.0,
        exploration=0.1,
    )
    return Member(
        trajectory_id=name,
        agent_id=f"agent-{place}",
        reward=chance.gauss(0, 0.01),
        advantage=0.0,
        checkpoint="run@0",
        decisions=[decision],
    )


def fill(url: str, windows: int, seed: int) -> None:
    """Store the groups of so many windows."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in range(windows):
            group = made_group(shift_window(FIRST, number), seed)
            rewards = [member.reward for member in group.members]
            digest = digest_of(group)
            yield (group.window_id, encode_group(group), digest, TRAINABLE, "made", len(rewards), [], group.scorer,
                   max(rewards) - min(rewards), {"tolerance": 1e-6}, digest)  # fmt: skip

    columns = ("window_id", "group", "group_digest", "status", "reason", "members", "left_out", "scorer",
               "reward_spread", "settings", "digest")  # fmt: skip
    with Database(url, embedded=True).connect() as connection:
        copy_rows(connection, art_groups, columns, rows(), batch=100)


def work(url: str, windows: int, seed: int) -> Measured:
    """Make the snapshot of the windows, save it and read it back."""
    database, wanted = Database(url, embedded=True), [shift_window(FIRST, number) for number in range(windows)]
    began, cpu = time.monotonic(), time.process_time()
    with database.connect() as connection:
        sources = sources_of(group_rows(connection, wanted))
        header = build_snapshot(
            connection,
            (group for groups in stream_trainable(connection, sources) for group in groups),
            "run",
            SETTINGS,
            seed,
            lineage=Lineage("run", {"run@0": 0}, 0),
            origin=Origin(windows=wanted, sources=sources, refused={}),
        )
        spent = psutil.Process(connection.info.backend_pid).cpu_times()
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    began = time.monotonic()
    with database.connect() as connection:
        members = sum(len(group.members) for group in stream_groups(connection, header.snapshot_id))
        read_seconds = time.monotonic() - began
        (size,) = connection.execute(
            "SELECT sum(octet_length(content)) FROM babylon_rl.snapshot_groups"
        ).fetchone() or (0,)
    if (header.groups, members) != (windows, windows * MEMBERS):
        raise AssertionError(f"{members} members in {header.groups} groups were saved of {windows} windows")
    return Measured(
        trajectories=members,
        windows=windows,
        seconds=seconds,
        cpu=cpu,
        server_cpu=spent.user + spent.system,
        peak_bytes=peak_bytes(),
        read_seconds=read_seconds,
        json_bytes=int(size),
    )
