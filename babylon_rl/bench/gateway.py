"""`babylon-rl bench gateway`: what the gateway adds to its upstream's time, beside LiteLLM's proxy in the same run.

Rounds take turns: the upstream asked directly, through the gateway with recording on, through the proxy. Gateway and
proxy have one core, each in its turn; upstream and generator share another. What a call is over the upstream is its
latency less the median of the direct calls of its round. The proxy is also asked at a calm rate, for on one core it may
not keep up with the other, and then its figures say nothing but that.
"""

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import psutil

from babylon_rl.bench.environments import make_environment
from babylon_rl.bench.load import Load, Upstream
from babylon_rl.errors import BabylonError
from babylon_rl.serving.gateway.files import SPOOL, write_keys, write_routes
from babylon_rl.serving.gateway.keys import Key, secret_digest
from babylon_rl.serving.gateway.process import RunningGateway, running_gateway
from babylon_rl.serving.gateway.spool import lines, segments
from babylon_rl.serving.lifetime import free_port
from babylon_rl.serving.routing import Routes, Target

LITELLM = "litellm[proxy]==1.106.2"
MOST_MEDIAN_MS, MOST_P99_MS = 3.0, 10.0
SECRET = "brl_bench"
DIRECT, GATEWAY, PROXY = "upstream alone", "gateway", "LiteLLM's proxy"
CALM_PROXY, CALM_RATE = "LiteLLM's, calm", 20.0  # calls a second that the proxy has time for on one core
WARM_SECONDS = 2.0


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in seconds of one way, a list a round, and CPU seconds of its server over all of them."""

    name: str
    latencies: list[list[float]]
    failed: int
    cpu_seconds: float

    @property
    def calls(self) -> int:
        """Answered calls."""
        return sum(map(len, self.latencies))


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the rounds came to. `recorded`: calls in the spool, `sent`: through the gateway, the warm-up included."""

    rate: float
    seconds: float
    seed: int
    cores: tuple[int, int]
    ways: list[Way]
    fsyncs: int
    recorded: int
    sent: int
    load_average: float

    def over(self, way: Way) -> list[float]:
        """Milliseconds over the upstream of each call, in order."""
        direct = self.ways[0].latencies
        return sorted(
            1000 * (latency - statistics.median(alone))
            for alone, round_ in zip(direct, way.latencies, strict=True)
            for latency in round_
        )

    def figures(self) -> dict[str, dict[str, float]]:
        """By way: p50, p95 and p99 of latency and of what is over the upstream, in ms; calls; failed; CPU a call."""
        found = {}
        for way in self.ways:
            latency, over = sorted(1000 * one for round_ in way.latencies for one in round_), self.over(way)
            found[way.name] = {
                **{f"p{p}": _percentile(latency, p) for p in (50, 95, 99)},
                **{f"over_p{p}": _percentile(over, p) for p in (50, 95, 99)},
                "calls": way.calls,
                "failed": way.failed,
                "cpu_ms": 1000 * way.cpu_seconds / max(1, way.calls),
            }
        return found

    def missed(self) -> list[str]:
        """Figures that are not reached."""
        figures = self.figures()
        own = figures[GATEWAY]
        found = []
        if own["over_p50"] > MOST_MEDIAN_MS or own["over_p99"] > MOST_P99_MS:
            found.append(f"over the upstream at most {MOST_MEDIAN_MS} ms (p50) and {MOST_P99_MS} ms (p99)")
        proxies = [figures[name] for name in (PROXY, CALM_PROXY) if name in figures]
        if any(own[name] >= proxy[name] for proxy in proxies for name in ("over_p50", "over_p99")):
            found.append("less than LiteLLM's proxy at p50 and p99, also where that has few calls")
        if any(way.failed for way in self.ways[:2]):
            found.append("no call fails")
        if self.recorded != self.sent:
            found.append(f"each of {self.sent} calls is recorded once; the spool holds {self.recorded}")
        return found

    @property
    def reached(self) -> bool:
        """Whether all figures are."""
        return not self.missed()

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            **{name: value for name, value in msgspec.structs.asdict(self).items() if name != "ways"},
            "rounds": len(self.ways[0].latencies),
            "ways": self.figures(),
            "missed": self.missed(),
            "reached": self.reached,
        }

    def table(self) -> str:
        """As a person reads it."""
        rounds = len(self.ways[0].latencies)
        server, other = self.cores
        out = [
            f"{self.rate:g} calls a second, {rounds} rounds of {self.seconds:g} s each way, seed {self.seed}; server "
            f"on core {server}, upstream and generator on core {other}; load average {self.load_average:.1f}; ms",
            f"{'':<18}{'p50':>10}{'p95':>10}{'p99':>10}{'over p50':>10}{'p95':>10}{'p99':>10}{'calls':>8}{'failed':>8}"
            f"{'CPU':>7}",
        ]
        for name, row in self.figures().items():
            latency = "".join(f"{row[f'p{p}']:>10.2f}" for p in (50, 95, 99))
            over = f"{row['over_p50']:>10.2f}{row['over_p95']:>10.2f}{row['over_p99']:>10.2f}"
            out.append(f"{name:<18}{latency}{over}{row['calls']:>8}{row['failed']:>8}{row['cpu_ms']:>7.2f}")
        out.append(f"recorded: {self.recorded} of {self.sent} calls through the gateway, {self.fsyncs} fsyncs")
        out += [f"MISSED: {one}" for one in self.missed()] or ["reached"]
        return "\n".join(out)


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def measure_gateway(
    home: Path, rate: float, seconds: float, rounds: int, seed: int, proxy: bool, say: Callable[[str], None]
) -> Measured:
    """Rounds of the ways; `proxy`: with LiteLLM's, which is installed under `home` on first use."""
    import uvloop

    python = make_environment(home, "litellm", [[LITELLM]], "1 GB", say) if proxy else None
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BabylonError(
            "The bench needs two cores: one for the server, one for upstream and generator. Run it where there are."
        )
    cores = allowed[0], allowed[1]
    before = signal.getsignal(signal.SIGINT)
    os.sched_setaffinity(0, {cores[1]})
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(python, cores, rate, seconds, rounds, seed, say))
    finally:
        os.sched_setaffinity(0, set(allowed))
        signal.signal(signal.SIGINT, before)


class _Course(NamedTuple):
    """A way that is measured: who is asked, how often, and the process that answers."""

    name: str
    port: int
    rate: float
    process: psutil.Process | None


async def _measure(
    python: Path | None,
    cores: tuple[int, int],
    rate: float,
    seconds: float,
    rounds: int,
    seed: int,
    say: Callable[[str], None],
) -> Measured:
    upstream = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway = await asyncio.to_thread(stack.enter_context, _gateway(folder, port, cores[0]))
        own = int(gateway.address.rpartition(":")[2])
        courses = [
            _Course(DIRECT, port, rate, None),
            _Course(GATEWAY, own, rate, psutil.Process(gateway.process.pid)),
        ]
        if python is not None:
            say("starting LiteLLM's proxy")
            process, theirs = await asyncio.to_thread(stack.enter_context, _proxy(python, folder, port, cores[0]))
            watched = psutil.Process(process.pid)
            courses += [_Course(PROXY, theirs, rate, watched), _Course(CALM_PROXY, theirs, CALM_RATE, watched)]
        load_average = os.getloadavg()[0]
        ways, sent = await _rounds(courses, seconds, rounds, seed, say)
        async with httpx.AsyncClient(trust_env=False) as client:
            fsyncs = (await client.get(f"{gateway.address}/health")).json()["fsyncs"]
        recorded = [_id(line) for segment in segments(folder / SPOOL) for _, line in lines(folder / SPOOL, segment)]
        upstream.close()
        await asyncio.to_thread(stack.close)
    return Measured(
        rate=rate,
        seconds=seconds,
        seed=seed,
        cores=cores,
        ways=ways,
        fsyncs=fsyncs,
        recorded=len(recorded) if len(set(recorded)) == len(recorded) else -1,
        sent=sent,
        load_average=max(load_average, os.getloadavg()[0]),
    )


async def _rounds(
    courses: list[_Course], seconds: float, rounds: int, seed: int, say: Callable[[str], None]
) -> tuple[list[Way], int]:
    """The courses in turn, and the calls that went through the gateway; a round before the first warms up."""
    runs: dict[str, list[Load]] = {course.name: [] for course in courses}
    cpu, sent = dict.fromkeys(runs, 0.0), 0
    for number in range(-1, rounds):
        for name, port, rate, process in courses:
            load = Load(port, SECRET, rate, WARM_SECONDS if number < 0 else seconds, seed + number)
            begun = _cpu(process)
            await load.run()
            sent += len(load.times) if name == GATEWAY else 0
            if number >= 0:
                runs[name].append(load)
                cpu[name] += _cpu(process) - begun
                median = 1000 * statistics.median(load.latencies or [float("nan")])
                say(f"round {number + 1} of {rounds}, {name}: median {median:.2f} ms")
    ways = [
        Way(
            name=name,
            latencies=[load.latencies for load in loads],
            failed=sum(load.failed for load in loads),
            cpu_seconds=cpu[name],
        )
        for name, loads in runs.items()
    ]
    return ways, sent


def _id(line: bytes) -> str:
    return msgspec.json.decode(line)["call_id"]


def _cpu(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    each = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (one.cpu_times() for one in each))


def _gateway(folder: Path, port: int, core: int) -> contextlib.AbstractContextManager[RunningGateway]:
    """A gateway on the core that has one target, the upstream."""
    target = Target(checkpoint_id="bench", base_url=f"http://127.0.0.1:{port}/v1", model="bench")
    write_routes(folder, Routes(promoted=target, base=target, targets={"bench": target}))
    limits = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000, "in_flight": 10_000}
    write_keys(folder, [Key(key_id="bench", secret_sha256=secret_digest(SECRET), scopes=("call",), **limits)])
    return running_gateway(folder, prefix=("taskset", "-c", str(core)))


@contextlib.contextmanager
def _proxy(python: Path, folder: Path, port: int, core: int) -> Iterator[tuple[subprocess.Popen, int]]:
    """LiteLLM's proxy on the core: one model, one worker, no key, no database, no log of calls."""
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: babylon\n    litellm_params:\n      model: openai/bench\n"
        f"      api_base: http://127.0.0.1:{port}/v1\n      api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
    )
    own = free_port()
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    quiet["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # on loopback, and cheaper for it
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DATABASE_URL", "BABYLON_RL"))}
    command = [str(python), "-I", str(python.with_name("litellm")), "--config", str(config)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command, "--host", "127.0.0.1", "--port", str(own), "--num_workers", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=inherited | quiet,
            cwd=folder,
            start_new_session=True,
        )
        try:
            _wait(process, own, log)
            yield process, own
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen, port: int, log: Any) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=2, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    log.seek(0)
    said = " ".join(log.read().decode(errors="replace").split()[-60:])
    raise BabylonError(f"LiteLLM's proxy did not start: {said or 'it said nothing'}")
