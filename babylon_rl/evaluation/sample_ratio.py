"""Whether agents came to the arms as planned: an always-valid check of the share of agent-windows."""

import math
from collections.abc import Sequence

from babylon_rl.errors import RecordingError, SettingsError

# How closely to the planned share a broken one is looked for: as a Beta distribution of so many prior observations.
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
    ours, all_ = 0, 0
    lowest = 0.0
    for own, both in zip(candidate, total, strict=True):
        if not 0 <= own <= both:
            raise RecordingError(f"A window has {own} of {both} agents in the candidate's arm.")
        ours, all_ = ours + own, all_ + both
        lowest = max(lowest, _log_ratio(ours, all_ - ours, share))
    return math.exp(-lowest)


def _log_ratio(ours: int, theirs: int, share: float) -> float:
    one, other = CONCENTRATION * share, CONCENTRATION * (1 - share)
    mixed = _log_beta(one + ours, other + theirs) - _log_beta(one, other)
    return mixed - ours * math.log(share) - theirs * math.log1p(-share)


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)
