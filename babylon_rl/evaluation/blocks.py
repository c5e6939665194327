"""From an experiment's hours to its observations: means of blocks of hours, candidate less baseline."""

from collections.abc import Sequence

import numpy as np

from babylon_rl.errors import SettingsError

# A block of which fewer of its counted hours are there is left out: its mean would be much noisier than the others'.
LEAST_SHARE_OF_BLOCK = 0.5


def block_means(differences: Sequence[float] | np.ndarray, block_hours: int) -> np.ndarray:
    """Observations of `paired-by-window`: a mean for each whole block of hours, oldest first.

    `differences`: candidate less baseline, one an hour from the experiment's first window on; NaN for an hour that an
    arm has no agent in, or that is not there yet. A block counts once all its hours have passed and half of them or
    more are there. The last block, as long as it is not whole, is left out.
    """
    means = _means(np.asarray(differences, dtype=float), block_hours, 0)
    return means[np.isfinite(means)]


def switchback_differences(
    levels: Sequence[float] | np.ndarray, candidate_hours: Sequence[bool] | np.ndarray, block_hours: int, burn_in: int
) -> np.ndarray:
    """Observations of `switchback`: a difference for each pair of neighbouring blocks, oldest first.

    `levels`: mean figure over all agents, one an hour from the experiment's first window on, NaN where there is none;
    `candidate_hours`: whether the candidate answered in that hour. The first `burn_in` hours of *every* block are left
    out, also where two neighbouring blocks have the same arm: else which hours count would depend on the draw, and the
    sign of a pair would no longer be independent of them. SettingsError where burn-in leaves nothing of a block.
    """
    if burn_in >= block_hours:
        raise SettingsError(
            f"A burn-in of {burn_in} hours leaves nothing of blocks of {block_hours} hours; "
            "set BABYLON_RL_EXPERIMENT_BURN_IN below BABYLON_RL_EXPERIMENT_BLOCK_HOURS."
        )
    means = _means(np.asarray(levels, dtype=float), block_hours, burn_in)
    pairs = means[: len(means) // 2 * 2].reshape(-1, 2)
    candidate_first = np.asarray(candidate_hours, dtype=bool)[:: 2 * block_hours][: len(pairs)]
    differences = np.where(candidate_first, pairs[:, 0] - pairs[:, 1], pairs[:, 1] - pairs[:, 0])
    return differences[np.isfinite(differences)]


def _means(hours: np.ndarray, block_hours: int, burn_in: int) -> np.ndarray:
    """Mean of each whole block without its burn-in; NaN where too few of its hours are there."""
    if np.isinf(hours).any():
        raise SettingsError("An hour's figure is infinite. Find the window's recording and reject it.")
    blocks = hours[: len(hours) // block_hours * block_hours].reshape(-1, block_hours)[:, burn_in:]
    there = np.isfinite(blocks)
    count = there.sum(axis=1)
    sums = np.where(there, blocks, 0.0).sum(axis=1)
    enough = count >= max(1.0, LEAST_SHARE_OF_BLOCK * (block_hours - burn_in))
    return np.where(enough, sums / np.maximum(count, 1), np.nan)
