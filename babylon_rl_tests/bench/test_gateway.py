"""The bench of the gateway: its load is open-loop and its figures say what they are said to be."""

import asyncio
import time

from babylon_rl.bench.gateway import DIRECT, GATEWAY, PROXY, Measured, Way
from babylon_rl.bench.load import Load, Upstream, request_body


def way(name: str, *rounds: list[float], failed: int = 0) -> Way:
    return Way(name=name, latencies=list(rounds), failed=failed, cpu_seconds=1.0)


def measured(*ways: Way, recorded: int = 4, sent: int = 4) -> Measured:
    return Measured(
        **{"rate": 200.0, "seconds": 1.0, "seed": 0, "cores": (0, 1), "fsyncs": 3, "load_average": 0.0},
        ways=list(ways),
        recorded=recorded,
        sent=sent,
    )


def test_what_is_over_the_upstream_is_taken_from_the_median_of_the_same_round():
    found = measured(
        way(DIRECT, [0.001, 0.001, 0.5], [0.010]), way(GATEWAY, [0.003, 0.003], [0.012]), way(PROXY, [0.1], [0.1])
    )
    assert [round(one, 6) for one in found.over(found.ways[1])] == [2.0, 2.0, 2.0]
    assert found.reached and found.as_json()["ways"][PROXY]["over_p50"] > 80 and "reached" in found.table()


def test_each_figure_that_is_missed_is_named():
    direct = way(DIRECT, [0.001] * 100)
    assert "3.0 ms" in measured(direct, way(GATEWAY, [0.0045] * 100)).missed()[0]
    assert "10.0 ms" in measured(direct, way(GATEWAY, [0.002] * 98 + [0.02] * 2)).missed()[0]
    assert "LiteLLM" in measured(direct, way(GATEWAY, [0.003]), way(PROXY, [0.002])).missed()[0]
    assert "no call fails" in measured(direct, way(GATEWAY, [0.002], failed=1)).missed()
    assert "recorded once" in measured(direct, way(GATEWAY, [0.002]), recorded=3).missed()[0]


def test_latency_counts_from_the_time_at_which_a_call_was_to_leave():
    """A server that sleeps is met by every call that was to leave meanwhile."""

    async def run() -> Load:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Upstream, "127.0.0.1", 0)
        load = Load(server.sockets[0].getsockname()[1], "k", 200, 0.5, 1)
        drawn = list(load.times)
        assert drawn == Load(1, "k", 200, 0.5, 1).times != Load(1, "k", 200, 0.5, 2).times
        loop.call_later(0.2, time.sleep, 0.2)
        await load.run(connections=2)
        server.close()
        return load

    load = asyncio.run(run())
    assert load.failed == 0 and len(load.latencies) == len(load.times) > 50
    assert sum(one > 0.05 for one in load.latencies) >= 0.2 * len(load.times)


def test_the_upstream_says_tokens_to_who_asks_for_them_alone():
    assert b"return_token_ids" not in request_body()
    assert b"prompt_token_ids" in Upstream.recorded and b"token_ids" not in Upstream.plain
