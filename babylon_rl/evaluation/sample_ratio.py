"""Whether agents came to the arms as planned: an always-valid check of the share of agent-windows."""

import math
from collections.abc import Sequence

import numpy as np

from babylon_rl.errors import RecordingError, SettingsError

# How closely about the planned share a broken one is looked for: a Beta distribution of so many prior observations.
CONCENTRATION = 100.0


def sample_ratio_p(candidate: Sequence[int], total: Sequence[int], share: float) -> float:
    """P-value of the planned share, valid however often it is asked; it never grows while windows are added.

    `candidate`, `total`: agents of the candidate's arm and of both, one a window in the order of time. The mixture
    martingale of Lindon and Malek (2022, "Anytime-Valid Inference for Multinomial Count Data", arXiv:2011.03567):
    likelihood under shares drawn from a Beta about the planned one, over that under the planned one; the p-value is
    the least inverse of it so far. For `paired-by-window`, where each agent is drawn for itself in each window.
    """
    if not 0 < share < 1:
        raise SettingsError(f"The planned share is {share}; it lies above 0 and below 1.")
    ours, both = np.asarray(candidate, dtype=int), np.asarray(total, dtype=int)
    if ours.shape != both.shape:
        raise RecordingError(f"There are counts of {len(ours)} windows for the candidate and of {len(both)} for both.")
    wrong = np.flatnonzero((ours < 0) | (ours > both))
    if len(wrong):
        raise RecordingError(f"A window has {ours[wrong[0]]} of {both[wrong[0]]} agents in the candidate's arm.")
    if len(ours) == 0:
        return 1.0
    return math.exp(-max(0.0, float(log_evidence(np.cumsum(ours), np.cumsum(both - ours), share).max())))


def log_evidence(ours: np.ndarray, theirs: np.ndarray, share: float) -> np.ndarray:
    """Logarithm of the martingale, for counts so far of both arms, arrays of one shape."""
    one, other = CONCENTRATION * share, CONCENTRATION * (1 - share)
    mixed = _log_rising(one, ours) + _log_rising(other, theirs) - _log_rising(CONCENTRATION, ours + theirs)
    return mixed - ours * math.log(share) - theirs * math.log1p(-share)


def _log_rising(start: float, count: np.ndarray) -> np.ndarray:
    """log(start (start + 1) ... (start + count - 1)), which is log Gamma(start + count) - log Gamma(start)."""
    most = int(count.max(initial=0))
    return np.concatenate([[0.0], np.cumsum(np.log(start + np.arange(most)))])[count]
