"""Ways of doing the same work, timed in turn in one run: medians, ranges, and ratios against their limits."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What `of` may take of the time of `against`: at most `most` times, or `least` times less of it."""

    of: str
    against: str
    most: float | None = None
    least: float | None = None

    def holds(self, ratio: float) -> bool:
        """Whether the ratio of the two times is within the limit."""
        return (self.most is None or ratio <= self.most) and (self.least is None or 1 / ratio >= self.least)


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each way, one a round; what stands at one place ran in one round."""

    title: str
    rows: int
    seconds: dict[str, list[float]]
    limits: list[Limit]

    def ratio(self, limit: Limit) -> float:
        """Median over rounds of what the one took of the other's time in that round."""
        pairs = zip(self.seconds[limit.of], self.seconds[limit.against], strict=True)
        return statistics.median(one / other for one, other in pairs)

    @property
    def reached(self) -> bool:
        """Whether all limits hold."""
        return all(limit.holds(self.ratio(limit)) for limit in self.limits)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; seconds."""
        limits = [
            {**msgspec.to_builtins(limit), "ratio": self.ratio(limit), "reached": limit.holds(self.ratio(limit))}
            for limit in self.limits
        ]
        return {**msgspec.to_builtins(self), "limits": limits, "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        lines = [self.title, f"{'':<34}{'median':>9}{'range':>17}{'rows/s':>10}"]
        for name, taken in self.seconds.items():
            median, span = statistics.median(taken), f"{min(taken):.2f} - {max(taken):.2f}"
            lines.append(f"{name:<34}{median:>7.2f} s{span:>17}{self.rows / median:>10,.0f}")
        for limit in self.limits:
            ratio = self.ratio(limit)
            said = f"{ratio:.2f} times the time of {limit.against}, at most {limit.most}"
            if limit.least is not None:
                said = f"{1 / ratio:.2f} times as fast as {limit.against}, at least {limit.least}"
            lines.append(f"{'reached' if limit.holds(ratio) else 'MISSED'}: {limit.of}: {said}")
        return "\n".join(lines)


def take_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, list[float]]:
    """Seconds that each way says it took, in `rounds` rounds; each begins with another way, so that none is favoured.

    One round before them is not counted: imports, first connections and cold files.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names: Sequence[str] = list(ways)
    for number in range(-1, rounds):
        turn = max(number, 0) % len(names)
        seconds = {name: ways[name]() for name in (*names[turn:], *names[:turn])}
        if number >= 0:
            say(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {s:.2f} s" for n, s in seconds.items()))
            for name, took in seconds.items():
                taken[name].append(took)
    return taken
