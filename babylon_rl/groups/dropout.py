"""Which members of a large batch or group are left out: the first system's automatic dropout, as a repeatable choice.

The rate is 0 up to the target and then `min(max_dropout, 1 - target / N)` with the real N. Who is left out follows from
the seed, the window and the member's id alone: neither the order of the members nor a second run changes it.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

from babylon_rl.errors import SettingsError

# Those of the first system: members of an update from which on some are left out, and the largest share of them.
TARGET, MAX_DROPOUT = 1000, 0.3


def dropout_rate(members: int, target: int, max_dropout: float) -> float:
    """Share of the members to leave out, 0..`max_dropout`. SettingsError for a target below 2 or a share outside 0..1.

    Fewer than two members give no advantage, so no target is smaller.
    """
    if target < 2 or not 0 <= max_dropout <= 1:
        raise SettingsError(
            f"A dropout to {target} members of at most {max_dropout} is none: the target is 2 or more, the share "
            "0 to 1."
        )
    return 0.0 if members <= target else min(max_dropout, 1 - target / members)


def drop(ids: Iterable[str], rate: float, window_id: str, seed: int) -> tuple[list[str], list[str]]:
    """The ids that stay and those that are left out, each sorted; whole members, rounded to fewer left out."""
    ranked = sorted(set(ids), key=lambda one: _rank(one, window_id, seed))
    # The nearest double below a whole number would lose one: 1 - 8 / 10 is a little less than 0.2.
    out = math.floor(rate * len(ranked) + 1e-9)
    return sorted(ranked[out:]), sorted(ranked[:out])


def drop_of_batch(members: Iterable[tuple[str, str]], rate: float, seed: int) -> set[tuple[str, str]]:
    """Which of a batch's members, each a window and an id, are left out: as `drop`, over all windows at once.

    Within each window by itself a small rate would leave out nobody.
    """
    if rate <= 0:
        return set()
    ranked = sorted(set(members), key=lambda one: (_rank(one[1], one[0], seed), one))
    return set(ranked[: math.floor(rate * len(ranked) + 1e-9)])


def choose(ids: Sequence[str], most: int, window_id: str, seed: int) -> list[str]:
    """At most `most` of the ids, sorted, by the same choice."""
    return sorted(sorted(set(ids), key=lambda one: _rank(one, window_id, seed))[-most:]) if most > 0 else []


def _rank(one: str, window_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{window_id}\0{one}".encode("utf-8", "surrogatepass")).digest()
