"""Made-up results of seeds."""

from babylon_rl.bench.results import Estimate, Evidence, Point, SeedResult, Spent


def evidence(*, effect: float = 3.0, promoted: bool = True, unseen: float | None = 2.0, curve=(0.0, 3.0)) -> Evidence:
    """A demo's evidence; every interval is one dollar to each side."""
    return Evidence(
        promoted=promoted,
        updates=len(curve),
        candidate=f"demo@{len(curve)}",
        over_start=around(effect),
        over_best_fixed=around(effect - 0.5),
        best_fixed="random",
        pnl=around(effect),
        informed=4.0,
        fixed={"always_buy": -0.2, "always_sell": -0.3, "hold": 0.0, "random": -0.1},
        unseen=None if unseen is None else around(unseen),
        training=[Point(updates, pnl, pnl - 1, pnl + 1) for updates, pnl in enumerate(curve)],
        validation=[],
    )


def around(mean: float) -> Estimate:
    return Estimate(mean, mean - 1, mean + 1)


def result(seed: int, **changes) -> SeedResult:
    """A finished seed."""
    return SeedResult(seed=seed, spent=Spent(seconds=1800, peak_bytes=3 * 10**9), evidence=evidence(**changes))


def failed(seed: int) -> SeedResult:
    """A seed whose demo ended with an error."""
    return SeedResult(seed=seed, spent=Spent(seconds=60, peak_bytes=10**9), error="Nothing was left to train on.")
