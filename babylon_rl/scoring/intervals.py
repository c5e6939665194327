"""The interval of a mean over windows by Student's t."""

import math
from collections.abc import Sequence

import msgspec

_Z = 1.959963984540054
# 97.5 % points of Student's t for 1 to 6 degrees of freedom, where the expansion below is too rough.
_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912)


class Mean(msgspec.Struct, frozen=True):
    """Mean of one figure a window over `windows` of them, and its 95 % interval.

    `value` is None over no window, `low` and `high` over fewer than two.
    """

    windows: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def below(self, floor: float) -> bool:
        """Whether the mean is known and below the floor."""
        return self.value is not None and self.value < floor

    def __str__(self) -> str:
        if self.value is None:
            return "not known"
        return f"{self.value:+.2f}" + ("" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]")


def mean_of(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Mean:
    """Mean and 95 % interval of finite figures, one a window, in any order; `least`, `most`: what a figure can be.

    Windows are taken as independent of each other: where neighbours are alike, the interval is too narrow.
    """
    count = len(values)
    if not count:
        return Mean()
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(1, mean)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_t(count - 1) * spread / math.sqrt(count)
    return Mean(count, mean, max(least, mean - half), min(most, mean + half))


def student_t(degrees: int) -> float:
    """97.5 % point of Student's t (Cornish-Fisher expansion from 7 degrees on, within 0.001)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, v = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
