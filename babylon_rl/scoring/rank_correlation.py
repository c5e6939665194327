"""Rank correlation of two series that have ties: Kendall's tau-b, and the partial one given a third series."""

import math
from collections.abc import Sequence

import numpy as np

LEAST_PAIRS = 3


def tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two series of equal length, -1..1; a place where either is not finite is left out.

    (concordant - discordant pairs) / sqrt(pairs not tied in the first * pairs not tied in the second), after M. G.
    Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945) 239-251. None for fewer than three
    places, or where one of the series has one value only. Whatever the order of the places, it is the same number.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < LEAST_PAIRS:
        return None
    agreeing = untied_x = untied_y = 0
    # A row of pairs at a time: memory stays linear in the number of runs.
    for place in range(len(x) - 1):
        above_x, above_y = np.sign(x[place + 1 :] - x[place]), np.sign(y[place + 1 :] - y[place])
        agreeing += int(above_x @ above_y)
        untied_x += int(np.count_nonzero(above_x))
        untied_y += int(np.count_nonzero(above_y))
    if not untied_x or not untied_y:
        return None
    return agreeing / math.sqrt(untied_x * untied_y)


def partial_tau(xy: float | None, xz: float | None, yz: float | None) -> float | None:
    """Rank correlation of x and y with z held fixed, from the three tau: (xy - xz yz) / sqrt((1 - xz^2)(1 - yz^2)).

    After M. G. Kendall, "Partial rank correlation", Biometrika 32 (1942) 277-283. None where one of the three is not
    known, or where z orders x or y completely.
    """
    if xy is None or xz is None or yz is None:
        return None
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > 1e-12 else None
