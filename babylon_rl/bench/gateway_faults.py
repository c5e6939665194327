"""`babylon-rl bench gateway-faults`: calls through a real gateway while all that it stands on is killed and restarted.

Gateway, shipper, upstream and a PostgreSQL server of the bench's own are processes; at moments that the seed chooses
one of them is killed with SIGKILL and started again. Clients ask until they are answered, with the same request id. At
the end what they were answered is compared with the rows.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from babylon_rl.bench.scratch import scratch_server
from babylon_rl.database.connect import Database
from babylon_rl.database.embedded import EmbeddedServer
from babylon_rl.serving.gateway.files import write_keys, write_routes
from babylon_rl.serving.gateway.keys import Key, secret_digest
from babylon_rl.serving.gateway.memory import binds
from babylon_rl.serving.gateway.process import gateway_command
from babylon_rl.serving.gateway.shipper import read_status, refused_lines, waiting_bytes
from babylon_rl.serving.lifetime import free_port
from babylon_rl.serving.routing import Routes, Target

SECRET, KEY_ID = "brl_bench_faults", "bench"
CLIENTS = 24
STREAMED = 0.25  # share of the calls
ASKED_AGAIN = 0.05  # share of the answered calls that are asked once more at the end
BETWEEN_KILLS = (0.4, 1.6)  # seconds
PATIENCE = 120.0  # seconds for a call, and for the spool to be empty at the end
PARTS = ("gateway", "shipper", "upstream", "postgresql")


class GatewayFaults(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the calls. `lost`: answered to a client without a row; `doubled`: ids with two whole answers.

    `different`: rows that are not what the client got, and repeated requests that got another answer than the first.
    `retries`: requests that were sent again; `broken_off`: attempts without a whole answer, kept beside it. `gaps`:
    calls that the gateway says it did not record.
    """

    calls: int
    seed: int
    seconds: float
    kills: dict[str, int]
    retries: int
    unanswered: int
    lost: int
    doubled: int
    different: int
    broken_off: int
    put_aside: int
    gaps: int

    @property
    def reached(self) -> bool:
        """Whether each call was answered and is there once, as it was answered."""
        return not (self.unanswered or self.lost or self.doubled or self.different or self.put_aside or self.gaps)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        killed = ", ".join(f"{part} {self.kills.get(part, 0)}" for part in PARTS)
        return "\n".join(
            [
                f"{self.calls} calls in {self.seconds:.0f} s, seed {self.seed}; sent again: {self.retries}, "
                f"streams that broke off: {self.broken_off}",
                f"killed: {killed}",
                f"not answered {self.unanswered}, lost {self.lost}, doubled {self.doubled}, "
                f"different {self.different}, put aside {self.put_aside}, told as not recorded {self.gaps}",
                "reached" if self.reached else "MISSED: each call is there once, as it was answered",
            ]
        )


def measure_gateway_faults(calls: int, seed: int, say: Callable[[str], None]) -> GatewayFaults:
    """Send the calls while parts are killed, and compare what was answered with the rows."""
    with tempfile.TemporaryDirectory() as scratch, scratch_server() as (server, database):
        begun = time.monotonic()
        parts = _Parts(Path(scratch), server, database)
        try:
            asked = asyncio.run(_asked(parts, calls, seed, say))
            parts.settle(say)
        finally:
            parts.end()
        return _compared(parts, database, asked, calls, seed, time.monotonic() - begun)


class _Asked(msgspec.Struct):
    """What clients saw: answers by request id, and what differed when asked again."""

    answers: dict[str, tuple[str, bytes]] = {}
    retries: int = 0
    changed: int = 0


class _Parts:
    """The processes, each of which can be killed and started again."""

    def __init__(self, folder: Path, server: EmbeddedServer, database: Database) -> None:
        self.folder, self.server, self.database = folder, server, database
        self.gateway_port, self.upstream_port = free_port(), free_port()
        self.kills: Counter[str] = Counter()
        self.running: dict[str, subprocess.Popen] = {}
        target = Target(checkpoint_id="c1", base_url=f"http://127.0.0.1:{self.upstream_port}/v1", model="m")
        write_routes(folder, Routes(promoted=target, base=None))
        write_keys(folder, [Key(key_id=KEY_ID, secret_sha256=secret_digest(SECRET), scopes=("call", "record"))])
        for part in ("upstream", "gateway", "shipper"):
            self.start(part)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}/v1/chat/completions"

    def start(self, part: str) -> None:
        if part == "postgresql":
            self.server.up()
            return
        command = {
            "gateway": gateway_command(self.folder, self.gateway_port),
            "shipper": [*_module("babylon_rl.serving.gateway.shipper"), "--folder", str(self.folder), "--parent-pipe"],
            "upstream": [*_module("babylon_rl.bench.faulty_upstream"), str(self.upstream_port)],
        }[part]
        with (self.folder / f"{part}.log").open("ab") as log:
            self.running[part] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **self.database.variables()}
            )

    def kill(self, part: str) -> None:
        """End the part at once; it is not there until it is started."""
        self.kills[part] += 1
        if part == "postgresql":
            pid = int((self.server.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGKILL)
            return
        process = self.running[part]
        process.kill()
        process.wait()
        process.stdin.close()

    def settle(self, say: Callable[[str], None]) -> None:
        """Wait until all is shipped, with every part there."""
        self.server.up()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status = read_status(self.folder)
            if waiting_bytes(self.folder) == 0 and status is not None and status.error is None:
                return
            time.sleep(0.1)
        say(f"The spool is not empty after {PATIENCE:.0f} s: {read_status(self.folder)}")

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def _module(name: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", name]


# --- clients ------------------------------------------------------------------------------------------


async def _asked(parts: _Parts, calls: int, seed: int, say: Callable[[str], None]) -> _Asked:
    seen, waiting, done = _Asked(), iter(range(calls)), asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with httpx.AsyncClient(headers=headers, timeout=20, limits=limits, trust_env=False) as client:

        async def work() -> None:
            for number in waiting:
                await _ask(client, parts.url, f"r{number}", _body(number, seed), seen)

        killing = asyncio.create_task(_kill_at_random(parts, seed, done))
        telling = asyncio.create_task(_tell(seen, calls, say))
        try:
            await asyncio.gather(*(work() for _ in range(CLIENTS)))
        finally:
            done.set()
            telling.cancel()
            await killing
        again = random.Random(f"{seed}/again").sample(sorted(seen.answers), int(len(seen.answers) * ASKED_AGAIN))
        for request_id in again:
            before = seen.answers[request_id]
            await _ask(client, parts.url, request_id, _body(int(request_id[1:]), seed), seen)
            seen.changed += seen.answers[request_id] != before
    return seen


def _body(number: int, seed: int) -> bytes:
    streamed = random.Random(f"{seed}/{number}").random() < STREAMED
    messages = [{"role": "system", "content": "You trade."}, {"role": "user", "content": f"News {number}: good."}]
    return msgspec.json.encode({"model": "babylon", "messages": messages, "max_tokens": 8, "stream": streamed})


async def _ask(client: httpx.AsyncClient, url: str, request_id: str, body: bytes, seen: _Asked) -> None:
    """Ask until there is a whole answer, as a patient client does."""
    headers = {"X-Request-Id": request_id, "Content-Type": "application/json"}
    deadline, pause = time.monotonic() + PATIENCE, 0.05
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            response = await client.post(url, content=body, headers=headers)
            streamed = response.headers.get("content-type", "").startswith("text/event-stream")
            if response.status_code == 200 and (not streamed or response.content.rstrip().endswith(b"[DONE]")):
                seen.answers[request_id] = (response.headers["x-babylon-call"], response.content)
                return
        seen.retries += 1
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 1.5)


async def _kill_at_random(parts: _Parts, seed: int, done: asyncio.Event) -> None:
    chance = random.Random(seed)
    while not done.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), chance.uniform(*BETWEEN_KILLS))
            return
        part, away = chance.choice(PARTS), chance.uniform(0, 0.3)
        await asyncio.to_thread(parts.kill, part)
        await asyncio.sleep(away)
        await asyncio.to_thread(parts.start, part)


async def _tell(seen: _Asked, calls: int, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(10)
        say(f"{len(seen.answers)} of {calls} answered, {seen.retries} sent again")


# --- the comparison ------------------------------------------------------------------------------------


def _compared(parts: _Parts, database: Database, asked: _Asked, calls: int, seed: int, seconds: float) -> GatewayFaults:
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT call_id, status, finish_reason, request_id, request, response FROM babylon_rl.gateway_calls"
        ).fetchall()
        # An attempt that broke off is a row of its own, and no answer.
        found = {call_id: rest for call_id, status, finish, *rest in rows if binds(status, finish)}
        gaps = connection.execute("SELECT coalesce(sum(calls), 0) FROM babylon_rl.recording_gaps").fetchone()
    by_request = Counter(request_id for request_id, _, _ in found.values())
    lost = different = 0
    for request_id, (call_id, content) in asked.answers.items():
        row = found.get(call_id)
        lost += row is None
        wanted = [request_id, _body(int(request_id[1:]), seed).decode(), content.decode()]
        different += row is not None and row != wanted
    return GatewayFaults(
        calls=calls,
        seed=seed,
        seconds=seconds,
        kills=dict(parts.kills),
        retries=asked.retries,
        unanswered=calls - len(asked.answers),
        lost=lost,
        doubled=sum(count > 1 for count in by_request.values()),
        different=different + asked.changed,
        broken_off=len(rows) - len(found),
        put_aside=len(refused_lines(parts.folder)),
        gaps=int(gaps[0]) if gaps else 0,
    )
